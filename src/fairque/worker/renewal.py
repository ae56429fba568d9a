"""`Renewal`: renews leases from a thread with a connection of its own, so a blocked event loop costs nobody a lease."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio

from fairque.backoff import LONGEST, Backoff
from fairque.counted import counted
from fairque.errors import FairqueError
from fairque.queue.queue import TaskQueue
from fairque.redis.delivery import Delivery, Refusal
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import renew
from fairque.worker.description import describe_worker, names_known
from fairque.worker.last_will import PATIENCE_SECONDS, LastWill
from fairque.worker.loop_watch import LoopWatch
from fairque.worker.options import WorkerOptions
from fairque.worker.recycling import memory_used
from fairque.worker.run_times import RunTimes
from fairque.worker.runner import Runner
from fairque.worker.settler import Settler
from fairque.worker.signals import Signals
from fairque.worker.slot_watch import SlotWatch
from fairque.worker.task_log import log_fields

__all__ = ["LOOK_SECONDS", "Renewal", "longest_pause"]

logger = logging.getLogger("fairque.worker")
LOOK_SECONDS = 0.5
RENEWAL = 0.2  # of a lease, between two renewals
IDLE_HEARTBEAT_SECONDS = 15.0
BATCH = 500
STALLED = 1
"""Exit code of a process whose loop stood still."""
FAREWELL_SECONDS = PATIENCE_SECONDS + 15


class Renewal:
    """Renews what the settler holds, and keeps the worker's entry in Redis.

    Ends the process when its loop stands still for too long.

    Args:
        queue: Where they are; it is open.
        options: Of the worker.
        settler: Has the deliveries that are running or not settled yet.
        runner: Told, on the loop, of deliveries that are no longer its own, and of canceled ones.
        run_times: Told with a renewal.
        signals: Of the worker.
    """

    def __init__(
        self,
        queue: TaskQueue,
        options: WorkerOptions,
        settler: Settler,
        runner: Runner,
        run_times: RunTimes,
        signals: Signals,
    ) -> None:
        self._connector = queue.connector
        self._keys = queue.keys
        self._options = options
        self._settler = settler
        self._runner = runner
        self._run_times = run_times
        self._signals = signals
        self._description = describe_worker(options)
        self._interval = queue.settings.lease_ms * RENEWAL / 1000
        self._stopping = threading.Event()
        self._ended = asyncio.Event()  # joining it would need a thread, and tasks may have them all
        self._renewed = 0.0
        self._lease = queue.settings.lease_ms / 1000
        self._backoff = Backoff()
        self._retry_at = 0.0
        self._thread: threading.Thread | None = None
        self.has_tried = asyncio.Event()
        """Set once the worker's entry was sent, or could not be."""
        self._loop = asyncio.get_running_loop()
        self.watch = LoopWatch(runner, options.stall_timeout, self._on_loop)
        self._slots = SlotWatch(runner, options.concurrency)
        self._will = LastWill(queue, options.worker_id, settler)

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
                    self._put_off()
                self._on_loop(self.has_tried.set)
                self._rest()
        finally:
            requester.close()
            self._on_loop(self._ended.set)

    def _rest(self) -> None:
        seconds = min(LOOK_SECONDS, self._interval / 2)
        left = max(self._renewed + self._interval, self._retry_at) - time.monotonic()
        if left > 0:  # to the point: what is left of a lease is how long the process may stand still
            seconds = min(seconds, left)
        self.watch.rest(seconds, self._stopping.wait)

    def _look(self, requester: BlockingRequester) -> None:
        answered = self._settler.answered  # before what is held: it is to be no more than that
        held = self._settler.held()
        if self.watch.look(bool(held)):
            self._end_process(requester)
        self._slots.look()
        now = time.monotonic()
        has_news = held or self._run_times
        if now < max(self._renewed + (self._interval if has_news else IDLE_HEARTBEAT_SECONDS), self._retry_at):
            return
        try:
            lost, canceled = self._renew(requester, held, answered)
        except FairqueError as exc:
            what = counted(len(held), "delivery", "deliveries") if held else "the worker's entry"
            logger.warning("could not renew %s, trying again: %s", what, exc)
            self._put_off()
            return
        self._renewed = now
        self._backoff.reset()
        if lost:
            self._on_loop(self._runner.drop, lost)
        if canceled:
            self._on_loop(self._runner.cancel, canceled)

    def _put_off(self) -> None:
        """While leases last, tries come often enough to save them. Then it is the others who wait, see `StealPause`."""
        now = time.monotonic()
        may_last = now < self._renewed + self._lease
        self._retry_at = now + self._backoff.next(self._lease / 10 if may_last else longest_pause(self._lease))

    def _renew(
        self, requester: BlockingRequester, held: list[Delivery], answered: int
    ) -> tuple[list[tuple[Delivery, Refusal]], list[Delivery]]:
        lost: list[tuple[Delivery, Refusal]] = []
        canceled: list[Delivery] = []
        fields = {
            **self._description,
            "running": len(self._runner),
            "leftover": self._runner.leftover_threads,
            "waiting": self._runner.waiting,
            "memory": memory_used(),
            "draining": int(self._signals.stopping),
            "claims": answered,
            "names": names_known(self._options),
        }
        for at in range(0, max(1, len(held)), BATCH):
            is_last = at + BATCH >= len(held)
            told = fields if is_last else {}  # it is a sign of life when all have been renewed
            ended = self._run_times.take() if is_last else []
            answer = renew(requester, self._keys, self._options.worker_id, told, held[at : at + BATCH], ended)
            lost += answer[0]
            canceled += answer[1]
        return lost, canceled

    def _end_process(self, requester: BlockingRequester) -> None:
        """Nothing else gets the loop back: it may be in the middle of any code."""
        _exit_after(FAREWELL_SECONDS)  # should a log or the queue hold this thread up as well
        culprit = self._runner.blocker(self._loop)
        logger.critical(
            "%s has blocked the event loop for longer than stall_timeout (%g s): this process ends\n%s",
            self._runner.describe_blocker(self._loop),
            self._options.stall_timeout,
            self.watch.stack(),
            extra=log_fields(culprit) if culprit is not None else None,
        )
        self._will.execute(requester, culprit)
        logging.shutdown()
        os._exit(STALLED)

    def _on_loop(self, call: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop was closed
            self._stopping.set()


def longest_pause(lease: float) -> float:
    """Seconds between two tries of a worker whose leases are over."""
    return min(LONGEST, lease / 2)


def _exit_after(seconds: float) -> None:
    def leave() -> None:
        time.sleep(seconds)
        os._exit(STALLED)

    threading.Thread(target=leave, name="fairque-exit", daemon=True).start()
