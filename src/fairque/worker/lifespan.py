"""`Lifespan`: what the tasks of a worker share, opened before its first claim and closed after its last report."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic

import anyio

from fairque.errors import FairqueError, InvalidInput
from fairque.worker.context import State
from fairque.worker.signals import Signals

__all__ = ["CLOSE_SECONDS", "Lifespan", "LifespanFunction"]

logger = logging.getLogger("fairque.worker")
_NO_STATE: Any = object()
LifespanFunction = Callable[[], AbstractAsyncContextManager[State]]
CLOSE_SECONDS = 10.0
"""What it may take to close; then it is cancelled."""
GRACE_SECONDS = 1.0
"""What it may take once it is cancelled; then it is left behind."""
SLOW_SECONDS = 10.0
"""An opening that takes longer is told."""


class Lifespan(Generic[State]):
    """Kept open by an asyncio task of its own: a worker that is cancelled does not cut its end short, and one that ends
    by itself, as the task group in it has failed, has the worker drained.

    Args:
        function: It makes the context manager; None: there is nothing to open.
        signals: Of the worker.

    Raises:
        InvalidInput: It is no such function.
    """

    def __init__(self, function: LifespanFunction[State] | None, signals: Signals) -> None:
        self._function = _checked(function)
        self._signals = signals
        self._state: Any = _NO_STATE
        self.has_opened = asyncio.Event()
        """Set at once where there is nothing to open."""
        self._is_closing = asyncio.Event()
        self._is_given_up = False
        self._error: BaseException | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """What it has yielded, while it is open. Raises `FairqueError` before and after, and without a function."""
        if self._state is _NO_STATE:
            why = "the worker has no lifespan" if self._function is None else "its lifespan is not open"
            raise FairqueError(f"there is no state: {why}; it is what Worker(queue, lifespan=…) yields")
        found: State = self._state
        return found

    async def open(self) -> None:
        """Until it is open, however long that takes, or until the worker is told to stop: then it is cancelled.

        Raises what it has raised.
        """
        if self._function is None:
            self.has_opened.set()
            return
        if self._signals.stopping:
            return
        self._keeping = asyncio.create_task(self._keep(self._function), name="fairque-lifespan")
        slow = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._tell_slow)
        events = [asyncio.create_task(event) for event in (self.has_opened.wait(), self._signals.wait_for_stop())]
        try:
            await asyncio.wait([self._keeping, *events], return_when=asyncio.FIRST_COMPLETED)
        finally:
            slow.cancel()
            for event in events:
                event.cancel()
            if not self.has_opened.is_set():
                with anyio.CancelScope(shield=True):
                    await self._give_up(self._keeping)
        if self._error is not None:
            raise self._error

    async def close(self) -> BaseException | None:
        """Logs what goes wrong, and returns it: also what has ended it before."""
        if self._keeping is not None and not self._is_given_up:
            self._is_closing.set()
            _, late = await asyncio.wait([self._keeping], timeout=CLOSE_SECONDS)
            if late:
                await self._give_up(self._keeping)
                self._error = FairqueError(f"the lifespan has not closed within {CLOSE_SECONDS:g} s")
        if self._error is not None:
            logger.error("the lifespan failed", exc_info=self._error)
        return self._error

    async def _keep(self, function: LifespanFunction[State]) -> None:
        """Nothing leaves this coroutine: SystemExit would end the loop, and with it all tasks."""
        try:
            async with _made(function) as self._state:
                self.has_opened.set()
                await self._is_closing.wait()
            if not self._is_closing.is_set():
                self._error = FairqueError("the lifespan has ended while its worker served")
        except asyncio.CancelledError:
            self._error = None if self._is_given_up else FairqueError("the lifespan has cancelled itself")
        except BaseException as exc:
            self._error = exc
        finally:
            self._state = _NO_STATE
            if self.has_opened.is_set() and not self._is_closing.is_set():
                logger.error("the lifespan has ended while its worker served: it drains")
                self._signals.stop()

    async def _give_up(self, keeping: asyncio.Task[None]) -> None:
        self._is_given_up = True
        keeping.cancel()
        _, late = await asyncio.wait([keeping], timeout=GRACE_SECONDS)
        if late:
            logger.error("the lifespan goes on, although it was cancelled: it is left behind")

    def _tell_slow(self) -> None:
        logger.warning("the lifespan is not open after %g s: nothing is claimed before", SLOW_SECONDS)


def _checked(function: LifespanFunction[State] | None) -> LifespanFunction[State] | None:
    if inspect.isasyncgenfunction(function):
        raise InvalidInput(f"lifespan {function.__qualname__} is no context manager: decorate it, @asynccontextmanager")
    if function is not None and not callable(function):
        raise InvalidInput(
            f"lifespan must be a function that makes an async context manager, not a {type(function).__name__}"
        )
    return function


def _made(function: LifespanFunction[State]) -> AbstractAsyncContextManager[State]:
    made = function()
    if not hasattr(made, "__aenter__"):
        raise InvalidInput(f"lifespan must make an async context manager, not a {type(made).__name__}")
    return made
