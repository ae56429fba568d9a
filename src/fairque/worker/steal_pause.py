"""`StealPause`: a worker steals from nobody after an outage, until those who live had time to renew their leases.

So after a time in which its process stood still: others may have lost the same time.
"""

from __future__ import annotations

import time

from fairque.worker.loop_watch import LoopWatch
from fairque.worker.renewal import LOOK_SECONDS, longest_pause

__all__ = ["StealPause"]


class StealPause:
    """Kept by one worker.

    Args:
        lease_ms: How long a delivery is safe without renewal.
        timeout: Seconds that a request of the others may take.
        watch: Knows whether the process stood still.
    """

    def __init__(self, lease_ms: int, timeout: float, watch: LoopWatch) -> None:
        self._watch = watch
        self._has_looked = True
        self._outage = lease_ms / 2000
        self._seconds = timeout + longest_pause(lease_ms / 1000) + LOOK_SECONDS
        self._heard = time.monotonic()
        self._ends = 0.0

    def may_steal(self) -> bool:
        """Asked before each claim."""
        stood = self._watch.standstill
        # One after the other does not keep it from looking for ever.
        if stood.seconds > self._outage and stood.ended_at + self._seconds > self._ends and self._has_looked:
            self._ends = stood.ended_at + self._seconds
            self._has_looked = False
        self._has_looked = self._has_looked or not self.left
        return not self.left

    @property
    def left(self) -> float:
        """Seconds until it is over; 0 where there is none."""
        return max(0.0, self._ends - time.monotonic())

    def heard(self) -> None:
        """The server answered."""
        self._heard = time.monotonic()

    def silent(self) -> None:
        """It did not, or messages were missed: leases may be over when that lasts for half of one."""
        now = time.monotonic()
        if now - self._heard > self._outage:
            self._ends = now + self._seconds
