"""What runs in a subprocess of a worker: `main`, until the worker closes the socket or is gone."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Awaitable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

import msgspec

from fairque.errors import BadArguments
from fairque.models import BatchProgress
from fairque.tasks.cause import Cause
from fairque.tasks.failure import Failure, Raised, Reply, encode_result, raised_by, unfit
from fairque.tasks.function import TaskFunction
from fairque.worker.context import TaskContext, running
from fairque.worker.subprocesses.fork_server import EXIT_SECONDS
from fairque.worker.subprocesses.frames import HEAD, Job, Kind, Logged, Report, Start, frame
from fairque.worker.subprocesses.functions import Functions

__all__ = ["main"]

REPORT_SECONDS = 0.1
MOST_RECORD_BYTES = 262_144
MOST_CHARS = 16_384


def main(theirs: socket.socket) -> None:
    """Run bodies, one after the other. The fork server has set up the rest of the process."""
    connection = Connection(theirs)
    try:
        if sys.stdout is not None:
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        start = msgspec.msgpack.decode(connection.receive()[1], type=Start)
        _log_through(connection, start)
        functions = Functions(start)
    except BaseException:
        connection.send(Kind.ERROR, traceback.format_exc().encode(errors="replace"))
        sys.exit(1)
    jobs = Jobs(connection)
    while (job := jobs.next()) is not None:
        connection.send(Kind.TAKEN, None)
        reply = copy_context().run(
            _run, functions, job, connection
        )  # what a body sets there, the next one must not find
        jobs.reply(reply)
    connection.close()


class Connection:
    """The socket to the worker. Nothing that this process forks writes to it."""

    def __init__(self, theirs: socket.socket) -> None:
        self._socket = theirs
        self._stream = theirs.makefile("rb")
        self._sending = threading.Lock()
        self._pid = os.getpid()

    @property
    def is_ours(self) -> bool:
        """False in a fork of the process."""
        return self._pid == os.getpid()

    def send(self, kind: Kind, body: Any) -> None:
        if self.is_ours:
            packed = frame(kind, body)
            with self._sending, contextlib.suppress(OSError):  # the worker is gone, and this process with it
                self._socket.sendall(packed)

    def receive(self) -> tuple[Kind, bytes]:
        """Raises `EOFError` when the worker is gone, or lets this process go."""
        head = self._read(HEAD.size)
        size, kind = HEAD.unpack(head)
        return Kind(kind), self._read(size)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def _read(self, size: int) -> bytes:
        found = self._stream.read(size)
        if len(found) < size:
            raise EOFError
        return found


class Jobs:
    """Reads them in a thread, which ends the process when there will be no more: a body must not outlive its worker."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._arrived: SimpleQueue[Job | None] = SimpleQueue()
        self._is_busy = False
        threading.Thread(target=self._read, name="fairque-jobs", daemon=True).start()

    def next(self) -> Job | None:
        """None: there will be none."""
        return self._arrived.get()

    def reply(self, reply: Reply) -> None:
        if not self._connection.is_ours:  # a body that forked, and came back twice
            os._exit(0)
        self._is_busy = False
        self._connection.send(Kind.REPLY, reply)

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                _, body = self._connection.receive()
                self._is_busy = True
                self._arrived.put(msgspec.msgpack.decode(body, type=Job))
        if not self._is_busy:
            self._arrived.put(None)
            time.sleep(EXIT_SECONDS)  # for what is registered with atexit
        os.killpg(os.getpgid(0), signal.SIGKILL)


class SubprocessContext(TaskContext[Any]):
    """`current_task()` of a body here."""

    __slots__ = ("_cause", "_ended_batch", "_given_headers", "_queue_name", "_reports")

    def __init__(self, job: Job, reports: Reports) -> None:
        super().__init__(job.user_id, job.task_id, job.task_name, job.attempt, job.worker_id, job.schedule)
        self.snoozed = job.snoozed
        if job.soft_timeout is not None:
            self.soft_ends = time.monotonic() + job.soft_timeout
        self.inputs = msgspec.msgpack.decode(job.inputs) or {}
        self._given_headers = job.headers
        self._queue_name = job.queue_name
        self._reports = reports
        self._cause, self._ended_batch = job.cause, job.ended_batch

    @property
    def queue_name(self) -> str:
        return self._queue_name

    @property
    def cause(self) -> Cause | None:
        return self._cause

    @property
    def ended_batch(self) -> BatchProgress | None:
        return self._ended_batch

    def _headers(self) -> dict[str, str]:
        return self._given_headers

    def _report(self, fraction: float, message: str) -> None:
        self._reports.add(Report(fraction, message))


class Reports:
    """Sends the newest report of a body, a few times a second: its worker has other tasks to care for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._is_open = True
        self._newest: Report | None = None
        self._timer: threading.Timer | None = None

    def add(self, report: Report) -> None:
        if not self._connection.is_ours:  # and the lock may be held for ever
            return
        with self._lock:
            if not self._is_open:
                return
            self._newest = report
            if self._timer is None:
                self._send()

    def stop(self) -> None:
        """The body has ended. A thread that it has left may go on to report: that is not of the next body."""
        if not self._connection.is_ours:
            return
        with self._lock:
            self._is_open = False
            self._newest = None
            if self._timer is not None:
                self._timer.cancel()

    def _send(self) -> None:
        report, self._newest, self._timer = self._newest, None, None
        if report is not None:
            self._connection.send(Kind.PROGRESS, report)
            self._timer = threading.Timer(REPORT_SECONDS, self._send_later)
            self._timer.daemon = True
            self._timer.start()

    def _send_later(self) -> None:
        with self._lock:
            self._send()


class Records(logging.Handler):
    """Hands log records to the worker, whose handlers write them."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not self._connection.is_ours:
                sys.stderr.write(self.format(record) + "\n")
                return
            self.format(record)  # it leaves the text of the traceback in the record
            self._connection.send(Kind.LOG, _packed(record))
        except Exception:
            self.handleError(record)


def _packed(record: logging.LogRecord) -> bytes:
    """With its `extra` fields, unless they are too large or too odd: it may not fill the memory of the worker."""
    kept = record.__dict__ | {"msg": record.getMessage(), "args": None, "exc_info": None}
    is_handled = _is_handled(logging.getLogger(record.name))
    with contextlib.suppress(Exception):
        packed = msgspec.msgpack.encode(Logged(kept, is_handled), enc_hook=str)
        if len(packed) <= MOST_RECORD_BYTES:
            return packed
    own = {name: kept[name] for name in logging.makeLogRecord({}).__dict__ if name in kept}
    cut = {name: value[:MOST_CHARS] if isinstance(value, str) else value for name, value in own.items()}
    return msgspec.msgpack.encode(Logged(cut, is_handled))


def _is_handled(log: logging.Logger | None) -> bool:
    while log is not None and log is not logging.root:
        if not all(isinstance(each, logging.NullHandler) for each in log.handlers):
            return True
        log = log.parent
    return False


def _run(functions: Functions, job: Job, connection: Connection) -> Reply:
    """What the body raises comes back as data."""
    reports = Reports(connection)
    context = SubprocessContext(job, reports)
    running.set(context)
    try:
        function = functions.find(job.module, job.qualname, job.name)
        args, kwargs = _arguments(function, job)
        with contextlib.ExitStack() as stack:
            for each in job.entered:
                stack.enter_context(functions.manager(each))
            value = function.body(*args, **kwargs)
            if inspect.isawaitable(value):  # a wrapper around an async function
                value = asyncio.run(_wait_for(value))
            encoded = encode_result(value)
    except BaseException as exc:
        return Reply(raised=raised_by(exc), charged=context.charged)
    finally:
        reports.stop()
        _flush()
    if isinstance(encoded, Failure):
        return Reply(raised=Raised(encoded, is_final=True), charged=context.charged)
    return Reply(msgspec.Raw(encoded), charged=context.charged)


def _arguments(function: TaskFunction[Any, Any], job: Job) -> tuple[Any, dict[str, Any]]:
    try:
        args, kwargs = function.signature.decode(job.args, job.kwargs)
        function.signature.check_call(args, kwargs)
    except BadArguments as exc:
        raise unfit(exc) from None
    return args, kwargs


async def _wait_for(value: Awaitable[Any]) -> Any:
    return await value


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed by the body, or full
            stream.flush()


def _log_through(connection: Connection, start: Start) -> None:
    logging.root.handlers[:] = [Records(connection)]
    for name, level in start.levels.items():
        logging.getLogger(name or None).setLevel(level)
