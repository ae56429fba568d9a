"""What is visible of a queue, from Redis and from the model, in one form that can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any, cast

import msgspec

from fairque.everybody import EVERYONE
from fairque.fairness.choice import EVERYBODY, encoded_path
from fairque.fairness.line import Line
from fairque.fairness.model_batch import ModelBatch
from fairque.fairness.model_limit import KeyLimit
from fairque.fairness.model_policies import Marks
from fairque.fairness.model_queue import ModelQueue, ModelTask, UserCounts
from fairque.fairness.model_suspects import Room
from fairque.fairness.model_task import LANES, Ends, LaneName
from fairque.metrics import metrics_in
from fairque.models import BatchState, TaskState
from fairque.policy import Policy, changes_of
from fairque.redis.assignment import assignments_of
from fairque.redis.keys import decode_user, encode_user
from tests.support.core import Key

KEPT_ERRORS = 20
NOT_MODELLED = (
    "limit-rate:",
    "bytes",
    "dead-kinds:",
    "dead-of:",
    "weighed",
    "weighing-spaces",
    "assignment:",
    "assignments:",
    "assignments-ended",
    "held-keys:",
    "held-turns",
    "workers@",
    "ready@",
    "reserved@",
    "leases@",
    "sweep-lines",
    "workers",
    "worker:",
    "waiting",
    "metrics:*",
    "usage:",
    "told",
    "answer:",
    "exchanges",
    "loan:",
    "loans:",
    "loans-closed",
)
_OF_A_LIMIT = ("by", "hand", "changed")
_INNER = (
    "relook",
    "limited",
    "byte_gen",
    "weigh_cursor",
    "weighing",
    "hunt",
    "keeper",
    "revision",
    "second",
    "silent_at",
    "checked_at",
    "set_back",
    "slots",
    "weighted",
)
"""Of the state: how the scripts find something out, not what they find."""
_TASK_NUMBERS = ("attempt", "failures", "lost", "returned", "since", "paid", "received", "tried", "deaths", "alone")
_TASK_NAMES = ("held", "limited")
_MEASURED = ("finished", "failed", "retried", "canceled", "cost")
_ENDS = _MEASURED[:4]
_BATCH_COUNTS = ("total", "finished", "failed", "canceled")

View = dict[str, Any]


# Redis


def seen(dump: dict[str, Key], model: ModelQueue) -> View:
    """A key that nobody expects stays, and fails the comparison."""
    found = {name: _plain(name, key) for name, key in dump.items() if not name.startswith(NOT_MODELLED)}
    found["state"] = _state_fields(found.get("state", {}))
    for task in model.tasks.values():
        found[f"task:{_name(task)}"] = found.get(f"task:{_name(task)}") or _task_fields({})
    _drop_what_is_outdated(found, model)
    _keep_what_links_nothing(found, dump)
    if "byte_limits" in state_of(dump):  # whoever has a count is listed, until a week has passed
        listed = {encode_user(user_id) for user_id in model.admission.seen}
        found["users"] = [of for of in found.get("users", []) if of[0] in listed]
    now_ms = told_ms(dump)
    found["suspects"] = {of for of, until_ms in found.get("suspects", []) if until_ms > now_ms}
    for name in ("held", "batches"):
        if name in found:
            found[name] = {member for member, _ in found[name]}
    for name in [name for name in found if name.startswith("informed:")]:
        found.setdefault("feeds:" + name.partition(":")[2], set()).update(found.pop(name))
    return {name: value for name, value in found.items() if value}


def _keep_what_links_nothing(found: View, dump: dict[str, Key]) -> None:
    """Of a task that has ended `linked` stays while anything else knows of it."""
    for name in [name for name, value in found.items() if value is None and name.startswith("task:")]:
        rest = name.partition(":")[2]
        if not any(f"{other}:{rest}" in dump for other in ("feeds", "informed", "uses", "ends")):
            found[name] = "links nothing"


def state_of(dump: dict[str, Key]) -> dict[str, str]:
    return dict(dump["state"].pairs) if "state" in dump else {}


def check_bytes(dump: dict[str, Key], model: ModelQueue) -> None:
    """What is said of users with a limit, but for those of whom not all is counted yet."""
    for user_id in {key[0] for key in (*model.tasks, *model.ended, *model.batches.of)} | model.tallies.keys():
        if model.bytes.limit(user_id) is not None:
            found, true = _bytes_in(dump, user_id), model.bytes.used(user_id)
            is_right = found <= true if model.bytes.is_counting(user_id) else found == true
            assert is_right, f"{found} bytes of {user_id!r} are counted, it has {true}"


def check_kinds(dump: dict[str, Key]) -> None:
    """Each dead letter is in one list by the kind of its error, of its user and of the queue."""
    lists = {name: [member for member, _ in key.scores] for name, key in dump.items() if name.startswith("dead-of:")}
    for name, key in dump.items():
        if name == "dead" or name.startswith("dead:"):
            of_kind = f"dead-of:{name.partition(':')[2] or '*'}:"
            listed = [of for kind, members in lists.items() if kind.startswith(of_kind) for of in members]
            assert sorted(listed) == sorted(member for member, _ in key.scores), f"letters in {name}, by kind"


def _bytes_in(dump: dict[str, Key], user_id: str) -> int:
    user = encode_user(user_id)
    counts = dict(dump[f"bytes:{user}"].pairs) if f"bytes:{user}" in dump else {}
    buckets = {name: int(size) for name, size in counts.items() if name not in ("used", "gen")}
    listed = _scores(dump, f"bytes-expiring:{user}")
    assert buckets.keys() == listed.keys(), f"{buckets} are said to expire, {listed} are looked at"
    gone = sum(size for name, size in buckets.items() if int(name) <= told_ms(dump) // 10_000)
    return int(counts.get("used", 0)) - gone


def told_ms(dump: dict[str, Key]) -> int:
    """The time of the game."""
    told = dict(dump["told"].pairs)
    return int(told["seconds"]) * 1000 + int(told["us"]) // 1000


def room_in(dump: dict[str, Key]) -> Room | None:
    """The worker that is occupied by a suspect, if there is any."""
    told = state_of(dump).get("clearing")
    return _room(told) if told else None


def _room(told: str) -> Room:
    since, ends, opens, lane, worker = told.split(" ", 4)
    name, _, user = lane.partition(":")
    of_lane = None if lane == "-" else (cast(LaneName, name), decode_user(user.encode()))
    return Room(int(since), int(ends), int(opens), of_lane, worker)


def _drop_what_is_outdated(found: View, model: ModelQueue) -> None:
    """Own tags of those that came back, and weights of those that stand nowhere, are of no consequence."""
    for path, line in model.choice.lines.items():
        left = found.get(f"left:{path}" if path else "left", {})
        for member in [member for member in left if member in line.ready or member in line.capped]:
            del left[member]
        found.get(f"group:{path}", {}).pop("weight", None)
    for name in [name for name in found if name.startswith("user:")]:
        user_id = decode_user(name.partition(":")[2].encode())
        if model.choice.line_of(user_id).tag(encode_user(user_id)) is None:
            found[name].pop("weight", None)


def _state_fields(fields: View) -> View:
    told: View = {
        name: value for name, value in fields.items() if not name.startswith(_INNER) and value not in ("0", 0)
    }
    if "clearing" in told:
        told["clearing"] = _room(told["clearing"])
    return {**told, **{name: True for name in ("sweep", "recount") if name in fields}}


def _plain(name: str, key: Key) -> Any:
    first = name.partition(":")[0]
    if reader := _HOLDERS.get(name, _HOLDERS.get(first)):
        return reader(key)
    return key.holdings if key.kind == "stream" else key.scores


def _here(key: Key) -> str:
    return f"a {key.kind}"


def _members(key: Key) -> set[str]:
    """Of a set, or of a sorted set whose order is no matter."""
    return {member.decode() for member in (key.content if key.kind == "set" else key.content[::2])}


def _fields(key: Key) -> View:
    return {field: _number(value) for field, value in key.pairs}


def _task(key: Key) -> View | None:
    fields = dict(key.pairs)
    return None if fields.keys() == {"linked"} else _task_fields(fields)


def _metrics(key: Key) -> View:
    measured = metrics_in(key.content[0], 10**15)
    return _filled({name: getattr(measured, name) for name in _MEASURED})


def _run_times(key: Key) -> View:
    return {task_name: tuple(map(float, means.split())) for task_name, means in key.pairs}


_HOLDERS: dict[str, Callable[[Key], Any]] = {
    "body": _here,
    "result": _here,
    "task": _task,
    "errors": lambda key: len(key.content),
    "policy": lambda key: msgspec.msgpack.decode(key.content[0]),
    "metrics": _metrics,
    "run-times": _run_times,
    "assignments": lambda key: sorted(key.scores),
    "state": _fields,
    "let-in": _members,
    "left": lambda key: dict(key.scores),
    "held": lambda key: key.scores,
} | dict.fromkeys(("user", "group", "limit"), lambda key: _counted(_fields(key)))
_HOLDERS |= {"ends": lambda key: _ends_in(key.content[0]), "batch": lambda key: _batch_fields(key.content)}
_HOLDERS |= dict.fromkeys(("batch-tasks",), _members)
_HOLDERS["limit"] = lambda key: _filled(
    {name: of for name, of in _fields(key).items() if name not in ("by", "hand", "changed")}
)
_HOLDERS["keeper"] = _HOLDERS["unique"] = lambda key: key.content[0].decode()
_HOLDERS["offers"] = lambda key: dict(key.pairs)
_HOLDERS |= dict.fromkeys(("dead", "leases", "held-users", "running", "uncounted", "paused-tasks", "kept"), _members)
_HOLDERS |= dict.fromkeys(("deferred", "needs", "uses", "feeds", "informed", "lapsing"), _members)


class _Callback(msgspec.Struct, array_like=True):
    kind: str
    priority: int
    when: str
    body: msgspec.Raw
    after: msgspec.Raw


def _ends_in(packed: bytes) -> View:
    life, callbacks, batch = msgspec.msgpack.decode(packed, type=tuple[int, list[_Callback], str])
    return _ends(life, [of.kind for of in callbacks], batch)


def _ends(life: int, kinds: Sequence[str], batch: str) -> View:
    return {"life": life, "kinds": list(kinds), "batch": batch}


def _batch_fields(content: list[bytes]) -> View:
    """Callbacks as long as they are not put in."""
    fields = {name.decode(): value for name, value in zip(content[::2], content[1::2], strict=True)}
    counts = {name: int(fields.get(name, 0)) for name in _BATCH_COUNTS}
    calls = [name for name in ("on_complete", "on_success") if name in fields]
    return {"state": fields["state"].decode(), **counts, "calls": calls, "was_complete": "complete" in fields}


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
    numbers = {name: int(fields.get(name, 0)) for name in _TASK_NUMBERS}
    if fields.get("state") == "started":  # its first attempt is in no field
        numbers["attempt"] = int(fields.get("attempt", 1))
    names = {name: fields.get(name, "") for name in _TASK_NAMES}
    ways = {"canceling": "canceling" in fields, "charged": float(fields.get("charged", -1))}
    ways["charged_before"] = float(fields.get("charged_before", 0))
    return {"state": fields.get("state", "queued"), **numbers, **names, **ways}


# The model


def expected(model: ModelQueue) -> View:
    parts = (
        {"state": _state(model)},
        _turns(model),
        _lanes(model),
        _tasks(model),
        ended(model),
        _users(model),
        _policies(model),
        _limits(model),
        _links(model),
        _batches(model),
    )
    return {name: value for part in parts for name, value in part.items() if value}


def _state(model: ModelQueue) -> View:
    lanes = list(model.lanes.values())
    values: View = {"clock": model.choice.clock, "mean": model.choice.line.mean, "arrival": model.arrival}
    for name in LANES:
        held = sum(bool(task.held) and task.lane == name for task in model.tasks.values())
        values[name] = held + sum(len(lane.backlog) for lane in lanes if lane.name == name)
    for end in _ENDS:
        values[end] = getattr(model.totals, end)
    values["started"] = sum(len(lane.stream) for lane in lanes)
    values["scheduled"] = sum(len(waiting) for waiting in model.scheduled.values())
    values["deferred"] = len(model.links.deferred)
    values["policies"] = len(_policies(model)) - len(_indexes(model))
    values["limits"] = len(model.limits.rules.of)
    values["assigned"] = len(model.workers.noted.keys() - {EVERYBODY})
    values["in_hand"] = sum(map(len, model.limits.offered.values()))
    values["expiring"] = float(bool(model.expiry.tasks))
    values["sweep"] = model.admission.is_swept
    values["held_by_share"] = model.admission.is_held_by_share
    values["clearing"] = model.suspects.room
    stated = [model.policies.default, *model.policies.own.values()]
    values["byte_limits"] = sum(policy.max_bytes is not None for policy in stated)
    values["stole"] = float(model.stole)
    values["recount"] = model.limits.is_counting()
    return _filled(values)


def _turns(model: ModelQueue) -> View:
    """Who is served next, and what happens next."""
    choice, admission = model.choice, model.admission
    by_time = sorted((ms, encode_user(user_id)) for user_id, ms in admission.seen.items())
    found: View = {
        "reserved": [(encode_user(user_id), choice.reserved.scores[user_id]) for user_id in choice.reserved],
        "parked": [(policy_name(user_id), admission.parked.scores[user_id]) for user_id in admission.parked],
        "swept": [(policy_name(user_id), admission.swept.scores[user_id]) for user_id in admission.swept],
        "expiring": [(encode_user(user_id), model.expiry.users.scores[user_id]) for user_id in model.expiry.users],
        "due": [(encode_user(user_id), model.due.scores[user_id]) for user_id in model.due],
        "leases": {f"{of.name}:{encode_user(of.user_id)}" for of in model.lanes.values() if of.stream},
        "assignments": sorted((assignment_name(users), float(ms)) for users, ms in model.workers.noted.items()),
        "suspects": {_name_of(key) for key in model.suspects.recent},
        "run-times": {name: tuple(map(float, means)) for name, means in model.run_times.means.items()},
        "users": [(user, ms) for ms, user in by_time],
    }
    for path, line in choice.lines.items():
        after = f":{path}" if path else ""
        found[f"ready{after}"] = _line(line)
        found[f"left{after}"] = dict(line.kept)
        if path:
            above = choice.lines[path.rpartition("/")[0]]
            found[f"group:{path}"] = _filled(
                {"capped": above.capped.get(f"@{path}"), "clock": line.clock, "mean": line.mean}
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
    for task in model.tasks.values():
        if task.has_key:
            found[f"unique:{encode_user(task.user_id)}:{task.pointer}"] = task.task_id
    for user_id, expiring in model.expiry.tasks.items():
        found[f"expiring:{encode_user(user_id)}"] = [(id_, expiring.scores[id_]) for id_ in expiring]
    return found


def _tasks(model: ModelQueue) -> View:
    found: View = {}
    for task in model.tasks.values():
        if task.ends:
            found[f"ends:{_name(task)}"] = _ends_of(task.ends)
        found[f"task:{_name(task)}"] = _task_of_model(task)
        found[f"body:{_name(task)}"] = "a string"
        found[f"errors:{_name(task)}"] = min(KEPT_ERRORS, task.errors)
    return found


def ended(model: ModelQueue) -> View:
    found: View = {}
    for task in model.ended.values():
        found[f"result:{_name(task)}"] = "a string"
        if task.state is TaskState.FAILED:
            found[f"task:{_name(task)}"] = _task_of_model(task)
            found[f"body:{_name(task)}"] = "a string"
            found[f"errors:{_name(task)}"] = min(KEPT_ERRORS, task.errors)
            if task.ends:
                found[f"ends:{_name(task)}"] = _ends_of(task.ends)
            found.setdefault(f"dead:{encode_user(task.user_id)}", set()).add(task.task_id)
            found.setdefault("dead", set()).add(_name(task))
    for (user_id, pointer), (task_id, _) in model.windows.items():
        found[f"unique:{encode_user(user_id)}:{pointer}"] = task_id
    for batch in model.batches.of.values():
        if batch.expires:
            found[f"batch:{_name_of(batch.key)}"] = _batch_of_model(batch)
    return found


def _ends_of(ends: Ends) -> View:
    return _ends(ends.life, [of.kind for of in ends.callbacks], ends.batch)


def _batches(model: ModelQueue) -> View:
    found: View = {}
    for batch in model.batches.of.values():
        found[f"batch:{_name_of(batch.key)}"] = _batch_of_model(batch)
        found[f"batch-tasks:{_name_of(batch.key)}"] = set(batch.pending)
    for batch in model.batches.of.values():
        if batch.state is BatchState.OPEN:
            user = encode_user(batch.user_id)
            found.setdefault(f"batches:{user}", []).append((batch.batch_id, float(batch.ends_ms)))
            found.setdefault("batches", set()).add(user)
    return {name: _by_score(value) if isinstance(value, list) else value for name, value in found.items()}


def _by_score(members: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(members, key=lambda of: (of[1], of[0].encode()))


def _batch_of_model(batch: ModelBatch) -> View:
    counts = {name: getattr(batch, name) for name in _BATCH_COUNTS}
    calls = [name for name in ("on_complete", "on_success") if getattr(batch, name)]
    return {"state": batch.state.value, **counts, "calls": calls, "was_complete": batch.was_complete}


def _task_of_model(task: ModelTask) -> View:
    numbers = (
        *(task.attempt, task.failures, task.lost, task.returned, task.returned_since_ms, task.paid),
        *(task.received, task.tried, task.deaths, task.alone_ms),
    )
    names = task.held, _packed_keys(task.limited)
    return {
        "state": task.state.value,
        **dict(zip(_TASK_NUMBERS, map(int, numbers), strict=True)),
        **dict(zip(_TASK_NAMES, names, strict=True)),
        "canceling": bool(task.canceling),
        "charged": -1.0 if task.charged is None else task.charged,
        "charged_before": task.charged_before,
    }


def _links(model: ModelQueue) -> View:
    found: View = {}
    for task in model.links.deferred.values():
        user = encode_user(task.user_id)
        found[f"needs:{_name(task)}"] = set(task.needs)
        found.setdefault(f"deferred:{user}", set()).add(task.task_id)
    letters = [model.ended[key] for key in model.letters()]
    for task in (*model.tasks.values(), *letters):
        found[f"uses:{_name(task)}"] = set(task.uses)
        for need in task.uses:
            found.setdefault(f"feeds:{encode_user(task.user_id)}:{need}", set()).add(task.task_id)
    for task in letters:
        if task.uses or task.ends or f"feeds:{_name(task)}" in found:
            user = encode_user(task.user_id)
            found.setdefault(f"lapsing:{user}", set()).add(task.task_id)
            found.setdefault("lapsing", set()).add(user)
    return found


def _users(model: ModelQueue) -> View:
    found: View = {}
    for user_id in model.tallies.keys() | model.admission.seen.keys() | model.policies.marks.keys():
        user, tally = encode_user(user_id), model.tallies.get(user_id, UserCounts())
        found[f"metrics:{user}"] = _filled({name: getattr(tally, name) for name in _MEASURED})
        found[f"user:{user}"] = _user(model, user_id)
    return found


def _user(model: ModelQueue, user_id: str) -> View:
    marks = model.policies.marks.get(user_id, Marks())
    line, user = model.choice.line_of(user_id), encode_user(user_id)
    fields = {
        "capped": line.capped.get(user),
        "weight": None if line.tag(user) is None else line.weights.get(user),
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
    names = {
        "policy-users": users,
        "policy-groups": groups,
        "limit-keys": sorted(model.limits.rules.of),
    }
    return {index: [(name, 0.0) for name in of] for index, of in names.items() if of}


def packed(policy: Policy) -> View:
    return changed({name: value for name, value in msgspec.structs.asdict(policy).items() if value is not None})[0]


def changed(fields: View) -> tuple[View, list[str]]:
    """What a script is told of a policy: the new fields, and those that are forgotten."""
    changes, forgotten = changes_of({name: value for name, value in fields.items() if name != "group"})
    if group := fields.get("group"):
        changes["group"] = encoded_path(group)
    elif "group" in fields:
        forgotten.append("group")
    return changes, forgotten


def _limits(model: ModelQueue) -> View:
    limits, lines = model.limits, model.limits.lines
    found: View = {f"limit:{record}": _limit(limit) for record, limit in limits.rules.of.items()}
    found["uncounted"] = {record for record, limit in limits.rules.of.items() if not limit.is_counted}
    found["paused-tasks"] = {record for record, limit in limits.rules.of.items() if limit.is_paused}
    found["held"] = set(lines.held)
    for key, running in limits.running.items():
        found[f"running:{key}"] = set(map(_name_of, running))
    for key, let_in in limits.let_in.items():
        found[f"let-in:{key}"] = set(map(_name_of, let_in))
    for key, kept in limits.kept.items():
        found[f"kept:{key}"] = set(map(_name_of, kept))
    for user_id, (task_id, _) in limits.keepers.items():
        found[f"keeper:{encode_user(user_id)}"] = task_id
    for user_id, offered in limits.offered.items():
        found[f"offers:{encode_user(user_id)}"] = {id_: _packed_keys(task.places) for id_, task in offered.items()}
    for key, users in lines.users.items():
        found[f"held-users:{key}"] = set(map(encode_user, users))
    for user_id, tasks in lines.of_user.items():
        found[f"held:{encode_user(user_id)}"] = [(id_, tasks.scores[id_]) for id_ in tasks]
    for (user_id, key), tasks in lines.tasks.items():
        found[f"held:{encode_user(user_id)}:{key}"] = [(id_, tasks.scores[id_]) for id_ in tasks]
    return found


def _packed_keys(keys: Sequence[str]) -> str:
    return "".join(f"{len(key.encode())}:{key}" for key in keys)


def _limit(limit: KeyLimit) -> View:
    rate = limit.rate
    counted = {"rate_us": rate.interval_us, "burst": rate.burst} if rate else {}
    marks = {"uncounted": int(not limit.is_counted), "paused": int(limit.is_paused)}
    return _filled({"max": limit.max_running, **marks, **counted})


def _name(task: ModelTask) -> str:
    return _name_of(task.key)


def _name_of(key: tuple[str, str]) -> str:
    return f"{encode_user(key[0])}:{key[1]}"


# Trees of assignments


def assignment_name(users: Set[str]) -> str:
    return assignments_of([tuple(users)])[0].name


def check_trees(dump: dict[str, Key], model: ModelQueue) -> None:
    """Each holds all of its users that are ready, and their groups, at no more than their tags; and all their lanes."""
    looks = dict(dump["leases"].scores) if "leases" in dump else {}
    for users in model.workers.noted.keys() - {EVERYBODY}:
        name = assignment_name(users)
        for path, line in model.choice.lines.items():
            tree = _scores(dump, f"ready@{name}:{path}" if path else f"ready@{name}")
            for member in model.choice.standing_for(line, users):
                _check_not_above(f"{member} in the tree of {set(users)}", tree.get(member), line.ready.scores[member])
        first = _scores(dump, f"reserved@{name}")
        for user_id in users & set(model.choice.reserved):
            _check_not_above(f"{user_id} in front", first.get(encode_user(user_id)), model.choice.tag(user_id))
        own = _scores(dump, f"leases@{name}")
        for user in map(encode_user, users):
            for lane in (f"critical:{user}", f"normal:{user}"):
                if lane in looks:
                    _check_not_above(f"a look at {lane}", own.get(lane), looks[lane])


def _scores(dump: dict[str, Key], name: str) -> dict[str, float]:
    return dict(dump[name].scores) if name in dump else {}


def _check_not_above(what: str, found: float | None, true: float) -> None:
    assert found is not None, f"{what} is not there"
    assert found <= true or are_close(found, true), f"{what} is at {found}, not at {true}"


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
