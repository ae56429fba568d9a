"""`Claimer`: when to claim, how many tasks, and what to make of what comes."""

from __future__ import annotations

import logging
import math
import time

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
# Of the concurrency, for one claim. While tasks run, smaller claims keep Redis and the loop busy at the same time, and
# keep tasks from ending all at once; where they end as they come, a call costs more than that gains. By the bench.
CLAIM_SHARE, SHARE_WHILE_FEW_RUN = 4, 2


class Claimer:
    """Never claims more than there are free slots: a task that waited in a worker could not be given to another.

    Claims are numbered. One that was not answered is repeated under its number, whatever is wanted by then, so that
    what it was given comes here after all. One that arrives after its repetition was answered is given nothing.

    One that is answered with nothing rests in Redis: whoever puts in a task may answer it anew, by a message. That may
    be lost, so the next call is of the same number, and is told the same.

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
        self._pace = Pace(max(1, options.concurrency // SHARE_WHILE_FEW_RUN))
        self._most_while_many_run = max(1, options.concurrency // CLAIM_SHARE)
        self._look_at = 0.0
        self._number = time.time_ns() // 1000  # beyond those of a process before it under the same id
        self.is_unsure = False
        """Whether a claim may have been answered without that coming here."""
        self.rests = False
        """Whether the last claim may be answered anew."""
        self._is_asking = self._is_last = False
        self.errors = 0
        self._may_be_woken = False

    @property
    def has_last_call(self) -> bool:
        """The worker stops. It claims nothing once more, to know what it was given and put that back; and to be told of
        no more work while its last tasks end, as nobody else would hear of that.
        """
        may_be_woken = self._may_be_woken and self._settler.holds > 0
        return self._signals.stopping and (self.is_unsure or self.rests or may_be_woken)

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
        most = self._pace.most
        if len(self._runner) > self._most_while_many_run:
            most = min(most, self._most_while_many_run)
        return max(0, min(self._room(), most))

    def _room(self) -> int:
        if self._signals.stopping or self._settler.alone_left or len(self._settler) > self._most_unreported:
            return 0
        return self._options.concurrency - len(self._runner) if self._limits.are_told() else 0

    def begin(self, report: list[Outcome]) -> ClaimOptions:
        """A claim is made, together with the report."""
        self._signals.clear()  # what is told from now on, it may not have seen
        self._is_asking, self._is_last = True, self.has_last_call
        if self._pace.is_failing:
            self._steal_pause.silent()  # only now: it is to last from the end of the outage on
        holds = self._settler.holds - len(report)
        return {
            "groups": self._options.groups,
            "steal": self._steal_pause.may_steal(),
            "holds": holds,
            "suspects": self._settler.suspects,
            "max_deliveries": self._options.max_deliveries,
            "number": self._number,
            "repeats": self.is_unsure,
            "rests": holds == 0,  # a task that holds up the loop would keep what others put in
            "rested": self.rests,
        }

    def failed(self, error: FairqueError) -> None:
        logger.warning("cannot claim, trying again: %s", error)
        self.errors += 1
        self.is_unsure = not self._is_last  # once is enough
        self.rests = self._is_asking = False
        self._may_be_woken = self._may_be_woken and not self._signals.stopping
        self.look()
        self._pace.failed()

    def claimed(self, want: int, claim: Claim) -> None:
        """Start what came, and see when to look again."""
        self._steal_pause.heard()
        self._pace.went_well()
        self._signals.serving.set()
        is_short = self._may_be_woken = len(claim.deliveries) < want
        self._runner.take(claim.deliveries, at_once=is_short)
        self.rests = is_short and not claim.deliveries and not self.is_unsure
        self.is_unsure = self._is_asking = False
        if not self.rests:
            self._end_number()
        if not is_short:
            self._look_at = 0.0
            return
        if self._is_done(claim):
            self._signals.stop()
        self._look_at = time.monotonic() + self._nap(claim)

    def answered(self, number: int, claim: Claim) -> None:
        """The claim that rests was answered anew. While another call is under way, that is told the same."""
        if self.rests and not self._is_asking and number == self._number:
            self._steal_pause.heard()
            self.rests = self._may_be_woken = False
            self._runner.take(claim.deliveries, at_once=True)
            self._end_number()
            self.look()

    def _end_number(self) -> None:
        self._settler.answered = self._number  # only now that they are held: another thread looks
        self._number += 1

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
