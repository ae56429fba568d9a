"""How long something takes on a machine that others use, too."""

from __future__ import annotations

import time
from pathlib import Path

_SCHEDULE = Path("/proc/thread-self/schedstat")
"""Nanoseconds in which this thread ran, and in which it was ready to run and had to wait for a processor."""


class Stopwatch:
    """Started where it is made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._had_waited = _waited_for_a_processor()

    @property
    def seconds(self) -> float:
        """Since it was made, less those for which this thread was kept waiting for a processor, where that is known."""
        return time.monotonic() - self._began - (_waited_for_a_processor() - self._had_waited)


def _waited_for_a_processor() -> float:
    try:
        return int(_SCHEDULE.read_text().split()[1]) / 1e9
    except OSError:
        return 0.0
