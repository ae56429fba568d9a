"""Policies in the model: when a user may be served, and where it stands meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from fairque.everybody import EVERYONE
from fairque.fairness.choice import FairChoice, SortedSet, encoded
from fairque.fairness.freedom import Freedom
from fairque.policy import Policy, Rate, merged, next_start_us, tat_after_start_us

__all__ = ["Admission", "Marks", "Policies"]

NEVER = math.inf  # until something happens: a task ends, the policy changes


@dataclass(slots=True, eq=False)
class Marks:
    """What limits over time are counted with."""

    tat_us: int = 0  # when the next start would come if all of them were evenly spread
    tat_of_us: int = 0  # the interval it was counted with: for another rate it says nothing
    open_until_ms: int = 0  # of the breaker; 0: closed
    failures: int = 0
    failing_since_ms: int = 0
    trips: int = 0

    def tat_for(self, rate: Rate) -> int:
        return self.tat_us if self.tat_of_us == rate.interval_us else 0


class Policies:
    """What governs users.

    Attributes:
        own: Of users, by name.
        default: Where a user's own says nothing.
        marks: Of users that a rate or a breaker was counted for.
        slots: Of all workers that live, 0 until one has told.
    """

    def __init__(self) -> None:
        self.own: dict[str, Policy] = {}
        self.default = Policy()
        self.marks: dict[str, Marks] = {}
        self.slots = 0

    def of(self, user_id: str) -> Policy:
        own = self.own.get(user_id)
        return self.default if own is None else merged(own, self.default)

    def change(self, user_id: str, **fields: Any) -> None:
        """None forgets a field."""
        if user_id == EVERYONE:
            self.default = replace(self.default, **fields)
            return
        changed = replace(self.own.pop(user_id, Policy()), **fields)
        if changed != Policy():
            self.own[user_id] = changed

    def gate(self, now_us: int, user_id: str, running: int) -> float | None:
        """The ms at which the user may go on by itself, `NEVER` when it cannot; None: it may be served now."""
        policy = self.of(user_id)
        now_ms, marks = now_us // 1000, self.marks.get(user_id, _NOTHING)
        if (paused := _paused_until(self.own.get(user_id, _NO_POLICY))) > now_ms:
            return paused
        most, _ = self._most_running(policy)
        if policy.breaker is not None and marks.open_until_ms:
            if marks.open_until_ms > now_ms:
                return marks.open_until_ms
            most = 1  # a probe
        if running >= most:
            return NEVER
        return self._rate_gate(now_us, policy, marks)

    def _most_running(self, policy: Policy) -> tuple[float, bool]:
        """At once, and whether that changes as workers come and go."""
        most = math.inf if policy.max_running is None else policy.max_running
        if policy.max_share is None:
            return most, False
        share = max(1, math.floor(policy.max_share * self.slots + 1e-9))
        return min(most, share), share < most

    def is_held_by_share(self, user_id: str, running: int) -> bool:
        """Whether it waits for slots to be added, of those that wait for an event."""
        policy, marks = self.of(user_id), self.marks.get(user_id, _NOTHING)
        most, is_by_share = self._most_running(policy)
        if policy.breaker is not None and marks.open_until_ms:
            most = 1
        return is_by_share and self.own.get(user_id, _NO_POLICY).paused is not True and running >= most

    def all_paused_until(self) -> float:
        """A flag: nobody is taken out of the line for it."""
        return _paused_until(self.default)

    def is_own_cap(self, user_id: str) -> bool:
        """Whether it has to wait for an event whatever the defaults are."""
        own = self.own.get(user_id, _NO_POLICY)
        return own.paused is True or (own.max_running is not None and self.of(user_id).breaker is None)

    def _rate_gate(self, now_us: int, policy: Policy, marks: Marks) -> float | None:
        if policy.rate is None:
            return None
        at_us = next_start_us(marks.tat_for(policy.rate), policy.rate.interval_us, policy.rate.burst)
        return math.ceil(at_us / 1000) if at_us > now_us else None

    def note_start(self, now_us: int, user_id: str) -> None:
        if (rate := self.of(user_id).rate) is not None:
            marks = self.marks.setdefault(user_id, Marks())
            marks.tat_us = tat_after_start_us(now_us, marks.tat_for(rate), rate.interval_us)
            marks.tat_of_us = rate.interval_us

    def note_end(self, now_us: int, user_id: str, *, is_success: bool) -> bool:
        """For the breaker. True: it opens."""
        breaker, now_ms = self.of(user_id).breaker, now_us // 1000
        if breaker is None:
            return False
        marks = self.marks.setdefault(user_id, Marks())
        was_open = marks.open_until_ms > 0
        if marks.open_until_ms > now_ms:
            return False  # it was started before
        if is_success:
            if was_open:
                marks.open_until_ms = marks.failures = marks.failing_since_ms = 0
            return False
        if now_ms - marks.failing_since_ms > math.ceil(breaker.window * 1000):
            marks.failures, marks.failing_since_ms = 0, now_ms
        marks.failures += 1
        if not was_open and marks.failures < breaker.failures:
            return False
        marks.open_until_ms, marks.failures = now_ms + math.ceil(breaker.cooldown * 1000), 0
        marks.trips += 1
        return True

    def ends_matter(self, user_id: str) -> bool:
        """Whether the end of a task may let the user in, or keep it out."""
        policy = self.of(user_id)
        return any(
            limit is not None for limit in (policy.max_running, policy.max_share, policy.min_running, policy.breaker)
        )


_NOTHING = Marks()
_NO_POLICY = Policy()


def _paused_until(policy: Policy) -> float:
    if isinstance(policy.paused, datetime):
        return math.ceil(policy.paused.timestamp() * 1000)
    return NEVER if policy.paused else 0


class Admission:
    """Where a user with a backlog stands: it is ready, or parked until a moment, or neither until something happens.

    Args:
        choice: In which users are ready.
        policies: What governs them.
        running: How many tasks of a user are out.
        head_cost: What the first task of a user costs, None when it has none.

    Attributes:
        parked: Users → the ms at which they go on, or `NEVER`; everybody → the end of the pause of all.
        swept: Those of `parked` that are looked at anew, because the default changed.
        seen: Users → the ms at which they last had something to wait for.
        is_swept: The next claim does so.
        is_held_by_share: Somebody was parked until slots are added.
        is_reweighted: The default weight is another one than that which some were counted with.
        on_held_back: Called at a time with a user that may not be served any more.
        on_reviewed: Called with a user that may have become able to be served.
    """

    def __init__(
        self,
        choice: FairChoice,
        policies: Policies,
        running: Callable[[str], int],
        head_cost: Callable[[str], float | None],
    ) -> None:
        self.choice = choice
        self.policies = policies
        self.parked: SortedSet[str] = SortedSet(_encoded_or_all)
        self.swept: SortedSet[str] = SortedSet(_encoded_or_all)
        self.seen: dict[str, int] = {}
        self.is_swept = self._is_again = self.is_reweighted = self.is_held_by_share = False
        self.on_held_back: Callable[[int, str], None] = lambda *_: None
        self.on_reviewed: Callable[[str], None] = lambda *_: None
        self._running = running
        self._head_cost = head_cost

    def gate(self, now_us: int, user_id: str) -> float | None:
        return self.policies.gate(now_us, user_id, self._running(user_id))

    def admit(self, now_us: int, user_id: str, cost: float) -> None:
        """The user has servable work, of which the first task costs this much."""
        if self.choice.is_ready(user_id):
            return
        self.seen[user_id] = now_us // 1000
        at = self.gate(now_us, user_id)
        if at is None:
            self.choice.join(user_id, cost)
            self.favour(user_id)
        else:
            self._park(user_id, at)

    def favour(self, user_id: str) -> None:
        """Before all others, while it has less than what is reserved for it."""
        least = self.policies.of(user_id).min_running
        if least is not None and self.policies.slots:
            least = min(least, self.policies.slots - 1)  # one slot is never reserved
        self.choice.reserve(user_id, least is not None and self._running(user_id) < least)

    def hold_back(self, now_us: int, user_id: str, at_ms: float) -> None:
        is_capped = at_ms == NEVER and self.policies.own.get(user_id, _NO_POLICY).paused is not True
        self.choice.leave(user_id, is_capped=is_capped)
        self._park(user_id, at_ms)
        self.on_held_back(now_us, user_id)

    def _park(self, user_id: str, at_ms: float) -> None:
        is_by_share = at_ms == NEVER and self.policies.is_held_by_share(user_id, self._running(user_id))
        self.is_held_by_share = self.is_held_by_share or is_by_share
        if at_ms < NEVER or is_by_share or not self.policies.is_own_cap(user_id):
            self.parked.put(user_id, at_ms)

    def retire(self, user_id: str) -> None:
        """Its backlog is gone, and so is what its cap kept it from."""
        self.parked.drop(user_id)
        self.choice.uncap(user_id)
        if self.choice.is_ready(user_id):
            self.choice.leave(user_id)

    def review(self, now_us: int, user_id: str) -> None:
        """Puts the user where it belongs after something changed."""
        self.on_reviewed(user_id)
        self.parked.drop(user_id)
        cost = self._head_cost(user_id)
        if cost is None:
            self.choice.uncap(user_id)
            return
        if not self.choice.is_ready(user_id):
            self.admit(now_us, user_id, cost)
        elif (at := self.gate(now_us, user_id)) is None:
            self.favour(user_id)
        else:
            self.hold_back(now_us, user_id, at)

    def freed(self, now_us: int, user_id: str, *, is_opened: bool) -> None:
        """A task ended. One that is ready stays so, whatever the default has become, unless its breaker opened."""
        if self.choice.is_ready(user_id) and not is_opened:
            self.favour(user_id)
        else:
            self.review(now_us, user_id)

    def unpark(self, now_us: int, freedom: Freedom) -> None:
        """Those whose time has come, by the order of their times."""
        users = self.parked.up_to(now_us // 1000, len(self.parked))
        for user_id in users[: freedom.unparks(users)]:
            if user_id == EVERYONE:
                self.parked.drop(user_id)
            else:
                self.review(now_us, user_id)

    def change_default(self, now_us: int, *, is_reweighted: bool) -> None:
        """Who is ready is looked at when its turn comes, the others by the claims that follow."""
        self._begin_sweep()
        self.is_reweighted = self.is_reweighted or is_reweighted
        self.parked.drop(EVERYONE)
        if now_us // 1000 < self.policies.all_paused_until() < NEVER:
            self.parked.put(EVERYONE, self.policies.all_paused_until())

    def set_slots(self, slots: int) -> None:
        """Who waits for more is looked at by the claims that follow."""
        if slots > self.policies.slots and self.is_held_by_share:
            self.is_held_by_share = False
            self._begin_sweep()
        self.policies.slots = slots

    def _begin_sweep(self) -> None:
        if self.swept:
            self._is_again = True
            return
        self.is_swept, self._is_again = True, False
        self.parked, self.swept = self.swept, self.parked

    def sweep(self, now_us: int, freedom: Freedom) -> None:
        """Those who were held back under another default, and the weights of all who are ready."""
        if not self.is_swept:
            return
        users = list(self.swept)
        for user_id in users[: freedom.sweeps(users)]:
            until = self.swept.scores[user_id]
            self.swept.drop(user_id)
            if user_id != EVERYONE:
                self.review(now_us, user_id)
            elif until == self.policies.all_paused_until():
                self.parked.put(EVERYONE, until)
        for user_id in self.choice.users_ready() if self.is_reweighted else ():
            self.choice.weigh(user_id)
            self.favour(user_id)
        self.is_reweighted = False
        if not self.swept and self._is_again:
            self._begin_sweep()
        elif not self.swept:
            self.is_swept = False


def _encoded_or_all(user_id: str) -> str:
    return user_id if user_id == EVERYONE else encoded(user_id)
