"""How an `Explanation` comes about.

The estimate follows the fair choice itself (start-time fair queueing): a task starts when everybody whose tag is lower
than the one that its user will have by then has been served, at the speed at which the queue serves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fairque.limit import key_in
from fairque.metrics import Metrics, metrics_in
from fairque.models import EVERYONE, TaskState
from fairque.policy import Policy, merged, next_start_us, policy_in
from fairque.queue.explanation import Certainty, Explanation, Reason, Waiting, span
from fairque.redis.keys import decode_user, encode_user

__all__ = ["explain"]

ENOUGH_SERVICES = 20  # measured lately, before a speed is believed


class _Worker(NamedTuple):
    """`names` is None where it said nothing of the tasks that it knows."""

    slots: int
    running: int
    serves: frozenset[str] | None  # None: everyone
    names: frozenset[str] | None
    has_handler: bool


class _TaskLimit(NamedTuple):
    """As the script tells it; '' is none."""

    key: bytes
    most: int | bytes
    interval_us: int | bytes
    burst: int | bytes
    tat: bytes
    running: int
    let_in: int
    users: int


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
        self.lines = [line_in(*line) for line in found["lines"]]

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
            bytes=self.bytes,
            max_bytes=self.policy.max_bytes,
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
            yield Waiting(Reason.SCHEDULED, f"may start in {span(left)} at the earliest", at_ms / 1000)
        if "held" in self.task:
            yield self._limit()

    def _limit(self) -> Waiting:
        """The one under whose key it is held. Where the limit was lifted, it comes back with the next claims."""
        limits = [_TaskLimit(*row) for row in self._found.get("limits") or ()]
        limit = next((each for each in limits if each.key.decode() == self.task["held"]), None)
        if limit is None:
            return Waiting(Reason.LIMIT, f"its limit {key_in(self.task['held'])!r} was lifted just now")
        key = key_in(limit.key.decode())
        at_ms = next_start_us(float(limit.tat), float(limit.interval_us or 0), float(limit.burst or 1)) / 1000
        if limit.interval_us and at_ms > self.now_ms:
            return Waiting(Reason.LIMIT, f"as many {key!r} were started as may", at_ms / 1000)
        most = int(limit.most) if limit.most else "any number"
        text = f"as many {key!r} run as may, {limit.running + limit.let_in} of {most}"
        return Waiting(Reason.LIMIT, f"{text}; users that wait for it take turns, {limit.users} of them")

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
            yield Waiting(Reason.USER_LIMIT, f"{self.running} tasks of its user run, at most {most:g} may{of_slots}")
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
        cost, everybody = _mean_cost(self.of_user), _mean_cost(self.of_queue)
        services, tag, weight = ahead_own, self.tag, self.weight
        for inner, line in enumerate(self.lines):
            if inner:
                cost, tag, weight = everybody, None, line.weight_of(line.own, 1.0)
            until = line.tag_of(line.own, tag) + services * cost / weight
            services += line.served_before(until, line.own, everybody, is_first=not services)
        return services - ahead_own

    def _share(self) -> float | None:
        if self.tag is None or not all(line.weight for line in self.lines):
            return None
        weights = [self.weight, *(line.weight_of(line.own, 0.0) for line in self.lines[1:])]
        return math.prod(weight / line.weight for weight, line in zip(weights, self.lines, strict=True))

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
        if holding or any(line.unseen for line in self.lines):
            certainty = Certainty.ROUGH
        return max(seconds, until - self.now_ms / 1000), certainty

    def _by_own_limits(self, ahead_own: int) -> list[float]:
        found = [0.0]
        if self.policy.rate:
            found.append((ahead_own - self.policy.rate.burst + 1) * self.policy.rate.interval_us / 1e6)
        most, _ = self._most_running()
        if most < math.inf and self.of_user.recent_run_seconds:
            too_many = ahead_own + 1 + self.running - most
            found.append(max(0, too_many) * self.of_user.recent_run_seconds / most)
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


class ReadyMember(NamedTuple):
    """One of those who are ready: a user, or a group."""

    name: str
    tag: float
    weight: float
    backlog: int


class ReadyLine(NamedTuple):
    """Those who are ready: the first of them were looked at, of the others there is but the number.

    `own` is the one that is asked about, a user or a group that it is in; `before` are those in front of it.
    """

    own: str
    members: Sequence[ReadyMember]
    size: int
    before: int

    @property
    def unseen(self) -> int:
        return max(0, self.size - len(self.members))

    @property
    def weight(self) -> float:
        """Of all together; those who were not looked at are like the others."""
        seen = sum(member.weight for member in self.members)
        return seen * self.size / len(self.members) if self.members else 0.0

    def weight_of(self, name: str, default: float) -> float:
        return next((member.weight for member in self.members if member.name == name), default)

    def tag_of(self, name: str, default: float | None = None) -> float:
        """Where it is not ready, or was not looked at, the lowest there is."""
        lowest = min((member.tag for member in self.members), default=0.0) if default is None else default
        return next((member.tag for member in self.members if member.name == name), lowest)

    def served_before(self, tag: float, own: str, cost: float, *, is_first: bool) -> int:
        """Services of the others until `own` has the lowest tag. `is_first`: it waits for no service of its own.

        Tags of those who are ready lie about one service apart at most: of those who were not looked at, the ones
        in front are served once before it, and before a later service of its own all are, as often as the others.
        """
        others = [member for member in self.members if member.name != own]
        seen = sum(_services(member, tag, own, cost) for member in others)
        if is_first:
            return seen + max(0, self.before - len(others))
        unseen = max(0, self.size - 1 - len(others))
        return seen + round(unseen * max(1.0, seen / max(1, len(others))))


def _mean_cost(measured: Metrics) -> float:
    return measured.recent_cost / measured.recent_services if measured.recent_services > 0.01 else 1.0


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
        fields.get("handles") == "1",
    )


def line_in(own: bytes, rows: Sequence[Any], size: int, before: int) -> ReadyLine:
    return ReadyLine(own.decode(), [_member(*row) for row in rows], size, before)


def _member(name: bytes, tag: bytes, weight: bytes, backlog: int) -> ReadyMember:
    return ReadyMember(name.decode(), float(tag), float(weight), backlog)


def _services(member: ReadyMember, tag: float, own: str, cost: float) -> int:
    """Of a member, until `own` comes before it, which has this tag then. Of equal tags, names decide."""
    if (member.tag, member.name) > (tag, own):
        return 0
    steps = (tag - member.tag) * member.weight / cost
    return min(member.backlog, math.floor(steps) + 1 if member.name < own else math.ceil(steps))
