"""How an `Explanation` comes about.

The estimate follows the fair choice itself (start-time fair queueing): a task starts when everybody whose tag is lower
than the one that its user will have by then has been served, by what services of each cost and how long they run; or
later, where its user or a key of it may not start it by then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fairque.counted import counted
from fairque.everybody import EVERYONE
from fairque.limit import key_in
from fairque.metrics import Metrics, metrics_in
from fairque.models import TaskState
from fairque.policy import Policy, merged, next_start_us, policy_in
from fairque.queue.explanation import Certainty, Explanation, Reason, Waiting, span
from fairque.queue.ready_line import Services, line_elsewhere, line_in
from fairque.queue.speed import Speed, speed_of
from fairque.queue.task_info import states_in
from fairque.queue.task_limit import limit_in
from fairque.redis.keys import decode_user, encode_user
from fairque.tasks.names import hint

__all__ = ["explain"]

LEAST_SERVICES = 0.01


class _Worker(NamedTuple):
    """`names` is None where it said nothing of the tasks that it knows."""

    slots: int
    running: int
    waiting: int  # of those that run
    serves: frozenset[str] | None  # None: everyone
    names: frozenset[str] | None
    has_handler: bool


def explain(user_id: str, reply: Sequence[Any]) -> Explanation | None:
    """From what the script found; None: the task is not known."""
    facts = _Facts(user_id, {name.decode(): value for name, value in zip(reply[::2], reply[1::2], strict=True)})
    state = facts.state
    if facts.task_id and state is None:
        return None
    if state is None:
        return facts.about_user()
    if state in (TaskState.QUEUED, TaskState.DEFERRED, TaskState.SCHEDULED):
        return facts.about_waiting(state)
    return Explanation(
        user_id=user_id,
        task_id=facts.task_id,
        state=state,
        backlog=facts.backlog,
        running=facts.running,
        weight=facts.weight,
        bytes=facts.bytes,
        max_bytes=facts.policy.max_bytes,
        worker=facts.task.get("worker") if state is TaskState.STARTED else None,
        parent=facts.task.get("parent"),
    )


class _Facts:
    """What the script found, by name."""

    def __init__(self, user_id: str, found: Mapping[str, Any]) -> None:
        self._found = found
        self.user_id = user_id
        self.now_ms: int = found["now"]
        self.task_id: str = found["id"].decode()
        self.task = _fields(found.get("task") or ())
        self.name: str = (found.get("name") or b"").decode("utf-8", "replace")
        self.policy: Policy = merged(policy_in(found["policy"]), policy_in(found["default"]))
        self.weight = self.policy.weight or 1.0
        self.backlog: int = found["critical"] + found["normal"] + found["held"]
        self.running: int = found["running"]
        self.bytes = int(found["bytes"] or 0) if self.policy.max_bytes is not None else None
        self.tag = float(found["tag"]) if found["tag"] else None
        self.of_user: Metrics = metrics_in(found["metrics"], self.now_ms)
        self.of_queue: Metrics = metrics_in(found["queue_metrics"], self.now_ms)
        self.workers = [_worker(_fields(flat)) for flat in found["workers"]]
        self.limits = [limit_in(row) for row in found.get("limits") or ()]
        self.run_seconds = float(found["run"]) if found.get("run") else self.of_user.recent_run_seconds or None
        cost = float(found.get("cost") or 1)
        self.usual_service = _service_of(self.of_queue, Services(1, cost, self.run_seconds or 0.0))
        usual_own = Services(1, cost, self.run_seconds or self.usual_service.seconds)
        self.own_service = _service_of(self.of_user, usual_own)
        self.lines = [line_in(self.usual_service, *line) for line in found["lines"]]
        self.elsewhere = [
            line_elsewhere(
                self.usual_service, self.lines[-1].own, float(offset or 0) - float(found["offset"] or 0), line
            )
            for offset, line in found.get("elsewhere", ())
        ]
        self.needs = states_in(sorted((need.decode(), state.decode()) for need, state in found.get("needs") or ()))
        self.blockers = tuple(sorted(blocker.decode() for blocker in found.get("blockers") or ()))

    @property
    def state(self) -> TaskState | None:
        if not self.task_id:
            return None
        letter = self._found["ended"][9:10]
        if letter:
            return {b"F": TaskState.FINISHED, b"X": TaskState.FAILED}.get(letter, TaskState.CANCELED)
        return TaskState(self.task.get("state", "queued")) if self._found["has_body"] else None

    def about_user(self) -> Explanation:
        nothing = Waiting(Reason.NOTHING, "nothing of this user waits for its turn")
        return Explanation(
            user_id=self.user_id,
            task_id=None,
            state=None,
            waiting=(nothing, *self._gates()),
            backlog=self.backlog,
            running=self.running,
            weight=self.weight,
            share=self._share(),
            bytes=self.bytes,
            max_bytes=self.policy.max_bytes,
        )

    def about_waiting(self, state: TaskState) -> Explanation:
        holding = [*self._own_state(state), *self._gates(), *self._workers_missing()]
        ahead_own = self._ahead_own()
        before = self._served_before(ahead_own)
        starts_in, certainty = self._estimate(holding, ahead_own, before)
        if not holding:
            holding = [Waiting(Reason.TURN, "waits for its turn")]
        return Explanation(
            user_id=self.user_id,
            task_id=self.task_id,
            state=state,
            waiting=tuple(holding),
            dependencies=tuple(self.needs),
            dependency_states=self.needs,
            blocked_by=self.blockers,
            backlog=self.backlog,
            running=self.running,
            weight=self.weight,
            share=self._share(),
            bytes=self.bytes,
            max_bytes=self.policy.max_bytes,
            ahead_own=ahead_own,
            ahead_others=round(before.number) - ahead_own,
            starts_in=starts_in,
            certainty=certainty,
            expires_in=self._expires_in(),
            parent=self.task.get("parent"),
        )

    def _expires_in(self) -> float | None:
        if "expires" not in self.task or int(self.task.get("attempt", 0)) > 0:
            return None
        return max(0.0, (int(self.task["expires"]) - self.now_ms) / 1000)

    # What holds it back

    def _own_state(self, state: TaskState) -> Iterable[Waiting]:
        if state is TaskState.DEFERRED:
            yield Waiting(Reason.DEFERRED, self._dependencies())
            if self.blockers:
                letters = ", ".join(map(repr, self.blockers))
                yield Waiting(Reason.BLOCKED, f"goes on when what failed is requeued and finishes: {letters}")
        if state is TaskState.SCHEDULED and self._found["scheduled_at"]:
            at_ms = float(self._found["scheduled_at"])
            left = max(0.0, at_ms - self.now_ms) / 1000
            yield Waiting(Reason.SCHEDULED, f"may start in {span(left)} at the earliest", at_ms / 1000)
        yield from self._limits_that_hold()

    def _limits_that_hold(self) -> Iterable[Waiting]:
        """Where it is held for a limit that was lifted, it comes back with the next claims."""
        held = self.task.get("held")
        if held is not None and not any(limit.name == held for limit in self.limits):
            yield Waiting(Reason.LIMIT, f"its limit {key_in(held)!r} was lifted just now")
        for limit in self.limits:
            if limit.name == held or (held is None and self._is_in_lane and limit.holds_back(self.now_ms)):
                yield limit.waiting(self.now_ms)

    def _dependencies(self) -> str:
        """Those first that will not end by themselves."""
        by_state = sorted(self.needs.items(), key=lambda need: need[1] is not None and not need[1].ended)
        shown = [f"{need!r} ({state or 'not known'})" for need, state in by_state[:5]]
        number = self._found["needed"]
        return f"waits for {counted(number, 'task')}: {', '.join(shown)}{', …' if number > len(shown) else ''}"

    def _gates(self) -> Iterable[Waiting]:
        """The same that the scripts look at, in the same order."""
        policy, now = self.policy, self.now_ms / 1000
        tat_us, tat_of_us, open_until_ms = (float(mark or 0) for mark in self._found["marks"])
        if policy.paused is True:
            yield Waiting(Reason.PAUSED, "its user is paused")
        elif policy.paused and policy.paused.timestamp() > now:
            until = policy.paused.timestamp()
            yield Waiting(Reason.PAUSED, f"its user is paused for another {span(until - now)}", until)
        most, of_slots = self._most_running()
        if policy.breaker and open_until_ms:
            if open_until_ms > self.now_ms:
                left = open_until_ms / 1000 - now
                text = f"too many tasks of its user failed: nothing is started for {span(left)}"
                yield Waiting(Reason.BREAKER, text, open_until_ms / 1000)
            else:
                most, of_slots = 1, ""
        if self.running >= most:
            run = counted(self.running, "task of its user runs", "tasks of its user run")
            yield Waiting(Reason.USER_LIMIT, f"{run}, at most {most:g} may{of_slots}")
        if policy.rate and policy.rate.interval_us == tat_of_us:
            at_ms = next_start_us(tat_us, policy.rate.interval_us, policy.rate.burst) / 1000
            if at_ms > self.now_ms:
                text = f"its user may start the next task in {span((at_ms - self.now_ms) / 1000)} ({policy.rate})"
                yield Waiting(Reason.RATE, text, at_ms / 1000)

    def _most_running(self) -> tuple[float, str]:
        """As the scripts count it. Second: where that is a part of the slots, of which."""
        policy, slots = self.policy, sum(worker.slots for worker in self.workers)
        most: float = math.inf if policy.max_running is None else policy.max_running
        share = math.inf if policy.max_share is None else max(1, math.floor(policy.max_share * slots + 1e-9))
        return (share, f" ({policy.max_share:g} of {slots} slots)") if share < most else (most, "")

    def _workers_missing(self) -> Iterable[Waiting]:
        serving = self._serving()
        if not serving:
            yield Waiting(Reason.NO_WORKER, "no worker runs that serves its user")
        elif self._found.get("is_payload"):
            if not any(worker.has_handler for worker in serving):
                yield Waiting(Reason.UNKNOWN_TASK, "no worker that serves its user has a handler for payloads")
        elif self.name and not any(worker.names is None or self.name in worker.names for worker in serving):
            known = frozenset[str]().union(*(worker.names for worker in serving if worker.names is not None))
            text = f"no worker that serves its user knows a task {self.name!r}{hint(self.name, known)}"
            yield Waiting(Reason.UNKNOWN_TASK, text)
        slots = sum(worker.slots for worker in serving)
        if serving and all(worker.waiting >= worker.slots > 0 for worker in serving):
            text = f"every slot of its workers ({slots}) runs a task that waits for the result of another"
            yield Waiting(Reason.SLOTS, f"{text}: it may be this one")

    def _serving(self) -> list[_Worker]:
        own = encode_user(self.user_id)
        return [worker for worker in self.workers if worker.serves is None or own in worker.serves]

    # What is ahead of it

    @property
    def _is_in_lane(self) -> bool:
        return bool(self._found["rank"]) and self._found["lane"] != b"held"

    def _ahead_own(self) -> int:
        rank = int(self._found["rank"]) if self._found["rank"] else self.backlog
        return rank + (self._found["critical"] if self._found["lane"] == b"normal" and self._found["rank"] else 0)

    def _served_before(self, ahead_own: int) -> Services:
        """All services up to the moment at which the tag of its user lets it start."""
        before, tag, weight, until = self.own_service.times(ahead_own), self.tag, self.weight, 0.0
        is_first = not before.number
        for inner, line in enumerate(self.lines):
            is_first = not before.number
            if inner:
                tag, weight = None, line.weight_of(line.own, 1.0)
            until = line.tag_of(line.own, tag) + before.cost / weight
            before = before.plus(line.served_before(until, is_first=is_first))
        for line in self.elsewhere:  # their tags mean the same
            before = before.plus(line.served_before(until, is_first=is_first))
        return before

    def _share(self) -> float | None:
        if self.tag is None or not all(line.weight for line in self.lines):
            return None
        weights = [self.weight, *(line.weight_of(line.own, 0.0) for line in self.lines[1:])]
        of_all = [line.weight for line in self.lines]
        of_all[-1] += sum(line.weight for line in self.elsewhere)
        return math.prod(weight / total for weight, total in zip(weights, of_all, strict=True))

    # When it starts

    def _estimate(self, holding: Sequence[Waiting], ahead_own: int, before: Services) -> tuple[float | None, Certainty]:
        speed = self._speed()
        by_limits = [limit.seconds(self.now_ms, self.run_seconds, self._more_ahead(ahead_own)) for limit in self.limits]
        if speed is None or any(held.reason not in _PASSING for held in holding) or None in by_limits:
            return None, Certainty.NONE
        seconds = max(self._by_turns(speed, before), *self._by_own_limits(ahead_own), *filter(None, by_limits), 0.0)
        until = max((held.until or 0.0 for held in holding), default=0.0)
        is_rough = holding or any(line.unseen for line in (*self.lines, *self.elsewhere))
        return max(seconds, until - self.now_ms / 1000), Certainty.ROUGH if is_rough else speed.certainty

    def _by_turns(self, speed: Speed, before: Services) -> float:
        """The slots that are free take the first ones at once; the others wait for the end of as many services."""
        ends = max(0.0, before.number + 1 - self._free_slots())
        work = before.seconds + self.usual_service.seconds
        return speed.seconds(work * ends / (before.number + 1))

    def _more_ahead(self, ahead_own: int) -> int:
        """Tasks in its lane come to a limit before it, and are thought to have the same."""
        return ahead_own if self._is_in_lane else 0

    def _free_slots(self) -> float:
        """How many tasks run is known at once of the whole queue, and of a worker with its next renewal."""
        serving, slots = self._serving(), sum(worker.slots for worker in self.workers)
        if len(serving) == len(self.workers):
            return max(0, slots - int(self._found["started"] or 0))
        return max(0, sum(worker.slots - worker.running for worker in serving))

    def _by_own_limits(self, ahead_own: int) -> list[float]:
        found = [0.0]
        if (rate := self.policy.rate) is not None:
            tat_us, tat_of_us, _ = (float(mark or 0) for mark in self._found["marks"])
            tat_us = tat_us if tat_of_us == rate.interval_us else 0.0
            first_us = next_start_us(max(tat_us, self.now_ms * 1000), rate.interval_us, rate.burst)
            found.append((first_us + ahead_own * rate.interval_us) / 1e6 - self.now_ms / 1000)
        most, _ = self._most_running()
        if most < math.inf and self.own_service.seconds:
            too_many = ahead_own + 1 + self.running - most
            found.append(max(0, too_many) * self.own_service.seconds / most)
        return found

    def _speed(self) -> Speed | None:
        """In the slots that serve its user, without those that others keep to themselves: at a cap, or a limit."""
        all_slots, slots = sum(worker.slots for worker in self.workers), sum(each.slots for each in self._serving())
        taken = max(0, min(int(self._found["taken"]), slots - 1))
        return speed_of(self.of_queue, all_slots, slots - taken, self.usual_service.seconds)


_PASSING = (Reason.TURN, Reason.RATE, Reason.USER_LIMIT, Reason.LIMIT, Reason.SCHEDULED)


def _service_of(measured: Metrics, usual: Services) -> Services:
    """One of those that were measured lately."""
    if measured.recent_services <= LEAST_SERVICES:
        return usual
    return Services(1, measured.recent_cost / measured.recent_services, measured.recent_run_seconds)


def _fields(flat: Sequence[bytes]) -> dict[str, str]:
    texts = [text.decode("utf-8", "replace") for text in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _worker(fields: Mapping[str, str]) -> _Worker:
    users, names = fields.get("users", EVERYONE), fields.get("names", "")
    return _Worker(
        int(fields.get("concurrency", 0)),
        int(fields.get("running", 0)),
        int(fields.get("waiting", 0)),
        None if users == EVERYONE else frozenset(users.split(" ")),
        frozenset(decode_user(name.encode()) for name in names.split(" ")) if names else None,
        fields.get("handles") == "1",
    )
