"""Processes of workers: signals, children that end with their parent, and their supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from _fairque_command import REPEATED_SECONDS, taken

__all__ = ["ParentPipe", "Supervisor", "follow_parent", "has_parent", "leave_lost_terminal", "on_stop", "spawn"]

logger = logging.getLogger("fairque.supervisor")
HOPELESS = 2
"""The exit code of a process that was given something that it cannot use."""
_PIPE_VARIABLE = "FAIRQUE_LIFELINE"
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_HEALTHY_SECONDS = 60.0
"""A process that lived this long starts anew without a history."""


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


class ParentPipe:
    """A child ends when its parent is gone, even if that was killed: both hold an end of a pipe that nobody writes to.

    This is the parent's side. Children get `descriptor` passed and `environment` set.
    """

    def __init__(self) -> None:
        self.descriptor, self._kept = os.pipe()

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, _PIPE_VARIABLE: str(self.descriptor)}

    def close(self) -> None:
        os.close(self.descriptor)
        os.close(self._kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def has_parent() -> bool:
    """Whether a parent of ours started this process, and `follow_parent` was not called yet."""
    return _PIPE_VARIABLE in os.environ


def follow_parent(on_death: Callable[[], None]) -> bool:
    """The child's side: call `on_death` from a thread once the parent is gone. False when there is no such pipe."""
    descriptor = os.environ.pop(_PIPE_VARIABLE, None)
    if descriptor is None:
        return False

    def watch() -> None:
        os.read(int(descriptor), 1)
        on_death()

    threading.Thread(target=watch, name="fairque-parent", daemon=True).start()
    return True


async def spawn(arguments: Sequence[str], pipe: ParentPipe, **options: object) -> asyncio.subprocess.Process:
    """Start Python with these arguments, in a process group of its own: a Ctrl-C is for its parent."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        pass_fds=(pipe.descriptor,),
        process_group=0,
        **{"env": pipe.environment, **options},  # type: ignore[arg-type]
    )


class Supervisor:
    """Keeps a Python process with each of these sequences of arguments running.

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
        with on_stop(self._on_signal), ParentPipe() as pipe:
            async with asyncio.TaskGroup() as group:
                for number, arguments in enumerate(self._commands, 1):
                    group.create_task(self._keep(number, arguments, pipe))
        return self._code

    async def _keep(self, number: int, arguments: Sequence[str], pipe: ParentPipe) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run_once(number, arguments, pipe)
            if code in (0, HOPELESS) or self._stopping.is_set():
                self._code = self._code or max(0, code)
                return
            if time.monotonic() - began > _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE
            logger.error("worker process %d ended with code %d, next start in %.1f s", number, code, pause)
            await self._pause(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _run_once(self, number: int, arguments: Sequence[str], pipe: ParentPipe) -> int:
        process = await spawn(arguments, pipe)
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
