"""Ends a process in which one piece of code keeps Python's interpreter to itself: no thread of ours could."""

from __future__ import annotations

import contextlib
import faulthandler
import threading
from collections.abc import Iterator

__all__ = ["end_when_stuck"]

LOOK_SECONDS = 1.0
STANDARD_ERROR = 2


@contextlib.contextmanager
def end_when_stuck(seconds: float | None) -> Iterator[None]:
    """A clock that needs no interpreter is set anew by a thread as long as that one can run.

    When it has run down, it writes where all threads are to standard error, and ends the process with code 1.

    Args:
        seconds: None: nothing is done.
    """
    if seconds is None:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_go_on, args=(seconds, ended), name="fairque-stuck", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()  # it might set the clock once more
        faulthandler.cancel_dump_traceback_later()


def _go_on(seconds: float, ended: threading.Event) -> None:
    while not ended.is_set():
        faulthandler.dump_traceback_later(seconds + LOOK_SECONDS, exit=True, file=STANDARD_ERROR)
        ended.wait(LOOK_SECONDS)
