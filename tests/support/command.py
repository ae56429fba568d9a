"""Commands of the command line, run until they end: within this process, or as a process of their own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any
from unittest import mock

from fairque.cli.app import run
from tests.support.process import ROOT

Run = Callable[..., Awaitable["Ended"]]


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> tuple[str, str]:
        """The line of the error and the line of the hint, which are all that it said on stderr."""
        error, hint = self.err.splitlines()
        assert error.startswith("error: "), self.err
        assert hint.startswith("hint: "), self.err
        return error, hint


async def call_command(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: str | bytes | IO[str] | None = None
) -> Ended:
    """``fairque`` with these arguments in a thread of this process, which takes a tenth of the time of a new one.

    For all that needs no signals: enough of the commands run as processes to show that they do.
    """
    return await asyncio.to_thread(_call, arguments, env or {}, stdin)


def _call(arguments: tuple[str, ...], env: Mapping[str, str], stdin: str | bytes | IO[str] | None) -> Ended:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    level = logging.getLogger("fairque").level
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, env))
        stack.enter_context(mock.patch("sys.stdin", _stdin(stdin)))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.callback(logging.getLogger("fairque").setLevel, level)
        try:
            code = run(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
    return Ended(code, *map(_written, (out, err)))


def _stdin(given: str | bytes | IO[str] | None) -> IO[str]:
    if given is None or isinstance(given, (str, bytes)):
        data = given.encode() if isinstance(given, str) else given or b""
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    return given


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


async def run_command(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: str | bytes | None = None, deadline: float = 40
) -> Ended:
    """``python -m fairque`` with these arguments; without `stdin`, there is none."""
    return await run_python("-m", "fairque", *arguments, env=env, stdin=stdin, deadline=deadline)


async def run_python(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: str | bytes | None = None, deadline: float = 40
) -> Ended:
    """Python with these arguments; without `stdin`, there is none."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=ROOT,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    given = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        out, err = await asyncio.wait_for(process.communicate(given), deadline)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())
