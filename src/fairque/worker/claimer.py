"""`Claimer`: when to claim, how many tasks, and what to make of what comes."""

from __future__ import annotations

import logging
import math
import time
from typing import NamedTuple

from fairque.errors import FairqueError
from fairque.redis.delivery import Claim, Outcome
from fairque.redis.store import ClaimOptions
from fairque.worker.declared_limits import LimitDeclarations
from fairque.worker.options import WorkerOptions
from fairque.worker.pace import Pace
from fairque.worker.runner import Runner
from fairque.worker.settler import Settler
from fairque.worker.signals import Signals
from fairque.worker.steal_pause import StealPause

__all__ = ["Claimer"]

logger = logging.getLogger("fairque.worker")
# One claim is for this share of the slots that are free, or of all slots if that is more: smaller claims keep Redis and
# the loop busy at the same time, and keep tasks from ending all at once; where most are free, calls cost too much.
SHARE_OF_FREE, SHARE_OF_ALL = 2, 8


class _Asked(NamedTuple):
    """A claim that is under way. `alone`: no other one was, when it was made."""

    want: int
    steals: bool
    is_repeated: bool
    alone: bool


class Claimer:
    """Never claims more than there are free slots: a task that waited in a worker could not be given to another.

    Claims are numbered. One that was not answered is repeated under its number, whatever is wanted by then, so that
    what it was given comes here after all. One that arrives after its repetition was answered is given nothing.

    A claim may be made beside another one that is under way. Whatever that may bring counts as held already, and as a
    suspect; and only one that had no other beside it tells that there is nothing to do.

    Args:
        options: Of the worker.
        runner: Runs what is claimed.
        settler: While it has very much that is unreported, nothing is claimed.
        steal_pause: When nothing is to be stolen from others.
        limits: Nothing is claimed while some that the code declares are not told.
        signals: Of the worker.
    """

    def __init__(
        self,
        options: WorkerOptions,
        runner: Runner,
        settler: Settler,
        steal_pause: StealPause,
        limits: LimitDeclarations,
        signals: Signals,
    ) -> None:
        self._options = options
        self._most_unreported = options.concurrency * 10 + 1000
        self._runner = runner
        self._settler = settler
        self._steal_pause = steal_pause
        self._limits = limits
        self._signals = signals
        self._pace = Pace(max(1, options.concurrency // SHARE_OF_FREE))
        self._least = max(1, options.concurrency // SHARE_OF_ALL)
        self._look_at = 0.0
        self._number = time.time_ns() // 1000  # beyond those of a process before it under the same id
        self._under_way: dict[int, _Asked] = {}
        self._asked_for = 0  # by all of those
        self._lost: int | None = None  # the first claim that may have been answered without that coming here
        self.errors = 0
        self.came_short = False
        """Whether the last claim was answered with some tasks, and fewer than it wanted."""
        self._may_be_woken = False

    @property
    def is_unsure(self) -> bool:
        """Whether a claim may have been answered without that coming here."""
        return self._lost is not None

    @property
    def has_last_call(self) -> bool:
        """The worker stops. It claims nothing once more, to know what it was given and put that back; and to be told of
        no more work while its last tasks end, as nobody else would hear of that.
        """
        return self._signals.stopping and (self.is_unsure or (self._may_be_woken and self._settler.holds > 0))

    @property
    def is_held_up(self) -> bool:
        """Whether it would not claim, or would not be answered, with all slots free."""
        is_behind = len(self._settler) > self._most_unreported or not self._limits.are_told()
        return self._pace.is_failing or is_behind

    @property
    def rest(self) -> float:
        """Seconds until it is time to claim, as far as is known."""
        if self.has_last_call:
            return 0.0
        if alone := self._settler.alone_left:
            return alone
        if self._room() <= 0:
            return math.inf
        return max(self._pace.left, self._look_at - time.monotonic())

    def look(self) -> None:
        """There may be something."""
        self._look_at = 0.0

    def want(self) -> int:
        """How many tasks a call that is made now is to ask for."""
        if self._pace.left:
            return 0
        room = self._room()
        return max(0, min(room, self._pace.most, max(self._least, room // SHARE_OF_FREE)))

    def _room(self) -> int:
        if self._signals.stopping or self._settler.alone_left or len(self._settler) > self._most_unreported:
            return 0
        if not self._limits.are_told():
            return 0
        return self._options.concurrency - len(self._runner) - self._asked_for

    @property
    def may_go_beside(self) -> bool:
        """Whether a claim that reports may be made beside what is under way. What it reports was held when the other
        one was made, which was told so: it brings nothing that has to run alone.
        """
        is_well = not (self.is_unsure or self._pace.is_failing)
        return is_well and len(self._under_way) == 1 and self._room() > 0

    def begin(self, want: int, report: list[Outcome]) -> ClaimOptions:
        """A claim is made, together with the report."""
        self._signals.clear()  # what is told from now on, it may not have seen
        if self._pace.is_failing:
            self._steal_pause.silent()  # only now: it is to last from the end of the outage on
        repeats = self.is_unsure
        if not repeats:
            self._number += 1
        holds = self._settler.holds - len(report) + self._asked_for
        steals, since = self._steal_pause.may_steal(), self._lost or 0
        for number, other in self._under_way.items():
            steals, since = steals and not other.steals, since or number
        self._under_way[self._number] = _Asked(want, steals, repeats, not since or repeats)
        self._asked_for += want
        return {
            "groups": self._options.groups,
            "steal": steals,
            "holds": holds,
            "suspects": self._settler.suspects,
            "max_deliveries": self._options.max_deliveries,
            "number": self._number,
            "repeats": repeats,
            "since": since,
        }

    def failed(self, number: int, error: FairqueError) -> None:
        logger.warning("cannot claim, trying again: %s", error)
        self._has_ended(number)
        self.errors += 1
        is_enough = self.has_last_call  # it was the last one
        self._lost = None if is_enough else min(number, self._lost or number)
        self._may_be_woken = self._may_be_woken and not self._signals.stopping
        self.look()
        self._pace.failed()

    def claimed(self, number: int, claim: Claim) -> None:
        """Start what came, and see when to look again."""
        asked = self._under_way[number]
        self._steal_pause.heard()
        self._pace.went_well()
        self._signals.serving.set()
        is_short = self._may_be_woken = len(claim.deliveries) < asked.want
        came = claim.deliveries
        if asked.is_repeated:
            came = [each for each in came if not self._settler.has(each)]
            self._lost = None
        self._runner.take(came, at_once=is_short)
        self.came_short = is_short and bool(came)
        self._has_ended(number)
        self._settler.answered = self._answered  # only now that they are held: another thread looks
        if not is_short or not asked.alone or self._under_way:
            self._look_at = 0.0
            return
        if self._is_done(claim):
            self._signals.stop()
        self._look_at = time.monotonic() + self._nap(claim)

    def _has_ended(self, number: int) -> None:
        self._asked_for -= self._under_way.pop(number).want

    @property
    def _answered(self) -> int:
        """The number of the last claim of which, and of all before it, is known what came."""
        if self._lost is not None:
            return self._lost - 1
        return min(self._under_way) - 1 if self._under_way else self._number

    def _is_done(self, claim: Claim) -> bool:
        """Nothing came, nothing is due, nothing runs, and no message came since: reports may have made more work."""
        is_idle = not (claim.deliveries or self._settler.holds or self._signals.is_woken)
        return self._signals.until_idle and is_idle and claim.sleep != 0

    def _nap(self, claim: Claim) -> float:
        """Seconds to sleep unless a message comes."""
        longest = self._options.poll_interval
        sleep = longest if claim.sleep is None else min(claim.sleep, longest)
        pause = self._steal_pause.left
        return min(sleep, pause) if pause else sleep
