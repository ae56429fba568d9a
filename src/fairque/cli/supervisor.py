"""Several worker processes under one parent: it starts them, restarts those that crash, and passes signals on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Sequence

from fairque.cli.lifeline import REPEATED_SECONDS, Lifeline
from fairque.cli.problem import USAGE

__all__ = ["Supervisor", "spawn"]

logger = logging.getLogger("fairque.supervisor")
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_HEALTHY_SECONDS = 60.0
"""A process that lived this long starts anew without a history."""


async def spawn(arguments: Sequence[str], lifeline: Lifeline, **options: object) -> asyncio.subprocess.Process:
    """Start ``fairque`` with these arguments, in a process group of its own: a Ctrl-C is for its parent."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "fairque",
        *arguments,
        pass_fds=(lifeline.descriptor,),
        process_group=0,
        **{"env": lifeline.environment, **options},  # type: ignore[arg-type]
    )


class Supervisor:
    """Keeps a process of each command running.

    A process that ends with 0 was told to, and one that ends with 2 cannot be helped: neither is restarted.
    """

    def __init__(self, commands: Sequence[Sequence[str]]) -> None:
        self._commands = commands
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._asked_at = 0.0
        self._code = 0

    async def run(self) -> int:
        """Until every process has ended; returns the exit code."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal, signum)
        try:
            with Lifeline() as lifeline:
                async with asyncio.TaskGroup() as group:
                    for number, arguments in enumerate(self._commands, 1):
                        group.create_task(self._keep(number, arguments, lifeline))
        finally:
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(signum)
        return self._code

    async def _keep(self, number: int, arguments: Sequence[str], lifeline: Lifeline) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run_once(number, arguments, lifeline)
            if code in (0, USAGE) or self._stopping.is_set():
                self._code = self._code or max(0, code)
                return
            if time.monotonic() - began > _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE
            logger.error("worker process %d ended with code %d, next start in %.1f s", number, code, pause)
            await self._pause(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _run_once(self, number: int, arguments: Sequence[str], lifeline: Lifeline) -> int:
        process = await spawn(arguments, lifeline)
        self._running[number] = process
        logger.info("worker process %d started, pid %d", number, process.pid)
        if self._stopping.is_set():  # the signal came while it was being started
            self._send(process, signal.SIGTERM)
        try:
            return await process.wait()
        finally:
            del self._running[number]

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _on_signal(self, signum: int) -> None:
        if not self._stopping.is_set():
            logger.info("%s: stopping, a second signal leaves at once", signal.Signals(signum).name)
            self._asked_at = time.monotonic()
            self._stopping.set()
            self._send_all(signal.SIGTERM)
        elif time.monotonic() - self._asked_at > REPEATED_SECONDS:
            logger.warning("second signal: leaving at once, other workers take over what runs here")
            self._code = 128 + signum
            self._send_all(signal.SIGKILL)

    def _send_all(self, signum: signal.Signals) -> None:
        for process in self._running.values():
            self._send(process, signum)

    @staticmethod
    def _send(process: asyncio.subprocess.Process, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signum)
