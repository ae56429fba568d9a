"""What a test may leave behind in this process: nothing. Threads and sockets are compared before and after."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

GRACE_SECONDS = 2.0
"""Ends that were asked for take a moment: a thread's last lines, a transport's close, the server's own view of it."""

_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True)
class Possessions:
    """The threads and sockets of this process."""

    threads: frozenset[threading.Thread]
    sockets: frozenset[str]

    @classmethod
    def now(cls) -> Possessions:
        return cls(frozenset(threading.enumerate()), frozenset(_sockets()))

    def gained(self) -> list[str]:
        """What this process has now and did not have then."""
        threads = [f"thread {t.name!r}" for t in set(threading.enumerate()) - self.threads]
        sockets = [f"socket to {_peer(fd)}" for inode, fd in _sockets().items() if inode not in self.sockets]
        return sorted(threads + sockets)


def still_there(look: Callable[[], list[str]]) -> list[str]:
    """What `look` finds, unless that goes away by itself in a moment."""
    ends = time.monotonic() + GRACE_SECONDS
    while (found := look()) and time.monotonic() < ends:
        time.sleep(0.01)
    return found


async def end_of_tasks(tasks: Iterable[asyncio.Task[object]]) -> list[str]:
    """Names of the tasks that do not end by themselves in a moment; they are canceled."""
    pending = {task for task in tasks if not task.done()}
    if pending:
        _, pending = await asyncio.wait(pending, timeout=GRACE_SECONDS)
    for task in pending:
        task.cancel()
    return sorted(f"asyncio task {task.get_name()!r} in {task.get_coro()!r}" for task in pending)


def _sockets() -> dict[str, int]:
    """Sockets of this process by inode, with their descriptor. Empty where there is no /proc."""
    found: dict[str, int] = {}
    for entry in _DESCRIPTORS.iterdir() if _DESCRIPTORS.is_dir() else ():
        # The descriptor that lists the directory is gone by now.
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if target.startswith("socket:"):
                found[target] = int(entry.name)
    return found


def _peer(descriptor: int) -> str:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            return repr(copy.getpeername() or copy.getsockname() or "a socket pair")
    except OSError:
        return "nowhere (listening or not connected)"
