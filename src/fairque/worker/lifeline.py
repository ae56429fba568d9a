"""The line between a worker process and the parent that started it. Each end sees by it that the other one is gone,
even if that was killed; and they tell each other a few words.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from enum import Enum
from types import TracebackType
from typing import Self

from fairque.worker.reports import ReportInbox

__all__ = ["Lifeline", "Parent", "Word", "has_parent", "spawn"]

_VARIABLE = "FAIRQUE_LIFELINE"


class Word(Enum):
    """What one end tells the other."""

    SERVES = b"s"
    """A child: its first claim was answered."""
    IS_FULL = b"f"
    """A child: it has run as many tasks, or takes as much memory, as it may. It goes on until it is told to retire."""
    LEAVES = b"l"
    """A child: its worker has ended, and its loop ends with it."""
    RETIRE = b"r"
    """The parent: another process serves in its place."""
    HURRY = b"h"
    """The parent: stop, and give what runs but a moment."""
    ASK = b"a"
    """The parent: how are you? The loop of the child answers with one of the next two, or not at all."""
    CLAIMS = b"c"
    """A child: it takes tasks."""
    CLAIMS_NOTHING = b"n"
    """A child: it takes none, as it stops, or Redis does not answer."""


class Lifeline:
    """The parent's end. A child gets `descriptor` passed and `environment` set; those that are told nothing may share
    one.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_word: Callable[[Word], None] = lambda _: None

    @property
    def descriptor(self) -> int:
        return self._theirs.fileno()

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, _VARIABLE: str(self.descriptor)}

    def listen(self, on_word: Callable[[Word], None]) -> None:
        """Have what the child tells called, on the running loop."""
        self._on_word = on_word
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ours, self._read)

    def tell(self, word: Word) -> None:
        with contextlib.suppress(OSError):  # it is gone
            self._ours.send(word.value)

    def close(self) -> None:
        """What was told before is still heard."""
        if self._loop is not None:
            self._read()
            self._loop.remove_reader(self._ours)
        self._ours.close()
        self._theirs.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, ValueError):  # nothing there; no word of ours
            for told in self._ours.recv(64):
                self._on_word(Word(bytes([told])))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Parent:
    """The child's end."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor

    @classmethod
    def of_this_process(cls) -> Self | None:
        """Once; None where no parent of ours started it."""
        descriptor = os.environ.pop(_VARIABLE, None)
        return cls(int(descriptor)) if descriptor is not None else None

    def tell(self, word: Word) -> None:
        with contextlib.suppress(OSError):  # it is gone
            os.write(self._descriptor, word.value)

    def follow(self, on_word: Callable[[Word], None], on_death: Callable[[], None]) -> None:
        """Both are called from a thread."""

        def watch() -> None:
            while told := self._heard():
                on_word(Word(told))
            on_death()

        threading.Thread(target=watch, name="fairque-parent", daemon=True).start()

    def _heard(self) -> bytes:
        try:
            return os.read(self._descriptor, 1)
        except ConnectionError:  # it has died before it heard all of ours
            return b""


def has_parent() -> bool:
    """Whether a parent of ours started this process, and `Parent.of_this_process` was not called yet."""
    return _VARIABLE in os.environ


async def spawn(
    arguments: Sequence[str], line: Lifeline, inbox: ReportInbox | None = None, **options: object
) -> asyncio.subprocess.Process:
    """Start Python with these arguments, in a process group of its own: a Ctrl-C is for its parent. Where there is an
    inbox, it is asked for reports.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        pass_fds=(line.descriptor, *((inbox.descriptor,) if inbox is not None else ())),
        process_group=0,
        **{"env": line.environment | (inbox.environment if inbox is not None else {}), **options},  # type: ignore[arg-type]
    )
