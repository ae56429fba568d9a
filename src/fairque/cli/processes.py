"""Signals and processes of commands that do their work and end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator

from _fairque_command import REPEATED_SECONDS
from fairque.cli.errors import CommandError
from fairque.worker.processes import on_stop

__all__ = ["FAIRQUE", "Interrupted", "stop_on_signal"]

FAIRQUE = ("-m", "fairque")
"""What Python runs as ``fairque``."""


class Interrupted(CommandError):
    """A signal ended the command, which has cleaned up. There is nothing to report but the exit code."""

    def __init__(self, signum: int) -> None:
        super().__init__("", "", 128 + signum)


@contextlib.contextmanager
def stop_on_signal(restore: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Ctrl-C or SIGTERM cancels the block, which cleans up; a second one leaves at once.

    Args:
        restore: Called before leaving at once, e.g. to bring the cursor back.

    Raises:
        Interrupted: After the first signal.
    """
    handler = _SignalHandler(restore)
    with on_stop(handler.on_signal):
        try:
            yield
        except asyncio.CancelledError:
            if handler.signum is None:
                raise
            raise Interrupted(handler.signum) from None


class _SignalHandler:
    """Cancels the current task, once."""

    def __init__(self, restore: Callable[[], object]) -> None:
        self.signum: int | None = None
        self._asked_at = 0.0
        self._restore = restore
        self._task = asyncio.current_task()

    def on_signal(self, signum: int) -> None:
        if self.signum is None:
            self.signum = signum
            self._asked_at = time.monotonic()
            assert self._task is not None
            self._task.cancel()
        elif time.monotonic() - self._asked_at > REPEATED_SECONDS:
            self._restore()
            os._exit(128 + self.signum)
