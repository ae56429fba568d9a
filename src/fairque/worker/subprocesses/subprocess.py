"""`Subprocess`: one process that runs bodies for a worker, one at a time."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable

import msgspec

from fairque.models import FailureKind
from fairque.redis.home import cut_in_forks
from fairque.tasks.failure import Failure, Raised, RaisedElsewhere, Reply
from fairque.worker.subprocesses.fork_server import ForkServer
from fairque.worker.subprocesses.frames import HEAD, Job, Kind, Logged, Report, Start, frame

__all__ = ["DiedIdle", "Subprocess"]

LAST_WORDS_SECONDS = 0.2
_reply_decoder = msgspec.msgpack.Decoder(Reply)
_logged_decoder = msgspec.msgpack.Decoder(Logged)
_report_decoder = msgspec.msgpack.Decoder(Report)


class DiedIdle(Exception):
    """It had died, for what an earlier body has left in it, before it took the job: nothing of that was done."""


class Subprocess:
    """Started when it is made, on the running loop, in a session and process group of its own.

    It takes file descriptors 1 and 2 from the worker, so what the body and its children write goes where the output of
    the worker goes. It ends when the socket to its worker is closed, by whichever side.

    Args:
        server: Makes it, and kills it.
        on_end: Called once on the loop, when the process is gone.

    Attributes:
        jobs: How many it was given.
        ended: It is gone.
    """

    def __init__(self, server: ForkServer, on_end: Callable[[Subprocess], None]) -> None:
        self._server = server
        self._on_end = on_end
        self._socket, theirs = socket.socketpair()
        cut_in_forks(self._socket)
        try:
            self._number = server.fork(theirs, self._gone)
        except BaseException:
            self._socket.close()
            theirs.close()
            raise
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._start_error = ""
        self._code: int | None = None
        self._is_busy = self._has_begun = False
        self.jobs = 0
        self.ended = asyncio.Event()

    async def run(self, job: Job, on_report: Callable[[float, str], None]) -> Reply:
        """Run a body. Whoever stops waiting for it is to `kill` the process.

        Args:
            job: The body.
            on_report: Called with what it tells by `progress`.

        Raises:
            RaisedElsewhere: The process died, or could not start.
            DiedIdle: It had run other bodies before, and took this one no more.
        """
        self.jobs += 1
        self._is_busy, self._has_begun = True, False
        answer = asyncio.ensure_future(self._ask(job, on_report))
        gone = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            # What it sent last may still be on its way when it is known to be gone; a child of it may hold the socket.
            await asyncio.wait((answer,), timeout=LAST_WORDS_SECONDS)
            if answer.done() and answer.exception() is None:
                return answer.result()
            self.kill()
            await self.ended.wait()
            if self.jobs > 1 and not self._has_begun:
                raise DiedIdle
            raise RaisedElsewhere(self._death())
        finally:
            for each in (answer, gone):
                each.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)
            self._is_busy = False
            if self.ended.is_set():
                self.close()

    async def _ask(self, job: Job, on_report: Callable[[float, str], None]) -> Reply:
        if self._streams is None:
            self._streams = await asyncio.open_connection(sock=self._socket)
            self._streams[1].write(frame(Kind.START, _start()))
        reader, writer = self._streams
        writer.write(frame(Kind.JOB, job))
        await writer.drain()
        while True:
            size, kind = HEAD.unpack(await reader.readexactly(HEAD.size))
            body = await reader.readexactly(size)
            match Kind(kind):
                case Kind.TAKEN:
                    self._has_begun = True
                case Kind.REPLY:
                    return _reply_decoder.decode(body)
                case Kind.PROGRESS:
                    report = _report_decoder.decode(body)
                    on_report(report.fraction, report.message)
                case Kind.LOG:
                    _log(body)
                case Kind.ERROR:
                    self._start_error = body.decode(errors="replace")
            await asyncio.sleep(0)  # else one that logs without end holds up the loop

    def close(self) -> None:
        """Let it end by itself: it runs nothing."""
        if self._streams is not None:
            self._streams[1].close()
        else:
            self._socket.close()

    def kill(self) -> None:
        """End it and the processes that it has started."""
        self._server.kill(self._number)

    def _gone(self, code: int | None) -> None:
        self._code = code
        if not self._is_busy:  # else what it sent last is still to be read
            self.close()
        self.ended.set()
        self._on_end(self)

    def _death(self) -> Raised:
        error = self._start_error or self._server.start_error
        if error:
            text = f"the subprocess of the task could not start: {error.strip().rpartition(chr(10))[2]}"
        else:
            text = f"the subprocess of the task died: {_exit(self._code)}"
        return Raised(Failure(FailureKind.ERROR, "ProcessDied", text, error), ("ProcessDied",))


def _start() -> Start:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    loggers = {"": logging.root, **logging.root.manager.loggerDict}
    levels = {name: each.level for name, each in loggers.items() if isinstance(each, logging.Logger) and each.level}
    path = [each for each in sys.path if isinstance(each, str)]
    return Start(sys.argv, path, getattr(main, "__file__", None), spec.name if spec is not None else None, levels)


def _log(body: bytes) -> None:
    """As if it had been logged here."""
    logged = _logged_decoder.decode(body)
    record = logging.makeLogRecord(logged.fields)
    log = logging.root if logged.is_handled else logging.getLogger(record.name)
    if log.isEnabledFor(record.levelno):
        log.handle(record)


def _exit(code: int | None) -> str:
    if code is None:
        return "so did the process that had started it"
    if code >= 0:
        return f"it exited with code {code}"
    try:
        return f"{signal.Signals(-code).name} ended it"
    except ValueError:
        return f"signal {-code} ended it"
