"""`LoopWatch`: whether the event loop of a worker still turns, as a thread beside it sees it."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

from fairque.worker.runner import Runner
from fairque.worker.task_log import log_fields

__all__ = ["LoopWatch", "Standstill"]

logger = logging.getLogger("fairque.worker")
BLOCKED_SECONDS = 1.0
MOST_OF_A_LOOK = 1.0
"""Seconds that count of the time between two looks: whoever stops the process, stops this thread as well, and then the
loop is to have the time to go on before it is judged."""
BUSY = 0.1
"""Of a time, spent on the processor: the process was not stopped, a task kept the interpreter for itself. No more than
this, as a machine may have more to do than it has processors."""


class Standstill(NamedTuple):
    """Of the whole process: for how many seconds, and when it went on, on the clock of `time.monotonic`."""

    seconds: float
    ended_at: float


class LoopWatch:
    """Made on the loop that it watches. Warns of what blocks it, once per blockade.

    Args:
        runner: Knows which task runs on the loop.
        patience: Seconds for which the loop may stand still, or None.
        on_loop: Has a function called on the loop.
    """

    def __init__(self, runner: Runner, patience: float | None, on_loop: Callable[[Callable[[], None]], None]) -> None:
        self._runner = runner
        self._patience = math.inf if patience is None else patience
        self._on_loop = on_loop
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._is_awaited = False  # a tick that was asked for
        self._silent = 0.0  # seconds for which it has been
        self._warned = False
        self._looked_at = time.monotonic()
        self._wakes_at = math.inf  # while the thread rests
        self._standstill = Standstill(0.0, -math.inf)

    @property
    def standstill(self) -> Standstill:
        """The last one, or that which lasts: this thread has yet to find that it has overslept."""
        now, wakes_at = time.monotonic(), self._wakes_at
        return Standstill(now - wakes_at, now) if now - wakes_at > BLOCKED_SECONDS else self._standstill

    def rest(self, seconds: float, rest: Callable[[float], object]) -> None:
        """The thread has nothing to do for so long. Warns where it was much longer."""
        used = time.process_time()
        self._wakes_at = time.monotonic() + seconds
        rest(seconds)
        now = time.monotonic()
        late = now - self._wakes_at
        if late > BLOCKED_SECONDS:
            self._standstill = Standstill(late, now)
            self._warn_of_standstill(late, time.process_time() - used)
        self._wakes_at = math.inf

    def look(self, is_busy: bool) -> bool:
        """Whether the loop has stood still for too long."""
        now = time.monotonic()
        passed, self._looked_at = now - self._looked_at, now
        if self._is_awaited:
            self._silent += min(passed, MOST_OF_A_LOOK)
            if self._silent > BLOCKED_SECONDS and not self._warned:
                self._warn_of_blockade()
        elif is_busy:
            self._is_awaited = True
            self._on_loop(self._tick)
        return self._silent > self._patience

    def _tick(self) -> None:
        self._is_awaited = self._warned = False
        self._silent = 0.0

    def _warn_of_blockade(self) -> None:
        self._warned = True
        logger.warning(
            "%s has blocked the event loop for %.1f s: use a plain function, which runs in a thread",
            self._runner.describe_blocker(self._loop),
            self._silent,
            extra=self._fields(),
        )

    def _warn_of_standstill(self, seconds: float, busy: float) -> None:
        """This thread could not run either."""
        if busy < BUSY * seconds:
            logger.warning("this process was stopped for %.1f s: no lease was renewed meanwhile", seconds)
            return
        self._warned = True
        logger.warning(
            "%s kept the interpreter for %.1f s: no lease was renewed meanwhile, and beyond a lease all that runs here "
            'would be lost. Let it run in a process of its own: @task(run_in="process")',
            self._runner.describe_blocker(self._loop),
            seconds,
            extra=self._fields(),
        )

    def _fields(self) -> dict[str, object]:
        blocker = self._runner.blocker(self._loop)
        return log_fields(blocker) if blocker is not None else {}

    def stack(self) -> str:
        """Where the loop is."""
        frame = sys._current_frames().get(self._thread)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""
