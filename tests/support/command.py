"""Commands of the command line, run as real processes until they end."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

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


async def run_command(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: str | bytes | None = None, deadline: float = 40
) -> Ended:
    """``python -m fairque`` with these arguments; without `stdin`, there is none."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairque", *arguments),
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
