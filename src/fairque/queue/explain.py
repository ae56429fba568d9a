"""`Explanation`: why a task waits, what is ahead of it, and when it may start.

The estimate follows the fair choice itself (start-time fair queueing): a task starts when everybody whose tag is lower
than the one that its user will have by then has been served, at the speed at which the queue serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from fairque.metrics import Metrics, metrics_in
from fairque.models import EVERYONE, TaskState
from fairque.policy import Policy, merged, policy_in
from fairque.queue.ready_line import ReadyLine, line_in
from fairque.redis.keys import decode_user, encode_user

__all__ = ["Certainty", "Explanation", "Reason", "Waiting", "explain"]

ENOUGH_SERVICES = 20  # measured lately, before a speed is believed


class Reason(StrEnum):
    """Why a task does not run now."""

    TURN = "turn"  # others are ahead of it
    PAUSED = "paused"  # its user is
    USER_LIMIT = "user-limit"  # its user runs as many as it may
    RATE = "rate"  # its user started as many as it may
    BREAKER = "breaker"  # its user's tasks kept failing
    NAME_LIMIT = "name-limit"  # as many tasks of this name run, or were started, as may
    SCHEDULED = "scheduled"  # its time has not come
    DEFERRED = "deferred"  # it waits for other tasks
    NO_WORKER = "no-worker"  # no worker serves this user
    UNKNOWN_TASK = "unknown-task"  # no worker that serves it knows its function
    NOTHING = "nothing"  # nothing waits


class Certainty(StrEnum):
    """How much an estimate is worth."""

    GOOD = "good"  # the queue has been busy, and its speed is measured
    ROUGH = "rough"  # little was measured, or something else than its turn holds it back
    NONE = "none"  # there is no estimate


class Waiting(msgspec.Struct, frozen=True):
    """One thing that holds a task back. `until` is in seconds since the epoch, where that is known."""

    reason: Reason
    text: str
    until: float | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task is, and why. `str()` of it is a few lines for people.

    `ahead_own` and `ahead_others` are tasks that will be served before it; `starts_in` is in seconds. `share` is what
    its user gets of the queue while everybody who is ready now stays so, from 0 to 1.
    """

    user_id: str
    task_id: str | None
    state: TaskState | None
    waiting: tuple[Waiting, ...] = ()
    dependencies: tuple[str, ...] = ()
    backlog: int = 0
    running: int = 0
    weight: float = 1.0
    share: float | None = None
    ahead_own: int = 0
    ahead_others: int = 0
    starts_in: float | None = None
    certainty: Certainty = Certainty.NONE
    worker: str | None = None

    def __str__(self) -> str:
        what = f"task {self.task_id!r} of user {self.user_id!r}" if self.task_id else f"user {self.user_id!r}"
        lines = [f"{what}: {self.state or 'nothing waits'}" + (f" on {self.worker}" if self.worker else "")]
        lines += [f"- {held.text}" for held in self.waiting]
        if self.waiting and self.state:
            lines.append(f"ahead of it: {self.ahead_own} of its own user, {self.ahead_others} of others")
        if self.starts_in is not None:
            lines.append(f"starts in about {_span(self.starts_in)} ({self.certainty})")
        return "\n".join(lines)


class _Worker(NamedTuple):
    """`names` is None where it said nothing of the tasks that it knows."""

    slots: int
    running: int
    serves: frozenset[str] | None  # None: everyone
    names: frozenset[str] | None


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
        worker=facts.task.get("worker") if state is TaskState.STARTED else None,
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
        self.tag = float(found["tag"]) if found["tag"] else None
        self.of_user: Metrics = metrics_in(found["metrics"], self.now_ms)
        self.of_queue: Metrics = metrics_in(found["queue_metrics"], self.now_ms)
        self.workers = [_worker(_fields(flat)) for flat in found["workers"]]
        self.ready = line_in(found["ready"], found["ready_line"])
        self.siblings = line_in(found["siblings"], found["siblings_line"]) if "group" in found else ReadyLine((), 0, 0)

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
        )

    def about_waiting(self, state: TaskState) -> Explanation:
        holding = [*self._own_state(state), *self._gates(), *self._workers_missing()]
        ahead_own = self._ahead_own()
        ahead_others = self._ahead_others(ahead_own)
        starts_in, certainty = self._estimate(holding, ahead_own, ahead_others)
        if not holding:
            holding = [Waiting(Reason.TURN, "waits for its turn")]
        return Explanation(
            user_id=self.user_id,
            task_id=self.task_id,
            state=state,
            waiting=tuple(holding),
            dependencies=tuple(sorted(need.decode() for need in self._found["needs"] or ())),
            backlog=self.backlog,
            running=self.running,
            weight=self.weight,
            share=self._share(),
            ahead_own=ahead_own,
            ahead_others=ahead_others,
            starts_in=starts_in,
            certainty=certainty,
        )

    # What holds it back

    def _own_state(self, state: TaskState) -> Iterable[Waiting]:
        if state is TaskState.DEFERRED:
            needs = self._found["needs"] or ()
            shown = ", ".join(repr(need.decode()) for need in sorted(needs)[:5])
            yield Waiting(Reason.DEFERRED, f"waits for {len(needs)} tasks: {shown}{', …' if len(needs) > 5 else ''}")
        if state is TaskState.SCHEDULED and self._found["scheduled_at"]:
            at_ms = float(self._found["scheduled_at"])
            left = max(0.0, at_ms - self.now_ms) / 1000
            yield Waiting(Reason.SCHEDULED, f"may start in {_span(left)} at the earliest", at_ms / 1000)
        if "held" in self.task:
            yield self._name_limit()

    def _name_limit(self) -> Waiting:
        limit = _fields(self._found["limit"] or ())
        text = f"as many {self.name!r} run as may, {self._found['name_running']} of {limit.get('max', 'any number')}"
        interval_us, at_us = float(limit.get("rate_us", 0)), float(limit.get("tat", 0))
        at_ms = (at_us - (float(limit.get("burst", 1)) - 1) * interval_us) / 1000
        if interval_us and at_ms > self.now_ms:
            text = f"as many {self.name!r} were started as may"
            return Waiting(Reason.NAME_LIMIT, text, at_ms / 1000)
        return Waiting(Reason.NAME_LIMIT, text)

    def _gates(self) -> Iterable[Waiting]:
        """The same that the scripts look at, in the same order."""
        policy, now = self.policy, self.now_ms / 1000
        tat_us, open_until_ms = (float(mark or 0) for mark in self._found["marks"])
        if policy.paused is True:
            yield Waiting(Reason.PAUSED, "its user is paused")
        elif policy.paused and policy.paused.timestamp() > now:
            until = policy.paused.timestamp()
            yield Waiting(Reason.PAUSED, f"its user is paused for another {_span(until - now)}", until)
        most = policy.max_running
        if policy.breaker and open_until_ms:
            if open_until_ms > self.now_ms:
                left = open_until_ms / 1000 - now
                text = f"too many tasks of its user failed: nothing is started for {_span(left)}"
                yield Waiting(Reason.BREAKER, text, open_until_ms / 1000)
            else:
                most = 1
        if most and self.running >= most:
            yield Waiting(Reason.USER_LIMIT, f"{self.running} tasks of its user run, at most {most} may")
        if policy.rate:
            at_ms = (tat_us - (policy.rate.burst - 1) * policy.rate.interval_us) / 1000
            if at_ms > self.now_ms:
                text = f"its user may start the next task in {_span((at_ms - self.now_ms) / 1000)} ({policy.rate})"
                yield Waiting(Reason.RATE, text, at_ms / 1000)

    def _workers_missing(self) -> Iterable[Waiting]:
        serving = self._serving()
        if not serving:
            yield Waiting(Reason.NO_WORKER, "no worker runs that serves its user")
        elif self.name and not any(worker.names is None or self.name in worker.names for worker in serving):
            yield Waiting(Reason.UNKNOWN_TASK, f"no worker that serves its user knows a task {self.name!r}")

    def _serving(self) -> list[_Worker]:
        own = encode_user(self.user_id)
        return [worker for worker in self.workers if worker.serves is None or own in worker.serves]

    # What is ahead of it

    def _ahead_own(self) -> int:
        rank = int(self._found["rank"]) if self._found["rank"] else self.backlog
        return rank + (self._found["critical"] if self._found["lane"] == b"normal" and self._found["rank"] else 0)

    def _ahead_others(self, ahead_own: int) -> int:
        """Services of others up to the moment at which the tag of its user lets it start."""
        cost = self.of_user.recent_cost / self.of_user.recent_services if self.of_user.recent_services > 0.01 else 1.0
        own, everybody = encode_user(self.user_id), self._cost()
        line = self.siblings if "group" in self._found else self.ready
        tag = line.tag_of(own, self.tag) + ahead_own * cost / self.weight
        before = line.served_before(tag, own, everybody, is_first=not ahead_own)
        if "group" not in self._found:
            return before
        group = self._found["group"].decode()
        of_group = ahead_own + before
        tag = self.ready.tag_of(group) + of_group * everybody / self.ready.weight_of(group, 1.0)
        return before + self.ready.served_before(tag, group, everybody, is_first=not of_group)

    def _cost(self) -> float:
        measured = self.of_queue
        return measured.recent_cost / measured.recent_services if measured.recent_services > 0.01 else 1.0

    def _share(self) -> float | None:
        total = self.ready.weight
        if "group" in self._found:
            outer = self.ready.weight_of(self._found["group"].decode(), 0.0)
            inner = self.siblings.weight
            return outer / total * self.weight / inner if total and inner and self.tag is not None else None
        return self.weight / total if total and self.tag is not None else None

    # When it starts

    def _estimate(
        self, holding: Sequence[Waiting], ahead_own: int, ahead_others: int
    ) -> tuple[float | None, Certainty]:
        speed, certainty = self._speed()
        if speed is None or any(held.reason not in _PASSING for held in holding):
            return None, Certainty.NONE
        free = sum(worker.slots - worker.running for worker in self._serving())
        seconds = max(0, ahead_own + ahead_others + 1 - max(0, free)) / speed
        seconds = max(seconds, *self._by_own_limits(ahead_own), 0.0)
        until = max((held.until or 0.0 for held in holding), default=0.0)
        if holding or self.ready.unseen or self.siblings.unseen:
            certainty = Certainty.ROUGH
        return max(seconds, until - self.now_ms / 1000), certainty

    def _by_own_limits(self, ahead_own: int) -> list[float]:
        found = [0.0]
        if self.policy.rate:
            found.append((ahead_own - self.policy.rate.burst + 1) * self.policy.rate.interval_us / 1e6)
        if self.policy.max_running and self.of_user.recent_run_seconds:
            too_many = ahead_own + 1 + self.running - self.policy.max_running
            found.append(max(0, too_many) * self.of_user.recent_run_seconds / self.policy.max_running)
        return found

    def _speed(self) -> tuple[float | None, Certainty]:
        """Services per second: what the slots allow, or what was measured where that is less."""
        slots = sum(worker.slots for worker in self._serving())
        run = self.of_queue.recent_run_seconds
        measured = self.of_queue.recent_rate
        if not slots or not run:
            return None, Certainty.NONE
        possible = slots / run
        is_known = self.of_queue.recent_services >= ENOUGH_SERVICES
        speed = measured if is_known and 0.5 * possible < measured < possible else possible
        if is_known and possible > 1000 and measured > 100:  # short tasks: the way takes longer than the work
            speed = measured
        return speed, Certainty.GOOD if is_known else Certainty.ROUGH


_PASSING = (Reason.TURN, Reason.RATE, Reason.USER_LIMIT, Reason.SCHEDULED)


def _span(seconds: float) -> str:
    size, unit = next((each for each in ((86_400, "d"), (3600, "h"), (60, "m")) if seconds >= 2 * each[0]), (1, "s"))
    return f"{round(seconds / size, 1 if size > 1 else 3):.12g} {unit}"


def _fields(flat: Sequence[bytes]) -> dict[str, str]:
    texts = [text.decode("utf-8", "replace") for text in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _worker(fields: Mapping[str, str]) -> _Worker:
    users, names = fields.get("users", EVERYONE), fields.get("names", "")
    return _Worker(
        int(fields.get("concurrency", 0)),
        int(fields.get("running", 0)),
        None if users == EVERYONE else frozenset(users.split(" ")),
        frozenset(decode_user(name.encode()) for name in names.split(" ")) if names else None,
    )
