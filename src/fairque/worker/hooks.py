"""`Hooks`: functions of the user that are told how tasks end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from fairque.redis.delivery import Delivery
from fairque.tasks.failure import Failure
from fairque.tasks.message import BadMessage, decode_body

__all__ = ["Hook", "Hooks", "TaskEvent", "in_turn"]

logger = logging.getLogger("fairque.worker")


class TaskEvent(msgspec.Struct, frozen=True):
    """What hooks are told. `failure` is None where nothing has failed; `run_seconds` is 0 for what has not begun.

    `wait_seconds` is how long the task had waited for its turn when this attempt was handed out, by the server's clock;
    None for later attempts, and for what has put itself off.
    """

    user_id: str
    task_id: str
    name: str
    attempt: int
    run_seconds: float
    failure: Failure | None = None
    wait_seconds: float | None = None
    queue_name: str = ""
    body: bytes = b""  # of the message

    @property
    def headers(self) -> Mapping[str, str]:
        """Those of the task; empty where its message cannot be read."""
        try:
            overrides = decode_body(self.body).overrides
        except BadMessage:
            return {}
        return overrides.headers if overrides is not None else {}

    def __repr__(self) -> str:  # without the arguments
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name != "body")
        return f"TaskEvent({', '.join(shown)})"


Hook = Callable[[TaskEvent], Awaitable[None] | None]


def in_turn(first: Callable[[TaskEvent], None], hook: Hook | None) -> Hook:
    """A hook that tells both."""
    if hook is None:
        return first

    def both(event: TaskEvent) -> Awaitable[None] | None:
        first(event)
        return hook(event)

    return both


class Hooks:
    """The hooks of a worker by event: success, failure, retry, timeout, cancel, release, snooze, lost.

    What a hook raises is logged and harms nobody.
    """

    def __init__(self, hooks: Mapping[str, Hook | None], queue_name: str) -> None:
        self._hooks = hooks
        self._queue_name = queue_name
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, event: str, delivery: Delivery, name: str, began: float, failure: Failure | None = None) -> None:
        hook = self._hooks[event]
        if hook is None:
            return
        told = TaskEvent(
            delivery.user_id,
            delivery.id,
            name,
            delivery.attempt,
            time.monotonic() - began,
            failure,
            _waited(delivery),
            self._queue_name,
            delivery.body,
        )
        try:
            awaitable = hook(told)
        except BaseException:  # SystemExit included: it would end the loop, and with it all tasks
            logger.exception("hook on_%s failed", event)
            return
        if awaitable is not None:
            task = asyncio.get_running_loop().create_task(_finish(event, awaitable))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def runs(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this is an async hook under way."""
        return task in self._tasks

    async def drain(self, seconds: float) -> None:
        """Wait for async hooks under way, and cancel those that take longer."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=seconds)
        for task in late:
            task.cancel()


async def _finish(event: str, awaitable: Awaitable[None]) -> None:
    try:
        await awaitable
    except BaseException:
        logger.exception("hook on_%s failed", event)


def _waited(delivery: Delivery) -> float | None:
    """Seconds, of a first attempt."""
    if delivery.attempt != 1 or delivery.snoozed:
        return None
    return max(0.0, (delivery.started_ms - delivery.queued_ms) / 1000)
