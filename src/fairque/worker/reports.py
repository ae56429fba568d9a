"""Reports of worker processes to the parent that started them: bytes of which only those who write and read them know
what they mean. They have a socket of their own, so that nobody who reads slowly holds up the words of a `Lifeline`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import anyio

__all__ = ["ReportInbox", "Reports", "are_wanted", "reporting"]

logger = logging.getLogger("fairque.worker")
_VARIABLE = "FAIRQUE_REPORTS"
_LENGTH = struct.Struct("!I")
_PIECE = 1 << 16
MOST_BYTES = 1 << 26
"""Of one report; what claims to be longer is none."""
REPORT_SECONDS = 1.0
_LAST_SECONDS = 2.0
"""What the last report may take."""


class Reports(Protocol):
    """Takes what the worker processes of a supervisor tell of themselves. It is called on the loop."""

    def add(self, child: int, report: bytes, /) -> None:
        """A newer report of a process, by its pid, in the place of the one before."""

    def drop(self, child: int, /) -> None:
        """A process has ended, and its last report was added."""


class ReportInbox:
    """The parent's end of one child. That gets `descriptor` passed, and `environment` added to its own."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_listening = False
        self._on_report: Callable[[bytes], None] = lambda _: None
        self._read = bytearray()

    @property
    def descriptor(self) -> int:
        return self._theirs.fileno()

    @property
    def environment(self) -> dict[str, str]:
        return {_VARIABLE: str(self.descriptor)}

    def listen(self, on_report: Callable[[bytes], None]) -> None:
        """Have each report called, on the running loop."""
        self._on_report = on_report
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ours, self._receive)
        self._is_listening = True

    def _stop_listening(self) -> None:
        if self._is_listening and self._loop is not None:
            self._loop.remove_reader(self._ours)
        self._is_listening = False

    def close(self) -> None:
        """The child has ended. What it told before is still heard."""
        while self._is_listening and self._receive():
            pass
        self._stop_listening()
        self._ours.close()
        self._theirs.close()

    def _receive(self) -> bool:
        """Whether there was anything."""
        try:
            piece = self._ours.recv(_PIECE)
        except OSError:  # nothing there, or it is gone
            return False
        if not piece:
            self._stop_listening()
        self._read += piece
        while (report := self._next()) is not None:
            self._on_report(report)
        return bool(piece)

    def _next(self) -> bytes | None:
        if len(self._read) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._read)
        if length > MOST_BYTES:
            logger.error("a worker process reports %d bytes, which cannot be: it is not listened to any more", length)
            self._stop_listening()
            self._read.clear()
            return None
        end = _LENGTH.size + length
        if len(self._read) < end:
            return None
        report = bytes(self._read[_LENGTH.size : end])
        del self._read[:end]
        return report


def are_wanted() -> bool:
    """Whether a parent of this process asks for reports, and `reporting` was not entered yet."""
    return _VARIABLE in os.environ


@contextlib.asynccontextmanager
async def reporting(report: Callable[[], bytes] | None) -> AsyncIterator[None]:
    """Until it is left, the parent is told each second what has changed, where it asks for that; then once more."""
    descriptor = os.environ.pop(_VARIABLE, None)
    if descriptor is None:
        yield
        return
    os.set_inheritable(int(descriptor), False)
    with socket.socket(fileno=int(descriptor)) as line:
        if report is None:
            yield
            return
        reporter = _Reporter(line, report)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await reporter.end()


class _Reporter:
    """A thread, so that a loop that is blocked goes on telling, and one that is not never waits for the parent."""

    def __init__(self, line: socket.socket, report: Callable[[], bytes]) -> None:
        self._line = line
        self._report = report
        self._told = b""
        self._stopping = threading.Event()
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name="fairque-reports", daemon=True).start()

    async def end(self) -> None:
        self._stopping.set()
        with anyio.move_on_after(_LAST_SECONDS):
            await self._ended.wait()
        if not self._ended.is_set():  # the parent reads nothing
            self._line.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            self._tell()
            while not self._stopping.wait(REPORT_SECONDS):
                self._tell()
            self._tell()
        except OSError:  # the parent is gone, which others see to
            pass
        except Exception:
            logger.exception("this process reports nothing any more")
        finally:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._ended.set)

    def _tell(self) -> None:
        report = self._report()
        if report != self._told:
            self._line.sendall(_LENGTH.pack(len(report)) + report)
            self._told = report
