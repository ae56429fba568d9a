"""A process that does what it is told, line by line."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[3]


class Led:
    """The leading end. It belongs to no event loop, so that many tests can use one.

    Args:
        module: What the process runs, see `follow`.
        log: Where what it says on its standard error goes.
        *arguments: What it finds in ``sys.argv``.
    """

    def __init__(self, module: str, log: Path, *arguments: str) -> None:
        self._log = log
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path},
            )

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """Does nothing to a process that has ended: its id may be another's by now."""
        self._process.kill()

    async def ask(self, order: str, seconds: float = 30.0, **details: Any) -> Any:
        """Its answer. Raises AssertionError when the process has ended, or answers with an error."""
        async with asyncio.timeout(seconds):
            line = await asyncio.to_thread(self._ask, json.dumps([order, details]))
        answer = json.loads(line) if line else {"error": f"it has ended:\n{self._log.read_text()[-3000:]}"}
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{order}: {answer['error']}")
        return answer

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


async def follow(orders: dict[str, Callable[..., Awaitable[Any]]]) -> None:
    """The other end: until the input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        order, details = json.loads(line)
        try:
            answer = await orders[order](**details)
        except Exception as exc:
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), flush=True)
