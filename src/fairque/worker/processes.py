"""Signals that ask a process to stop, and the end of its terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Callable, Iterator

from _fairque_command import taken

__all__ = ["leave_lost_terminal", "on_stop"]


def leave_lost_terminal() -> None:
    """What is written to a terminal that has ended is an error: from now on it goes nowhere, and tasks may print."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


@contextlib.contextmanager
def on_stop(call: Callable[[int], object]) -> Iterator[None]:
    """Signals that ask to stop are told to `call`, on the running loop."""
    loop = asyncio.get_running_loop()
    with taken(lambda signum, _: loop.call_soon_threadsafe(call, signum)):
        yield
