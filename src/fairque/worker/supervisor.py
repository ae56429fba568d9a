"""`Supervisor`: keeps worker processes running, and replaces those that have done enough."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Sequence
from functools import partial

from _fairque_command import REPEATED_SECONDS
from fairque.errors import FairqueError
from fairque.worker.changes import Changes
from fairque.worker.child import Child
from fairque.worker.lifeline import Lifeline, Word, spawn
from fairque.worker.processes import on_stop
from fairque.worker.reports import ReportInbox, Reports

__all__ = ["Supervisor"]

logger = logging.getLogger("fairque.supervisor")
HOPELESS = 2
"""The exit code of a process that was given something that it cannot use."""
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_HEALTHY_SECONDS = 60.0
"""A process that lived this long starts anew without a history."""
_HURRY_SECONDS = 5.0
"""What a process may take that is told to hurry; then it is killed."""


class Supervisor:
    """Keeps a Python process with each of these sequences of arguments running.

    A process that ends with 0 was told to, or has nothing more to do, and one that ends with 2 cannot be helped:
    neither is restarted. One that is full is replaced: first another one serves, then it retires. That is done to one
    at a time.

    Args:
        commands: What Python is told, for each process.
        changes: Of files: all processes are started anew when there are some. Those that are not restarted wait for
            them.
        reports: Takes what the processes tell of themselves; None: they are not asked.
    """

    def __init__(
        self, commands: Sequence[Sequence[str]], changes: Changes | None = None, reports: Reports | None = None
    ) -> None:
        self._commands = commands
        self._changes = changes
        self._reports = reports
        self._children: set[Child] = set()
        self._stopping = asyncio.Event()
        self._has_news = asyncio.Event()
        self._replacing = asyncio.Semaphore(1)
        self._asked_at = 0.0
        self._code = 0

    @property
    def children(self) -> list[Child]:
        """Those that run."""
        return [child for child in self._children if child.code is None]

    @property
    def wanted(self) -> int:
        """How many are to run."""
        return len(self._commands)

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def run(self) -> int:
        """Until every process has ended; returns the exit code."""
        with on_stop(self._on_signal):
            async with asyncio.TaskGroup() as self._group:
                for number, arguments in enumerate(self._commands, 1):
                    self._group.create_task(self._keep(number, arguments))
                if self._changes is not None:
                    self._group.create_task(self._follow(self._changes))
        return self._code

    async def _keep(self, number: int, arguments: Sequence[str]) -> None:
        pause, child = _FIRST_PAUSE, await self._start(number, arguments)
        while True:
            await child.is_full.wait()
            if child.code is None:
                child = await self._replace(child, arguments)
                continue
            if time.monotonic() - child.began > _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE
            if not await self._comes_back(child, child.code, pause):
                self._code = self._code or max(0, child.code)
                return
            pause = min(_LONGEST_PAUSE, pause * 2)
            child = await self._start(number, arguments)

    async def _start(self, number: int, arguments: Sequence[str]) -> Child:
        line, inbox = Lifeline(), ReportInbox() if self._reports is not None else None
        child = Child(number, await spawn(arguments, line, inbox), line, inbox)
        if inbox is not None:
            inbox.listen(partial(self._take_report, child.pid))
        self._children.add(child)
        logger.info("worker process %d started, pid %d", number, child.pid)
        if self._stopping.is_set():  # the signal came while it was being started
            child.send(signal.SIGTERM)
        self._group.create_task(self._wait(child))
        return child

    async def _wait(self, child: Child) -> None:
        await child.wait()
        self._children.discard(child)
        if self._reports is not None:
            self._reports.drop(child.pid)

    def _take_report(self, child: int, report: bytes) -> None:
        assert self._reports is not None
        try:
            self._reports.add(child, report)
        except FairqueError as exc:  # the process goes on all the same
            logger.warning("a report of worker process %d cannot be read: %s", child, exc)

    async def _comes_back(self, child: Child, code: int, pause: float) -> bool:
        """Whether another one is to be started in the place of one that has ended. Returns when it is time."""
        if self._stopping.is_set() or child.is_outdated:
            return not self._stopping.is_set()
        if code not in (0, HOPELESS):
            logger.error("worker process %d ended with code %d, next start in %.1f s", child.number, code, pause)
            await self._pause(pause)
        elif self._changes is not None:
            logger.info("worker process %d ended with code %d, next start when files change", child.number, code)
            await self._pause(None)
        else:
            return False
        return not self._stopping.is_set()

    async def _replace(self, child: Child, arguments: Sequence[str]) -> Child:
        """The one that serves in its place; itself where that failed, or came too late."""
        await self._replacing.acquire()
        if child.code is not None or self._stopping.is_set():
            self._replacing.release()
            await child.has_ended.wait()
            return child
        logger.info("worker process %d, pid %d, is replaced", child.number, child.pid)
        successor = await self._start(child.number, arguments)
        await successor.serves.wait()
        if not successor.has_served:
            self._replacing.release()
            text = "worker process %d cannot be replaced, and goes on: the other one ended with code %s"
            logger.error(text, child.number, successor.code)
            if child.code is None:  # at its end it is set all the same
                child.is_full.clear()
                asyncio.get_running_loop().call_later(_LONGEST_PAUSE, child.is_full.set)
            return child
        child.tell(Word.RETIRE)
        self._group.create_task(self._see_off(child))
        return successor

    async def _see_off(self, child: Child) -> None:
        """The next one is replaced when it has ended: there is at most one process more than was asked for."""
        await child.has_ended.wait()
        self._replacing.release()
        logger.info("worker process %d, pid %d, has retired with code %s", child.number, child.pid, child.code)
        if self._stopping.is_set():
            self._code = self._code or max(0, child.code or 0)

    async def _follow(self, changes: Changes) -> None:
        async for files in changes.seen(self._stopping):
            logger.info("%s: starting anew", files)
            for child in list(self._children):
                child.is_outdated = True
                self._group.create_task(self._hurry(child))
            self._has_news.set()
            self._has_news.clear()

    async def _hurry(self, child: Child) -> None:
        if child.has_served:
            child.tell(Word.HURRY)
        else:
            child.send(signal.SIGTERM)  # it may not listen yet, and has nothing to drain
        try:
            async with asyncio.timeout(_HURRY_SECONDS):
                await child.has_ended.wait()
        except TimeoutError:
            child.send(signal.SIGKILL)

    async def _pause(self, seconds: float | None) -> None:
        """Cut short by the stop, and by a change of files."""
        if self._stopping.is_set():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_news.wait()

    def _on_signal(self, signum: int) -> None:
        if not self._stopping.is_set():
            logger.info("%s: stopping, a second signal leaves at once", signal.Signals(signum).name)
            self._asked_at = time.monotonic()
            self._stopping.set()
            self._has_news.set()
            self._send_all(signal.SIGTERM)
        elif time.monotonic() - self._asked_at > REPEATED_SECONDS:
            logger.warning("second signal: leaving at once, other workers take over what runs here")
            self._code = 128 + signum
            self._send_all(signal.SIGKILL)

    def _send_all(self, signum: signal.Signals) -> None:
        for child in list(self._children):
            child.send(signum)
