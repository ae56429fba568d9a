"""What is visible of a queue, from Redis and from the model, in one form that can be compared."""

from __future__ import annotations

from typing import Any

import msgspec

from fairque.fairness.choice import encoded_path
from fairque.fairness.line import Line
from fairque.fairness.model_limits import NameLimit
from fairque.fairness.model_policies import Marks
from fairque.fairness.model_queue import ModelQueue, ModelTask, UserCounts
from fairque.fairness.model_task import LANES
from fairque.metrics import metrics_in
from fairque.models import EVERYONE, TaskState
from fairque.policy import Policy, changes_of
from fairque.redis.keys import encode_user
from tests.support.core import Key

KEPT_ERRORS = 20
NOT_MODELLED = ("workers", "worker:", "waiting", "metrics:*", "usage:", "told", "limit-rate:")
_SLEEPERS = ("limited", "keeper", "second", "slots", "relook")
_TASK_NUMBERS = ("attempt", "failures", "lost", "returned", "since", "paid")
_TASK_NAMES = ("held", "limited")
_MEASURED = ("finished", "failed", "retried", "canceled", "cost")
_ENDS = _MEASURED[:4]

View = dict[str, Any]


# Redis


def seen(dump: dict[str, Key], model: ModelQueue) -> View:
    """A key that nobody expects stays, and fails the comparison."""
    found = {name: _plain(name, key) for name, key in dump.items() if not name.startswith(NOT_MODELLED)}
    found["state"] = _state_fields(found.get("state", {}))
    for task in model.tasks.values():
        found.setdefault(f"task:{_name(task)}", _task_fields({}))
    return {name: value for name, value in found.items() if value}


def _state_fields(fields: dict[str, float | str]) -> View:
    told = {name: value for name, value in fields.items() if name not in _SLEEPERS and value not in ("0", 0)}
    return told | {name: True for name in ("sweep", "recount") if name in fields}


def _plain(name: str, key: Key) -> Any:
    first = name.partition(":")[0]
    if first in ("body", "result"):
        return "here"
    if first == "task":
        return _task_fields(dict(key.pairs))
    if first == "errors":
        return len(key.content)
    if first == "policy":
        return msgspec.msgpack.decode(key.content[0])
    if first == "metrics":
        measured = metrics_in(key.content[0], 10**15)
        return _filled({name: getattr(measured, name) for name in _MEASURED})
    if first in ("user", "group", "limit", "state"):
        fields = {field: _number(value) for field, value in key.pairs if field not in ("by", "hand")}
        return fields if first == "state" else _counted(fields)
    if first == "offers":
        return dict(key.pairs)
    if first == "dead":
        return {member for member, _ in key.scores}
    if key.kind == "set":
        return {member.decode() for member in key.content}
    return key.holdings if key.kind == "stream" else key.scores


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _counted(fields: View) -> View:
    """Since when failures are counted matters while there are any."""
    return _filled(fields if fields.get("fails") else {**fields, "fails_since": 0})


def _filled(fields: View) -> View:
    return {name: value for name, value in fields.items() if value}


def _task_fields(fields: dict[str, str]) -> View:
    if fields.get("state") == "started":
        fields = {"attempt": "1"} | fields  # the first one is not written down
    numbers = {name: int(fields.get(name, 0)) for name in _TASK_NUMBERS}
    names = {name: fields.get(name, "") for name in _TASK_NAMES}
    return {"state": fields.get("state", "queued"), **numbers, **names}


# The model


def expected(model: ModelQueue, stream_ids: dict[int, bytes]) -> View:
    parts = (
        {"state": _state(model, stream_ids)},
        _turns(model),
        _lanes(model),
        _tasks(model),
        ended(model),
        _users(model),
        _policies(model),
        _limits(model),
    )
    return {name: value for part in parts for name, value in part.items() if value}


def _state(model: ModelQueue, stream_ids: dict[int, bytes]) -> View:
    lanes = list(model.lanes.values())
    values: View = {"clock": model.choice.clock, "mean": model.choice.line.mean, "arrival": model.arrival}
    for name in LANES:
        held = sum(task.is_held and task.lane == name for task in model.tasks.values())
        values[name] = held + sum(len(lane.backlog) for lane in lanes if lane.name == name)
    for end in _ENDS:
        values[end] = sum(getattr(tally, end) for tally in model.tallies.values())
    values["started"] = sum(len(lane.stream) for lane in lanes)
    values["scheduled"] = sum(len(waiting) for waiting in model.scheduled.values())
    values["policies"] = len(_policies(model)) - len(_indexes(model))
    values["limits"] = len(model.limits.limits)
    values["in_hand"] = sum(map(len, model.limits.offered.values()))
    values["sweep"] = model.admission.is_swept
    values["stole"] = model.stole
    values["recount"] = any(not limit.is_counted for limit in model.limits.limits.values())
    cursors = {
        f"cursor:{lane.name}:{encode_user(lane.user_id)}": stream_ids[lane.cursor].decode()
        for lane in lanes
        if lane.cursor
    }
    values["cursors"] = len(cursors)
    return _filled(values) | cursors


def _turns(model: ModelQueue) -> View:
    """Who is served next, and what happens next."""
    choice, admission = model.choice, model.admission
    by_time = sorted((ms, encode_user(user_id)) for user_id, ms in admission.seen.items())
    found: View = {
        "ready": _line(choice.line),
        "reserved": [(encode_user(user_id), choice.reserved.scores[user_id]) for user_id in choice.reserved],
        "parked": [(policy_name(user_id), admission.parked.scores[user_id]) for user_id in admission.parked],
        "swept": [(policy_name(user_id), admission.swept.scores[user_id]) for user_id in admission.swept],
        "due": [(encode_user(user_id), model.due.scores[user_id]) for user_id in model.due],
        "leases": [(f"{key[0]}:{encode_user(key[1])}", model.leases.scores[key]) for key in model.leases],
        "users": [(user, ms) for ms, user in by_time],
    }
    for path, line in choice.lines.items():
        if path:
            found[f"ready:{path}"] = _line(line)
            above = choice.lines[path.rpartition("/")[0]]
            found[f"group:{path}"] = _filled(
                {"tag": above.kept.get(f"@{path}"), "clock": line.clock, "mean": line.mean}
            )
    return found


def policy_name(user_id: str) -> str:
    return user_id if user_id == EVERYONE else encode_user(user_id)


def _line(line: Line) -> list[tuple[str, float]]:
    return [(member, line.ready.scores[member]) for member in line.ready]


def _lanes(model: ModelQueue) -> View:
    found: View = {}
    for lane in model.lanes.values():
        user = encode_user(lane.user_id)
        found[f"{lane.name}:{user}"] = [(id_, lane.backlog.scores[id_]) for id_ in lane.backlog]
        found[f"{lane.name}-stream:{user}"] = [(of.task.task_id, of.worker) for of in lane.stream.values()]
    for user_id, waiting in model.scheduled.items():
        found[f"scheduled:{encode_user(user_id)}"] = [(id_, waiting.scores[id_]) for id_ in waiting]
    return found


def _tasks(model: ModelQueue) -> View:
    found: View = {}
    for task in model.tasks.values():
        found[f"task:{_name(task)}"] = _task_of_model(task)
        found[f"body:{_name(task)}"] = "here"
        found[f"errors:{_name(task)}"] = min(KEPT_ERRORS, task.failures)
    return found


def ended(model: ModelQueue) -> View:
    found: View = {}
    for task in model.ended.values():
        found[f"result:{_name(task)}"] = "here"
        if task.state is TaskState.FAILED:
            found[f"task:{_name(task)}"] = _task_of_model(task)
            found[f"body:{_name(task)}"] = "here"
            found[f"errors:{_name(task)}"] = min(KEPT_ERRORS, task.failures + 1)
            found.setdefault(f"dead:{encode_user(task.user_id)}", set()).add(task.task_id)
            found.setdefault("dead", set()).add(_name(task))
    return found


def _task_of_model(task: ModelTask) -> View:
    numbers = task.attempt, task.failures, task.lost, task.returned, task.returned_since_ms, task.paid
    names = f":{task.name}" if task.is_held else "", f"{len(task.limited) + 1}::{task.limited}" if task.limited else ""
    return {
        "state": task.state.value,
        **dict(zip(_TASK_NUMBERS, map(int, numbers), strict=True)),
        **dict(zip(_TASK_NAMES, names, strict=True)),
    }


def _users(model: ModelQueue) -> View:
    found: View = {}
    for user_id in model.tallies.keys() | model.admission.seen.keys() | model.policies.marks.keys():
        user, tally = encode_user(user_id), model.tallies.get(user_id, UserCounts())
        found[f"metrics:{user}"] = _filled({name: getattr(tally, name) for name in _MEASURED})
        found[f"user:{user}"] = _user(model, user_id)
    return found


def _user(model: ModelQueue, user_id: str) -> View:
    marks = model.policies.marks.get(user_id, Marks())
    fields = {
        "tag": model.choice.line_of(user_id).kept.get(encode_user(user_id)),
        "capped": int(encode_user(user_id) in model.choice.line_of(user_id).capped),
        "tat": marks.tat_us,
        "tat_of": marks.tat_of_us,
        "open_until": marks.open_until_ms,
        "fails": marks.failures,
        "fails_since": marks.failing_since_ms,
        "trips": marks.trips,
    }
    return _counted(fields)


def _policies(model: ModelQueue) -> View:
    policies = model.policies
    found: View = {f"policy:{encode_user(user_id)}": packed(own) for user_id, own in policies.own.items()}
    found["policy:*"] = packed(policies.default)
    for group, weight in model.choice.group_weights().items():
        found[f"policy:@{encoded_path(group)}"] = packed(Policy(weight=weight))
    return {name: value for name, value in found.items() if value} | _indexes(model)


def _indexes(model: ModelQueue) -> View:
    users = sorted(map(encode_user, model.policies.own))
    groups = sorted(f"@{encoded_path(group)}" for group in model.choice.group_weights())
    names = {"policy-users": users, "policy-groups": groups, "limit-names": sorted(model.limits.limits)}
    return {index: [(name, 0.0) for name in of] for index, of in names.items() if of}


def packed(policy: Policy) -> View:
    return changes_of({name: value for name, value in msgspec.structs.asdict(policy).items() if value is not None})[0]


def _limits(model: ModelQueue) -> View:
    limits = model.limits
    found: View = {f"limit::{name}": _limit(limit) for name, limit in limits.limits.items()}
    found["uncounted"] = {f":{name}" for name, limit in limits.limits.items() if not limit.is_counted}
    found["held"] = [(f":{name}", limits.held.scores[name]) for name in limits.held]
    for name, running in limits.running.items():
        found[f"running::{name}"] = {f"{encode_user(user_id)}:{id_}" for user_id, id_ in running}
    for name, let_in in limits.let_in.items():
        found[f"let-in::{name}"] = [(_name_of(key), let_in.scores[key]) for key in let_in]
    for user_id, offered in limits.offered.items():
        found[f"offers:{encode_user(user_id)}"] = {
            id_: f"{len(task.name) + 1}::{task.name}" for id_, task in offered.items()
        }
    for name, users in limits.users.items():
        found[f"held-users::{name}"] = [(encode_user(user_id), users.scores[user_id]) for user_id in users]
    for (user_id, name), tasks in limits.tasks.items():
        scores = [(id_, tasks.scores[id_]) for id_ in tasks]
        found[f"held:{encode_user(user_id)}::{name}"] = scores
        found.setdefault(f"held:{encode_user(user_id)}", []).extend(scores)
    for name, value in found.items():
        if name.startswith(("held:", "let-in:")):
            value.sort(key=lambda pair: (pair[1], pair[0].encode()))
    return found


def _limit(limit: NameLimit) -> View:
    rate = limit.rate
    counted = {"rate_us": rate.interval_us, "burst": rate.burst} if rate else {}
    return _filled({"max": limit.max_running, "uncounted": int(not limit.is_counted), **counted})


def _name(task: ModelTask) -> str:
    return _name_of(task.key)


def _name_of(key: tuple[str, str]) -> str:
    return f"{encode_user(key[0])}:{key[1]}"


# Both


def agree(what: str, of_scripts: Any, of_model: Any) -> None:
    if are_close(of_scripts, of_model):
        return
    if isinstance(of_scripts, dict):
        names = [
            name
            for name in of_scripts.keys() | of_model.keys()
            if not are_close(of_scripts.get(name), of_model.get(name))
        ]
        of_scripts = {name: of_scripts.get(name) for name in names}
        of_model = {name: of_model.get(name) for name in names}
    raise AssertionError(f"{what}: {of_scripts!r} in Redis, {of_model!r} in the model")


def are_close(one: Any, other: Any) -> bool:
    """Equal, but for how virtual times are rounded. Moments are whole numbers, and must be the same."""
    if isinstance(one, float) and isinstance(other, int | float):
        return one == other or abs(one - other) <= 1e-9 * max(1, min(abs(one), 1e6))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(are_close(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(are_close, one, other))
    return bool(one == other)
