"""Ctrl-C and SIGTERM for a command that has something to clean up."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

from fairque.cli.lifeline import REPEATED_SECONDS

__all__ = ["Interruption"]


class Interruption:
    """The first signal cancels the current task, which cleans up; a second one leaves at once.

    Args:
        restore: Called before leaving at once, e.g. to bring the cursor back.
    """

    def __init__(self, restore: Callable[[], object]) -> None:
        self.code = 0
        """128 and the number of the signal, once there was one."""
        self._asked_at = 0.0
        self._restore = restore
        self._task = asyncio.current_task()
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, self._on_signal, signum)

    def _on_signal(self, signum: int) -> None:
        if not self.code:
            self.code = 128 + signum
            self._asked_at = time.monotonic()
            assert self._task is not None
            self._task.cancel()
        elif time.monotonic() - self._asked_at > REPEATED_SECONDS:
            self._restore()
            os._exit(self.code)
