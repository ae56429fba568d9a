"""Locks on files, shared or exclusive, that the kernel drops when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHARED = fcntl.LOCK_SH
EXCLUSIVE = fcntl.LOCK_EX

_STEP_SECONDS = 0.005


def open_lock(path: Path) -> int:
    """File descriptor on which the lock of `path` can be taken. Closing it gives the lock up."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(fd: int, mode: int) -> bool:
    """Take the lock if it is free. A failed attempt also gives up what `fd` held in another mode."""
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def until(condition: Callable[[], bool], deadline: float) -> bool:
    """Whether `condition` came true before `deadline` (of `time.monotonic`)."""
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_STEP_SECONDS)
    return True
