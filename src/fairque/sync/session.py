"""`Session`: an open queue on the event loop that all blocking queues of this process share."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortalProvider

from fairque import ConfigError, FairqueError, TaskQueue

__all__ = ["Session", "opening"]

T = TypeVar("T")


class Session:
    """Keeps the loop running until it is closed. It belongs to the process that made it.

    Args:
        queue: Not open yet. From then on it belongs to the loop.
    """

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self._pid = os.getpid()
        self._portal = _processes[-1].loop.__enter__()
        self._thread = self._portal.call(threading.get_ident)
        self._calling = threading.Lock()
        self._is_closed = False
        _processes[-1].sessions.add(self)

    @property
    def is_inherited(self) -> bool:
        """It was opened by a process of which this one is a fork: its loop is not here."""
        return self._pid != os.getpid()

    def run(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Call it on the loop and wait for what it returns. When the wait is interrupted, so is the call."""
        self._check()

        async def call() -> T:
            return await function(*args, **kwargs)

        with self._calling:  # a loop that is just ending would never answer
            if self._is_closed:
                raise ConfigError("the queue is closed")
            answer = self._start(call)
        try:
            return answer.result()
        except BaseException:
            answer.cancel()
            raise

    def _start(self, call: Callable[[], Awaitable[T]]) -> Future[T]:
        """Handing it over takes a moment, and an interrupt in it must not leave the call running."""
        started: list[asyncio.Task[Any] | None] = []

        async def noted() -> T:
            started.append(asyncio.current_task())
            return await call()

        try:
            return self._portal.start_task_soon(noted)
        except BaseException:
            self._portal.start_task_soon(lambda: [task.cancel() for task in started if task is not None])
            raise

    def entered(self, manager: AbstractAsyncContextManager[T]) -> AbstractContextManager[T]:
        """For ``with``; both of its ends run on the loop."""
        return self._portal.wrap_async_context_manager(manager)

    def close(self) -> None:
        """Close the queue; the last one ends the loop."""
        self._check()
        with self._calling:
            if self._is_closed:
                return
            self._is_closed = True
            answer = self._portal.start_task_soon(self.queue.close)
        try:
            answer.result()
        finally:
            _processes[-1].sessions.discard(self)
            _processes[-1].loop.__exit__(None, None, None)

    def _check(self) -> None:
        if self.is_inherited:
            raise FairqueError(f"this was made by process {self._pid}, before a fork: ask the queue for a new one")
        if self._thread == threading.get_ident():
            raise FairqueError("a blocking call on the queue's own event loop would wait for itself: use a thread")


class _Process:
    """What the queues of a process share."""

    def __init__(self) -> None:
        self.opening = threading.RLock()
        self.loop = BlockingPortalProvider()
        self.sessions: set[Session] = set()


_processes = [_Process()]
"""This one is the last. Those of which it is a fork are kept for ever: a connection that is collected here would be
taken off the loop there."""


def opening() -> threading.RLock:
    """To be held by whoever opens or closes a queue."""
    return _processes[-1].opening


def _close_all() -> None:
    for session in list(_processes[-1].sessions):
        with contextlib.suppress(FairqueError, RuntimeError):  # no more threads: an embedded server ends by itself
            session.close()


atexit.register(_close_all)
# In a forked child the loop does not run, and locks may be held for ever.
os.register_at_fork(after_in_child=lambda: _processes.append(_Process()))
