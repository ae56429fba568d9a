"""`Progress`: what running tasks report. At most a few reports a second of each task reach Redis, and the last one."""

from __future__ import annotations

import asyncio
import logging
import time

from fairque.codec.codec import Kind
from fairque.errors import FairqueError
from fairque.redis.delivery import Delivery
from fairque.redis.store import Store
from fairque.tasks.sealed import seal_text

__all__ = ["Progress"]

logger = logging.getLogger("fairque.worker")
INTERVAL = 0.25


class Progress:
    """Keeps the newest report of each task and sends it when its time has come.

    Made on the loop that sends; `report` may be called from any thread.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self._newest: dict[int, tuple[Delivery, float, str]] = {}
        self._sent: dict[int, float] = {}
        self._senders: list[asyncio.Task[None] | None] = [None] * len(store.parts)

    def report(self, delivery: Delivery, fraction: float, message: str) -> None:
        self._newest[id(delivery)] = (delivery, fraction, message)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake, delivery.partition)

    def forget(self, delivery: Delivery) -> None:
        """The task has ended: what it last said does not matter any more."""
        self._newest.pop(id(delivery), None)
        self._sent.pop(id(delivery), None)

    async def stop(self) -> None:
        self._loop = None
        senders = [sender for sender in self._senders if sender is not None]
        for sender in senders:
            sender.cancel()
        if senders:
            await asyncio.wait(senders)

    def _wake(self, partition: int) -> None:
        sender = self._senders[partition]
        if sender is None or sender.done():
            self._senders[partition] = asyncio.create_task(self._send_all(partition), name="fairque-progress")

    async def _send_all(self, partition: int) -> None:
        """Each partition by itself: one that does not answer holds up no other."""
        while told := [key for key, report in list(self._newest.items()) if report[0].partition == partition]:
            now = time.monotonic()
            due = [key for key in told if now - self._sent.get(key, 0.0) >= INTERVAL]
            for key in due:
                report = self._newest.pop(key, None)
                if report is not None:
                    self._sent[key] = now
                    await self._send(*report)
            if not due:
                await asyncio.sleep(INTERVAL / 4)

    def _sealed(self, delivery: Delivery, message: str) -> str:
        """For this attempt, as the script notes it beside the text."""
        if (sealer := self._store.sealer) is None:
            return message
        return seal_text(sealer, Kind.PROGRESS, delivery.user_id, delivery.id, message, delivery.mark)

    async def _send(self, delivery: Delivery, fraction: float, message: str) -> None:
        try:
            await self._store.progress(delivery, fraction, self._sealed(delivery, message))
        except FairqueError as exc:
            logger.debug("a progress report was lost: %s", exc)
