"""`Threads`: the threads of a worker, in which plain functions run. One whose function is not waited for any more is
left over: nothing can stop it, so it is counted, and there are limits.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any

from fairque.redis.delivery import Delivery

__all__ = ["Threads", "TooManyThreads"]

logger = logging.getLogger("fairque.worker")
WARNING_SECONDS = 1.0
SHARE_OF_A_USER = 8
"""One of so many parts of what may be left over is a user's: then only its own tasks have to go elsewhere."""


class TooManyThreads(Exception):
    """So many are left over that a task has to run in another worker, or later."""


class Threads:
    """A thread for each plain function that runs. Those that are free serve the next one.

    They are daemons: the end of the process waits for none.

    Args:
        most_idle: Threads that are kept when nothing runs.
        most_left: Threads that may be left over before no plain function is run any more.
    """

    def __init__(self, most_idle: int, most_left: int) -> None:
        self._most_idle = most_idle
        self._most_left = most_left
        self._most_of_a_user = max(1, most_left // SHARE_OF_A_USER)
        self._idle: list[_Thread] = []
        self._left: dict[_Thread, Delivery] = {}
        self._left_of: Counter[str] = Counter()
        self._one_less = asyncio.Event()
        self._closed = False

    @property
    def left(self) -> int:
        """How many are left over."""
        return len(self._left)

    def check(self, user_id: str) -> None:
        """Whether a user's function may run. Raises `TooManyThreads`."""
        if not self._left:
            return
        if len(self._left) >= self._most_left:
            raise TooManyThreads(f"{len(self._left)} threads are left over here, as many as may be")
        if self._left_of[user_id] >= self._most_of_a_user:
            raise TooManyThreads(f"{self._left_of[user_id]} threads of this user are left over here")

    async def run(self, delivery: Delivery, call: Callable[[], Any]) -> Any:
        """What the function returns. When this is cancelled, the thread goes on."""
        thread = self._idle.pop() if self._idle else _Thread(self._end)
        future = asyncio.get_running_loop().create_future()
        thread.start(copy_context(), call, future)
        try:
            return await future
        except asyncio.CancelledError:
            if thread.is_busy:
                self._leave(thread, delivery)
            raise

    def _leave(self, thread: _Thread, delivery: Delivery) -> None:
        self._left[thread] = delivery
        self._left_of[delivery.user_id] += 1
        asyncio.get_running_loop().call_later(WARNING_SECONDS, self._warn, thread, delivery)

    def _warn(self, thread: _Thread, delivery: Delivery) -> None:
        if self._left.get(thread) is delivery and not self._closed:
            logger.warning(
                "task %r of user %r is over and goes on in its thread: %d are left over of this user, %d in all",
                delivery.id,
                delivery.user_id,
                self._left_of[delivery.user_id],
                len(self._left),
            )

    def _end(self, thread: _Thread) -> None:
        """Its function has ended, in time or not."""
        delivery = self._left.pop(thread, None)
        if delivery is not None:
            self._left_of[delivery.user_id] -= 1
            if not self._left_of[delivery.user_id]:
                del self._left_of[delivery.user_id]
            self._one_less.set()
        if self._closed or len(self._idle) >= self._most_idle:
            thread.stop()
        else:
            self._idle.append(thread)

    async def close(self, seconds: float) -> None:
        """Wait a moment for those that are left over, which have been told, and let all others end."""
        self._closed = True
        for thread in self._idle:
            thread.stop()
        self._idle.clear()
        try:
            async with asyncio.timeout(seconds):
                while self._left:
                    self._one_less.clear()
                    await self._one_less.wait()
        except TimeoutError:
            for delivery in self._left.values():
                logger.warning(
                    "task %r of user %r goes on in its thread after the stop of its worker, until its process ends",
                    delivery.id,
                    delivery.user_id,
                )


class _Thread:
    """Runs one function after the other, until it is stopped.

    Args:
        on_end: Called on the loop when a function has ended.
    """

    def __init__(self, on_end: Callable[[_Thread], None]) -> None:
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Callable[[], Callable[[], None]] | None] = SimpleQueue()
        self.is_busy = False
        threading.Thread(target=self._serve, name="fairque-task", daemon=True).start()

    def start(self, context: Context, call: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        def job() -> Callable[[], None]:
            value, error = None, None
            if not future.cancelled():
                try:
                    value = context.run(call)
                except BaseException as exc:  # SystemExit as well: it is for the loop to say what comes of it
                    error = exc
            return lambda: self._report(future, value, error)

        self.is_busy = True
        self._jobs.put(job)

    def stop(self) -> None:
        self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            report = job()
            try:
                self._loop.call_soon_threadsafe(report)
            except RuntimeError:  # the loop is closed
                return
            del job, report

    def _report(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        self.is_busy = False
        self._on_end(self)
        if future.cancelled():
            return
        if error is None:
            future.set_result(value)
        elif isinstance(error, StopIteration):
            future.set_exception(RuntimeError(f"the function raised StopIteration: {error}"))  # a future takes none
        else:
            future.set_exception(error)
