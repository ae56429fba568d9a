"""`Recycling`: when a worker process has done enough, and another one is to take its place."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from fairque.checks import check_count
from fairque.config.size import parse_size
from fairque.errors import InvalidInput
from fairque.worker.hooks import Hook, TaskEvent, in_turn

__all__ = ["Recycling", "memory_used"]

MOST_TASKS = 1_000_000_000
LOOK_SECONDS = 1.0
_ENDS = ("success", "failure", "retry", "cancel")
"""What hooks are told of a task that this process has run."""


class Recycling:
    """Counts what a process has run, and looks at its memory.

    Args:
        max_tasks: None: any number.
        max_memory: Bytes, also as a text like ``512M``; None: any number.

    Raises:
        InvalidInput: One of them breaks a rule.
    """

    def __init__(self, max_tasks: int | None, max_memory: int | str | None) -> None:
        if max_tasks is not None:
            check_count("max_tasks", max_tasks, 1, MOST_TASKS)
        self._left = max_tasks
        self._most_bytes = parse_size(str(max_memory)) if max_memory is not None else None
        self._has_run_enough = asyncio.Event()

    @property
    def is_wanted(self) -> bool:
        return self._left is not None or self._most_bytes is not None

    def counted(self, hooks: Mapping[str, Hook | None]) -> dict[str, Hook | None]:
        """The hooks of a worker, which count as well. Who has no `max_tasks` pays for nothing."""
        if self._left is None:
            return dict(hooks)
        return {**hooks, **{event: in_turn(self._count, hooks[event]) for event in _ENDS}}

    def check(self) -> None:
        """Raises `InvalidInput` where each process would be replaced before it has run a task."""
        used = memory_used()
        if self._most_bytes is not None and used > self._most_bytes:
            raise InvalidInput(f"max_memory is {self._most_bytes:,} bytes, and this process begins with {used:,}")

    async def over(self) -> None:
        """Returns when it has done enough."""
        while not self._has_run_enough.is_set():
            if self._most_bytes is not None and memory_used() > self._most_bytes:
                return
            try:
                async with asyncio.timeout(LOOK_SECONDS if self._most_bytes is not None else None):
                    await self._has_run_enough.wait()
            except TimeoutError:
                continue

    def _count(self, _: TaskEvent) -> None:
        assert self._left is not None
        self._left -= 1
        if self._left == 0:
            self._has_run_enough.set()


def memory_used() -> int:
    """Bytes that this process has in memory; where there is no ``/proc``, the most that it ever had. Its subprocesses
    are not part of it.
    """
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
