"""`Renewal`: renews leases from a thread with a connection of its own, so a blocked event loop costs nobody a lease."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio

from fairque.errors import FairqueError
from fairque.queue.queue import TaskQueue
from fairque.redis.delivery import Delivery
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import renew
from fairque.worker.description import describe_worker, names_known
from fairque.worker.options import WorkerOptions
from fairque.worker.runner import Runner
from fairque.worker.settler import Settler

__all__ = ["Renewal"]

logger = logging.getLogger("fairque.worker")
LOOK_SECONDS = 0.5
BLOCKED_SECONDS = 1.0
IDLE_HEARTBEAT_SECONDS = 15.0
BATCH = 500


class Renewal:
    """Renews what the settler holds, for as long as the loop ticks, and keeps the worker's entry in Redis.

    Args:
        queue: Where they are; it is open.
        options: Of the worker.
        settler: Has the deliveries that are running or not settled yet.
        runner: Told, on the loop, of deliveries that belong to others by now, and of canceled ones.
    """

    def __init__(self, queue: TaskQueue, options: WorkerOptions, settler: Settler, runner: Runner) -> None:
        self._connector = queue.connector
        self._keys = queue.keys
        self._options = options
        self._settler = settler
        self._runner = runner
        self._description = describe_worker(options)
        self._interval = queue.settings.lease_ms * 0.3 / 1000
        self._stopping = threading.Event()
        self._ended = asyncio.Event()  # joining it would need a thread, and tasks may have them all
        self._awaited: float | None = None  # since when a tick has been asked for
        self._warned = False
        self._renewed = 0.0
        self._thread: threading.Thread | None = None
        self._loop = asyncio.get_running_loop()  # which is watched

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"fairque-renew-{self._options.worker_id}", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """The thread is told to end, and waited for as long as its last request may take."""
        self._stopping.set()
        if self._thread is not None:
            with anyio.move_on_after(2 * self._connector.timeout):
                await self._ended.wait()

    def _run(self) -> None:
        requester = BlockingRequester(self._connector)
        try:
            while not self._stopping.is_set():  # at once the first time: others count the slots of this worker
                try:
                    self._look(requester)
                except Exception:  # the thread outlives whatever goes wrong in one round
                    logger.exception("renewal failed, trying again")
                self._stopping.wait(min(LOOK_SECONDS, self._interval / 2))
        finally:
            requester.close()
            self._on_loop(self._ended.set)

    def _look(self, requester: BlockingRequester) -> None:
        held = self._settler.held()
        silent = self._watch(bool(held))
        now = time.monotonic()
        due = self._renewed + (self._interval if held else IDLE_HEARTBEAT_SECONDS)
        if now < due or silent > self._options.stall_timeout:
            return
        try:
            lost, canceled = self._renew(requester, held)
        except FairqueError as exc:
            logger.warning("could not renew %d deliveries, trying again: %s", len(held), exc)
            return
        self._renewed = now
        if lost:
            self._on_loop(self._runner.drop, lost)
        if canceled:
            self._on_loop(self._runner.cancel, canceled)

    def _renew(self, requester: BlockingRequester, held: list[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        lost: list[Delivery] = []
        canceled: list[Delivery] = []
        fields = self._description | {"running": len(self._runner), "names": names_known(self._options)}
        for at in range(0, max(1, len(held)), BATCH):
            answer = renew(requester, self._keys, self._options.worker_id, fields, held[at : at + BATCH])
            lost += answer[0]
            canceled += answer[1]
        return lost, canceled

    def _watch(self, busy: bool) -> float:
        """Seconds for which a busy loop has not ticked."""
        now = time.monotonic()
        silent = now - self._awaited if self._awaited is not None else 0.0
        if silent > BLOCKED_SECONDS and not self._warned:
            self._warned = True
            logger.warning(
                "%s has blocked the event loop for %.1f s: use a plain function, which runs in a thread",
                self._runner.blocker(self._loop),
                silent,
            )
        if self._awaited is None and busy:
            self._awaited = now
            self._on_loop(self._tick)
        return silent

    def _tick(self) -> None:
        self._awaited = None
        self._warned = False

    def _on_loop(self, call: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop was closed
            self._stopping.set()
