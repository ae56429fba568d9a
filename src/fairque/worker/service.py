"""A worker that its process is there for: signals drain it, what is stuck ends it, and how it goes is logged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

import msgspec

from _fairque_command import REPEATED_SECONDS, taken
from fairque.errors import InvalidInput
from fairque.queue.queue import TaskQueue
from fairque.scheduler.scheduler import TaskScheduler
from fairque.worker.changes import Changes
from fairque.worker.lifeline import Parent, Word
from fairque.worker.logs import logged
from fairque.worker.options import WorkerOptions
from fairque.worker.processes import leave_lost_terminal
from fairque.worker.recycling import Recycling
from fairque.worker.reports import reporting
from fairque.worker.stuck import end_when_stuck
from fairque.worker.supervisor import Supervisor

__all__ = ["check_process", "serve", "serve_copies"]

logger = logging.getLogger("fairque.worker")
_GRACE_SECONDS = 25.0
"""What a worker may take beyond its shutdown timeout, to report its last outcomes and to close what it has opened."""
_HURRY_SECONDS = 1.0
"""The shutdown timeout of a worker that is to be started anew, as its files have changed."""


class Servant(Protocol):
    """A `Worker`."""

    queue: TaskQueue
    options: WorkerOptions
    report: Callable[[], bytes] | None

    @property
    def serves(self) -> asyncio.Event: ...

    @property
    def can_claim(self) -> bool: ...

    async def run(self) -> None: ...

    async def run_until_idle(self) -> None: ...

    async def stop(self) -> None: ...

    def retire(self) -> None: ...


def check_process() -> None:
    """Raises `InvalidInput` where signals cannot be taken."""
    if threading.current_thread() is not threading.main_thread():
        raise InvalidInput("serve() takes the signals of the process: call it in the main thread, elsewhere use run()")
    if isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), _Shutdown):
        raise InvalidInput("serve() takes the signals of the process, and another worker has them: use run()")


async def serve(
    worker: Servant,
    prepare: Callable[[], Awaitable[object]] | None = None,
    *,
    burst: bool = False,
    recycling: Recycling | None = None,
) -> None:
    """Until a signal has drained it. The queue is opened and closed, unless it is open.

    Args:
        worker: It has not run.
        prepare: Awaited when the queue is open, before anything is served.
        burst: Serve until nothing is left to do now.
        recycling: When this process has done enough, which its parent is told.
    """
    recycling = recycling or Recycling(None, None)
    worker.options = msgspec.structs.replace(worker.options, hooks=recycling.counted(logged(worker.options.hooks)))
    shutdown = _Shutdown(worker)
    with shutdown.on_signals(), end_when_stuck(worker.options.stall_timeout), shutdown.ends_quietly():
        # The reports first: no server that is started is to inherit their line.
        async with reporting(worker.report), _opened(worker.queue):
            if prepare is not None:
                await prepare()
            shutdown.serving = True
            queue, loop = worker.queue, type(asyncio.get_running_loop()).__module__.partition(".")[0]
            logger.info("serves queue %r at %s on %s", queue.name, queue.connector.safe_url, loop)
            async with _told(shutdown.parent, worker, recycling):
                await (_run_burst(worker) if burst else worker.run())


async def serve_copies(count: int, *, reload: bool = False) -> None:
    """Start this program anew, so often, and keep the copies running. Raises `SystemExit` where one failed for good."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None:
        raise InvalidInput("processes: this program is started anew for each, and it is no file")
    changes = Changes([Path.cwd(), Path(file).parent]) if reload else None
    if code := await Supervisor([sys.orig_argv[1:]] * count, changes).run():
        raise SystemExit(code)


async def _run_burst(worker: Servant) -> None:
    """What schedules have due comes first: else it would be a matter of luck whether that is still served."""
    if worker.options.scheduler:
        try:
            await TaskScheduler(worker.queue).fire_due()
        except InvalidInput as exc:  # more than it fires at once: the next burst goes on with them
            logger.warning("schedules: %s", exc)
    await worker.run_until_idle()


@contextlib.asynccontextmanager
async def _told(parent: Parent | None, worker: Servant, recycling: Recycling) -> AsyncIterator[None]:
    """The parent is told how far the worker is."""
    if parent is None:
        yield
        return
    telling = asyncio.create_task(_tell(parent, worker, recycling))
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait([telling])
    if not telling.cancelled():
        telling.result()


async def _tell(parent: Parent, worker: Servant, recycling: Recycling) -> None:
    await worker.serves.wait()
    try:
        recycling.check()
    except InvalidInput:
        await worker.stop()
        raise
    parent.tell(Word.SERVES)
    await recycling.over()
    logger.info("this process has done enough: another one is to take its place")
    parent.tell(Word.IS_FULL)


@contextlib.asynccontextmanager
async def _opened(queue: TaskQueue) -> AsyncIterator[None]:
    if queue.connector.is_open:
        yield
    else:
        async with queue:
            yield


class _Shutdown:
    """The first signal stops the worker, which drains; a second one leaves at once.

    Signals are taken by the interpreter and not by the loop, so that a task that blocks the loop cannot hold up the
    second one. A process with a parent of ours leaves it to that one to end it: it may get each signal twice, from its
    parent and from whoever signals every process of a service.
    """

    def __init__(self, worker: Servant) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self._asked_at: float | None = None
        self.parent: Parent | None = None
        self._cancellations = 0
        self._repeated: asyncio.TimerHandle | None = None
        self.serving = False

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        with taken(self._on_signal):
            self.parent = Parent.of_this_process()
            if self.parent is not None:
                self.parent.follow(self._on_word, self._on_parents_death)
            try:
                yield
            finally:
                if self.parent is not None:
                    self.parent.tell(Word.LEAVES)

    @contextlib.contextmanager
    def ends_quietly(self) -> Iterator[None]:
        """What was cancelled because it did not serve yet has done what it was told."""
        try:
            yield
        except asyncio.CancelledError:
            others = self._main.cancelling() - self._cancellations if self._main is not None else 0
            if not self._cancellations or others > 0:
                raise
            for _ in range(self._cancellations):
                self._main.uncancel()  # type: ignore[union-attr]
        finally:
            if self._repeated is not None:
                self._repeated.cancel()

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        if self._asked_at is None:
            self._ask(signal.Signals(signum).name)
        elif self.parent is None and time.monotonic() - self._asked_at > REPEATED_SECONDS:
            # Not through logging, which this may have interrupted; and the terminal may be gone.
            with contextlib.suppress(OSError):
                os.write(2, b"second signal: leaving at once, other workers take over what runs here\n")
            os._exit(128 + signum)

    def _ask(self, reason: str) -> None:
        self._asked_at = time.monotonic()
        leave_lost_terminal()
        self._loop.call_soon_threadsafe(self._stop, reason)

    def _stop(self, reason: str) -> None:
        logger.info("%s: stopping%s", reason, "" if self.parent is not None else ", a second signal leaves at once")
        if self.serving:
            self._stopping = self._loop.create_task(self._worker.stop())
        elif self._main is not None:
            self._cut_short(self._main)

    def _cut_short(self, main: asyncio.Task[object]) -> None:
        """Again and again: what is being connected may take a cancellation for a failure, and try anew."""
        self._cancellations += 1
        main.cancel()
        self._repeated = self._loop.call_later(REPEATED_SECONDS, self._cut_short, main)

    def _on_word(self, word: Word) -> None:
        """In a thread."""
        if word is Word.ASK:
            with contextlib.suppress(RuntimeError):  # the loop is closed: that is an answer as well
                self._loop.call_soon_threadsafe(self._answer)
        elif word is Word.RETIRE:
            self._loop.call_soon_threadsafe(self._worker.retire)
        elif word is Word.HURRY and self._asked_at is None:
            options = self._worker.options
            seconds = min(_HURRY_SECONDS, options.shutdown_timeout)
            self._worker.options = msgspec.structs.replace(options, shutdown_timeout=seconds)
            self._ask("files have changed")

    def _answer(self) -> None:
        if self.parent is not None:
            self.parent.tell(Word.CLAIMS if self._worker.can_claim else Word.CLAIMS_NOTHING)

    def _on_parents_death(self) -> None:
        """In a thread. A loop that is blocked cannot drain: the process ends all the same."""
        if self._asked_at is None:
            self._ask("the parent process is gone")
        time.sleep(self._worker.options.shutdown_timeout + _GRACE_SECONDS)
        os._exit(1)
