"""`Inbox`: the messages to one worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import anyio

from fairque.backoff import Backoff
from fairque.errors import FairqueError
from fairque.redis.backend import Backend
from fairque.redis.listener import Listener
from fairque.worker.runner import Runner
from fairque.worker.signals import Signals
from fairque.worker.steal_pause import StealPause

__all__ = ["Inbox"]

logger = logging.getLogger("fairque.worker")
_ANSWER = b"@"  # begins no name of a user


class Inbox:
    """Listens for them. Without messages the safety poll still finds all work, and renewals what was canceled.

    Args:
        listener: Hears the messages.
        backend: Where the messages come from: the queue, or one partition.
        worker_id: Names the channel.
        runner: Told what is canceled.
        steal_pause: Told that messages may have been missed.
        signals: Of the worker.
        on_work: Told that there may be work, before the signals are.
        on_answer: Given what answers a claim that rests, see `Claimer`.

    Attributes:
        has_tried: Set when it listens, or could not at the first try.
    """

    def __init__(
        self,
        listener: Listener,
        backend: Backend,
        worker_id: str,
        runner: Runner,
        steal_pause: StealPause,
        signals: Signals,
        on_work: Callable[[], None] = lambda: None,
        on_answer: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._listener = listener
        self._channel = backend.keys.wake_channel(worker_id)
        self._on_work = on_work
        self._on_answer = on_answer
        self._runner = runner
        self._steal_pause = steal_pause
        self._signals = signals
        self.has_tried = asyncio.Event()

    async def run(self) -> None:
        await self._subscribe()
        self._on_work()
        self._signals.wake()  # what came after a claim and before this was told to nobody
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await self._listener.unsubscribe(self._channel, self._on_message)

    async def _subscribe(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._listener.subscribe(self._channel, self._on_message)
                self.has_tried.set()
                return
            except FairqueError as exc:
                logger.warning("cannot listen for work, trying again: %s", exc)
                self.has_tried.set()
                await anyio.sleep(backoff.next())

    def _on_message(self, message: bytes | None) -> None:
        """Empty: there is work. None: messages may have been missed. Else it answers a claim that rests, or names user
        and id of a task to cancel.
        """
        if message and message.startswith(_ANSWER):
            self._on_answer(message)
            return
        if message:
            user, _, task_id = message.partition(b" ")
            self._runner.cancel_task(user, task_id)
            return
        if message is None:  # reconnected
            self._steal_pause.silent()
        self._on_work()
        self._signals.wake()
