"""The scripts and their model side by side: each call goes to both, and everything that can be seen is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fairque import model_queue
from fairque.delivery import Delivery
from fairque.fairness import EVERYONE, Group
from fairque.keys import encode_user
from fairque.model_queue import Kind, ModelQueue, ModelTask
from fairque.models import TaskState
from tests.support.core import HOUR_MS, STEP_MS, Core, Key, new_task, outcome

IDLE_MS = 3
"""A lease of 1 ms is over for certain after this time, one of ten minutes never is."""
KEPT_ERRORS = 20
_OF_WORKERS = ("workers", "worker:", "waiting", "users")
_TASK_NUMBERS = ("attempt", "failures", "lost", "returned", "since", "paid")


class Order(NamedTuple):
    """What is asked for in an enqueue."""

    user_id: str
    task_id: str
    priority: int
    cost: float
    delay_ms: int


class Held(NamedTuple):
    """One delivery, as the scripts and as the model gave it out."""

    real: Delivery
    model: model_queue.Delivery

    @property
    def is_out(self) -> bool:
        """Not settled yet, and not stolen."""
        return self.model.task.delivery == self.model.fence


class Mirror:
    """Does everything twice. Raises AssertionError where the scripts and the model part ways."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.model = ModelQueue(STEP_MS)
        self.held: list[Held] = []
        self.said: dict[int, tuple[Kind, int]] = {}  # outcomes are repeated as they were given
        self.users: set[str] = set()
        self._stream_ids: dict[int, bytes] = {}
        self._last_touch_ms = 0

    # The calls

    async def enqueue(self, orders: Sequence[Order], nonce: bytes) -> None:
        before = self.core.state()
        created = await self.core.enqueue_all([new_task(*order, nonce) for order in orders])
        after = self.core.state()
        self.users.update(order.user_id for order in orders)
        placed = sum(int(after.get(lane, 0)) - int(before.get(lane, 0)) for lane in model_queue.LANES)
        now_us = self._enqueued_at(orders, after, placed)
        tasks = [
            ModelTask(*order[:4], nonce=nonce, start_ms=now_us // 1000 + order.delay_ms if order.delay_ms else 0)
            for order in orders
        ]
        agree("created", created, self.model.enqueue(now_us, tasks))
        self.compare()

    def _enqueued_at(self, orders: Sequence[Order], state: dict[str, str], placed: int) -> int:
        """The moment at which the script ran: Redis stores it with what is added."""
        if placed:
            return int(state["arrival"]) - placed + 1
        dump = self.core.dump()
        found = [dump.get(f"task:{encode_user(order.user_id)}:{order.task_id}") for order in orders if order.delay_ms]
        return max((int(dict(key.pairs).get("enqueued", 0)) for key in found if key), default=0) * 1000

    async def claim(
        self, worker: str, want: int, lease_ms: int, groups: Sequence[Group] = EVERYONE, *, steal: bool = True
    ) -> list[Held]:
        self.core.wait_until_ms(self._last_touch_ms + IDLE_MS)
        how: Any = {"lease_ms": lease_ms, "groups": groups, "steal": steal}
        claim = await self.core.claim(want, worker=worker, wait=True, **how)
        now_ms = self._seen_at(worker)
        made = self.model.claim(self._promoted_at(now_ms), worker, want, **how)
        agree("deliveries", [_told(of) for of in claim.deliveries], [_modelled(of) for of in made])
        taken = [Held(*pair) for pair in zip(claim.deliveries, made, strict=True)]
        for held in taken:
            known = self._stream_ids.setdefault(held.model.fence.stream_id, held.real.stream_id)
            agree("place in the stream", held.real.stream_id, known)
        self.held += taken
        self._last_touch_ms = now_ms
        at_ms = self.model.next_event_ms(groups, steal=steal)
        agree_about_sleep(claim.sleep, None if at_ms is None else at_ms - now_ms, len(taken) < want)
        self.compare()
        return taken

    def _promoted_at(self, now_ms: int) -> int:
        """Tasks that become due get an arrival each, from which follow the microseconds."""
        due = [
            self.model.tasks[user_id, task_id]
            for user_id, waiting in self.model.scheduled.items()
            for task_id in waiting.up_to(now_ms, len(waiting))
        ]
        fresh = sum(task.score is None for task in due)
        now_us = int(self.core.state()["arrival"]) - fresh + 1 if fresh else now_ms * 1000
        assert now_us // 1000 == now_ms
        return now_us

    async def settle(self, picked: Sequence[Held], kind: Kind, delay_ms: int) -> list[bool]:
        """An outcome that was given before is given again, whatever `kind` says.

        Only the last outcome of a task is remembered as done: how an older one is answered, if it comes again, is open.
        """
        is_repeated = [id(of.real) in self.said for of in picked]
        said = [self.said.setdefault(id(of.real), (kind, delay_ms)) for of in picked]
        outcomes = [outcome(of.real, *words) for of, words in zip(picked, said, strict=True)]
        began = self.core.now_us()
        answers = await self.core.store.settle("w", outcomes, dead_letter_ttl_ms=HOUR_MS, priority_step_ms=STEP_MS)
        now_us = self._settled_at(picked, began)
        expected = [
            self.model.settle(now_us, of.model, kind, delay_ms=delay_ms)
            for of, (kind, delay_ms) in zip(picked, said, strict=True)
        ]
        is_open = [again and not answer for again, answer in zip(is_repeated, expected, strict=True)]
        agree("settled", _without(answers, is_open), _without(expected, is_open))
        self.compare()
        return answers

    def _settled_at(self, picked: Sequence[Held], began_us: int) -> int:
        """Redis stores the moment with what is put back; where nothing was, it matters to nobody."""
        dump, ends_ms = self.core.dump(), self.core.now_us() // 1000
        for of in picked:
            user, (_, delay_ms) = encode_user(of.real.user_id), self.said[id(of.real)]
            task, scheduled = dump.get(f"task:{user}:{of.real.id}"), dump.get(f"scheduled:{user}")
            found = int(dict(task.pairs).get("queued", 0)) if task else 0
            if delay_ms:
                found = int(dict(scheduled.scores).get(of.real.id, 0)) - delay_ms if scheduled else 0
            if began_us // 1000 <= found <= ends_ms:
                return found * 1000
        return began_us

    def renew(self, worker: str, picked: Sequence[Held]) -> None:
        lost = self.core.renew(worker, [of.real for of in picked])
        self._last_touch_ms = self._seen_at(worker)
        expected = self.model.renew(self._last_touch_ms * 1000, worker, [of.model for of in picked])
        agree("lost", lost, [of.real for of in picked if any(of.model is model for model in expected)])
        self.compare()

    async def set_weight(self, user_id: str, weight: float | None) -> None:
        self.users.add(user_id)
        await self.core.store.set_policy(user_id, {} if weight is None else {"weight": weight})
        self.model.choice.set_weight(user_id, weight)
        self.compare()

    def _seen_at(self, worker: str) -> int:
        return int(dict(self.core.dump()["workers"].scores)[worker])

    # What is visible

    def compare(self) -> None:
        dump = self.core.dump()
        seen = {name: key for name, key in dump.items() if not name.startswith(_OF_WORKERS)}
        agree("keys", self._seen(seen), self._expected())
        agree("keys that expire", {name for name, key in seen.items() if key.expires}, self._expiring())
        known = {user for user, _ in dump["users"].scores} if "users" in dump else set()
        assert {encode_user(user_id) for user_id in [*self.model.choice.ready, *self.model.due]} <= known

    def _seen(self, dump: dict[str, Key]) -> dict[str, Any]:
        """Everything in the form that `_expected` has; a key that nobody expects stays, and fails the comparison."""
        seen = {name: _plain(name, key) for name, key in dump.items()}
        seen["state"] = {
            name: value for name, value in seen.get("state", {}).items() if name != "limited" and value not in ("0", 0)
        }
        for task in self.model.tasks.values():
            seen.setdefault(f"task:{_name(task)}", _task_fields({}))
        return seen

    def _expected(self) -> dict[str, Any]:
        parts = self._expected_queue(), self._expected_lanes(), self._expected_tasks(), self._expected_ended()
        return {name: value for part in parts for name, value in part.items()} | self._expected_users()

    def _expected_queue(self) -> dict[str, Any]:
        model = self.model
        found: dict[str, Any] = {"state": self._expected_state()}
        if model.choice.ready:
            found["ready"] = [(encode_user(user_id), model.choice.tag(user_id)) for user_id in model.choice.ready]
        if model.due:
            found["due"] = [(encode_user(user_id), model.due.scores[user_id]) for user_id in model.due]
        if model.leases:
            found["leases"] = [(f"{key[0]}:{encode_user(key[1])}", model.leases.scores[key]) for key in model.leases]
        return found

    def _expected_state(self) -> dict[str, Any]:
        model = self.model
        lanes = list(model.lanes.values())
        values: dict[str, Any] = {"clock": model.choice.clock, "arrival": model.arrival}
        for name in model_queue.LANES:
            values[name] = sum(len(lane.backlog) for lane in lanes if lane.name == name)
        for end in _ENDS:
            values[end] = sum(getattr(tally, end) for tally in model.tallies.values())
        values["started"] = sum(len(lane.stream) for lane in lanes)
        values["scheduled"] = sum(len(waiting) for waiting in model.scheduled.values())
        values["policies"] = sum(model.choice.weight(user_id) != 1 for user_id in self.users)
        cursors = {
            f"cursor:{lane.name}:{encode_user(lane.user_id)}": self._stream_ids[lane.cursor].decode()
            for lane in lanes
            if lane.cursor
        }
        values["cursors"] = len(cursors)
        return {name: value for name, value in values.items() if value} | cursors

    def _expected_lanes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for lane in self.model.lanes.values():
            user = encode_user(lane.user_id)
            if lane.backlog:
                found[f"{lane.name}:{user}"] = [(id_, lane.backlog.scores[id_]) for id_ in lane.backlog]
            if lane.stream:
                holdings = [(of.task.task_id, of.worker) for of in lane.stream.values()]
                found[f"{lane.name}-stream:{user}"] = holdings
        for user_id, waiting in self.model.scheduled.items():
            found[f"scheduled:{encode_user(user_id)}"] = [(id_, waiting.scores[id_]) for id_ in waiting]
        return found

    def _expected_tasks(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for task in self.model.tasks.values():
            found[f"task:{_name(task)}"] = _task_of_model(task)
            found[f"body:{_name(task)}"] = "here"
            if task.failures:
                found[f"errors:{_name(task)}"] = min(KEPT_ERRORS, task.failures)
        return found

    def _expected_ended(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for task in self.model.ended.values():
            found[f"result:{_name(task)}"] = "here"
            if task.state is TaskState.FAILED:
                found[f"task:{_name(task)}"] = _task_of_model(task)
                found[f"body:{_name(task)}"] = "here"
                found[f"errors:{_name(task)}"] = min(KEPT_ERRORS, task.failures + 1)
                found.setdefault(f"dead:{encode_user(task.user_id)}", set()).add(task.task_id)
                found.setdefault("dead", set()).add(_name(task))
        return found

    def _expected_users(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        choice = self.model.choice
        for user_id in self.users:
            tally = self.model.tallies.get(user_id, model_queue.Tally())
            fields = {name: getattr(tally, name) for name in _ENDS if getattr(tally, name)}
            if user_id in choice.kept:
                fields["tag"] = choice.kept[user_id]
            if fields:
                found[f"user:{encode_user(user_id)}"] = fields
            if choice.weight(user_id) != 1:
                found[f"policy:{encode_user(user_id)}"] = choice.weight(user_id)
        return found

    def _expiring(self) -> set[str]:
        return {*self._expected_ended(), *(name for name in self._expected_users() if name.startswith("user:"))}


_ENDS = ("finished", "failed", "retried")


def agree_about_sleep(sleep: float | None, left_ms: float | None, is_short: bool) -> None:
    if not is_short:
        assert sleep == 0
    elif sleep is None or left_ms is None:
        assert sleep is left_ms, f"sleeps for {sleep}, something is due in {left_ms} ms"
    else:
        too_long = sleep * 1000 - max(0, left_ms)
        assert 0 <= too_long < 1, f"a worker sleeps until something is due and no longer, this one {too_long} ms"


def _without(answers: list[bool], is_open: list[bool]) -> list[bool | None]:
    return [None if skip else answer for answer, skip in zip(answers, is_open, strict=True)]


def agree(what: str, of_scripts: Any, of_model: Any) -> None:
    if isinstance(of_scripts, dict) and of_scripts != of_model:
        names = [name for name in of_scripts.keys() | of_model.keys() if of_scripts.get(name) != of_model.get(name)]
        of_scripts = {name: of_scripts.get(name) for name in names}
        of_model = {name: of_model.get(name) for name in names}
    assert of_scripts == of_model, f"{what}: {of_scripts!r} in Redis, {of_model!r} in the model"


def _name(task: ModelTask) -> str:
    return f"{encode_user(task.user_id)}:{task.task_id}"


def _told(of: Delivery) -> tuple[object, ...]:
    history = of.failures, of.lost, of.returned, of.returned_since_ms
    return of.user_id, of.id, of.lane.decode(), of.attempt, history


def _modelled(of: model_queue.Delivery) -> tuple[object, ...]:
    return of.task.user_id, of.task.task_id, of.task.lane, of.fence.attempt, of.history


def _plain(name: str, key: Key) -> Any:
    first = name.partition(":")[0]
    if first in ("body", "result"):
        return "here"
    if first == "task":
        return _task_fields(dict(key.pairs))
    if first == "errors":
        return len(key.content)
    if first == "policy":
        return float(dict(key.pairs)["weight"])
    if first in ("user", "state"):
        return {field: _number(value) for field, value in key.pairs}
    if first == "dead":
        return {member for member, _ in key.scores}
    return key.holdings if key.kind == "stream" else key.scores


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _task_fields(fields: dict[str, str]) -> dict[str, Any]:
    numbers = {name: int(fields.get(name, 0)) for name in _TASK_NUMBERS}
    return {"state": fields.get("state", "queued"), **numbers}


def _task_of_model(task: ModelTask) -> dict[str, Any]:
    numbers = task.attempt, task.failures, task.lost, task.returned, task.returned_since_ms, int(task.paid)
    return {"state": task.state.value, **dict(zip(_TASK_NUMBERS, numbers, strict=True))}
