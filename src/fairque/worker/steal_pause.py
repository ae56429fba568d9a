"""`StealPause`: after an outage, a worker steals from nobody until those who live had time to renew their leases."""

from __future__ import annotations

import time

from fairque.worker.renewal import LOOK_SECONDS

__all__ = ["StealPause"]


class StealPause:
    """Kept by one worker.

    Args:
        lease_ms: How long a delivery is safe without renewal.
        timeout: Seconds that a request of the others may take.
    """

    def __init__(self, lease_ms: int, timeout: float) -> None:
        self._outage = lease_ms / 2000
        self._seconds = timeout + 2 * LOOK_SECONDS
        self._heard = time.monotonic()
        self._ends = 0.0

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
