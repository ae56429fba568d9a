"""Real processes for tests that need one to kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

ROOT = Path(__file__).parents[2]


def _search_path() -> str:
    """Scripts find the ``tests`` package; fairque is the installed one, as in this process."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


class WorkerProcess:
    """A Python process with its output at hand, ended at the latest when the ``async with`` is left.

    Args:
        target: A script (``tests/workers/echo.py``, relative to the project) or a module (``-m`` is added to what
            does not end in ``.py``).
        *arguments: What the process finds in ``sys.argv[1:]``.
        env: Added to the environment of this process.
        directory: In which it runs; that of the project when there is none.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *arguments: str,
        env: Mapping[str, str] | None = None,
        directory: Path = ROOT,
    ) -> None:
        name = os.fspath(target)
        self._command = ["-u", name] if name.endswith(".py") else ["-u", "-m", name]
        self._command += arguments
        self._directory = directory
        self._env = {**os.environ, "PYTHONPATH": _search_path(), **(env or {})}
        self._reader: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.lines: list[str] = []
        """Everything it wrote so far, standard output and error as they came."""

    @property
    def pid(self) -> int:
        return self._started.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._started.returncode

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def send(self, signum: signal.Signals) -> None:
        self._started.send_signal(signum)

    async def line(self, substring: str, deadline: float = 30.0) -> str:
        """The first line with `substring` in it, as soon as there is one."""

        def found() -> str | None:
            line = next((line for line in self.lines if substring in line), None)
            if line is None and self._reader is not None and self._reader.done():
                raise AssertionError(f"ended with {self.returncode}, without a line with {substring!r}:\n{self.output}")
            return line

        try:
            return str(await eventually(found, deadline))
        except AssertionError as error:
            raise AssertionError(f"no line with {substring!r} ({error}):\n{self.output}") from None

    async def wait(self, deadline: float = 30.0) -> int:
        """The return code, once it has ended by itself or by a signal."""
        try:
            async with asyncio.timeout(deadline):
                code = await self._started.wait()
        except TimeoutError:
            raise AssertionError(f"still running after {deadline:g} s:\n{self.output}") from None
        if self._reader is not None:
            await self._reader
        return code

    async def start(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._directory,
            env=self._env,
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read(), name=f"output of {self.pid}")
        return self

    async def end(self) -> None:
        """Kill it, and the processes it started, if they still run."""
        # A process group outlives its leader, and SIGKILL ends stopped processes, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._started.wait()
        if self._reader is not None:
            await self._reader

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.end()

    @property
    def _started(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "not started: use 'async with' or start()"
        return self._process

    async def _read(self) -> None:
        assert self._started.stdout is not None
        async for line in self._started.stdout:
            self.lines.append(line.decode(errors="replace").rstrip("\n"))
