"""`Renewal`: renews leases from a thread with a connection of its own, so a blocked event loop costs nobody a lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from zlib import crc32

import anyio

from fairque.backoff import LONGEST, Backoff
from fairque.counted import counted
from fairque.errors import FairqueError
from fairque.queue.queue import TaskQueue
from fairque.redis.backend import Backend
from fairque.redis.delivery import Delivery, Refusal
from fairque.redis.places import UserElsewhere
from fairque.redis.requester import BlockingRequester
from fairque.redis.shared_blocking import BlockingConnections
from fairque.redis.signs import Sign, Signed, sign, sign_together
from fairque.redis.store import WORKER_TTL_MS, Renewed, renew
from fairque.redis.url import Address
from fairque.scheduler.scheduler import TaskScheduler
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
SPREAD_HEARTBEAT_SECONDS, AS_OFTEN = 25.0, 4
"""To each of so many partitions. Where there are more, and many workers, all but one partition hear of an idle worker
more rarely, and forget it later."""
ALONG = 0.75
"""Of a pause: partitions that heard of an idle worker so long ago hear of it when another one of their node has to."""
BATCH = 500
STALLED = 1
"""Exit code of a process whose loop stood still."""
FAREWELL_SECONDS = PATIENCE_SECONDS + 15


class _Round:
    """The renewals in one partition."""

    def __init__(self, backend: Backend, settler: Settler, run_times: RunTimes) -> None:
        self.keys = backend.keys
        self.connector = backend.connector
        self.settler = settler
        self.run_times = run_times
        self.renewed = self.retry_at = 0.0
        self.told: dict[str, Any] = {}  # of the worker, as far as it is certain what is known there
        self.backoff = Backoff()


class _Node:
    """A thread for the partitions of one node: when that does not answer, those of others are renewed all the same."""

    def __init__(self, look: Callable[[Sequence[_Round], BlockingConnections], None], *, is_known: bool) -> None:
        self._look = look
        self._is_known = is_known
        self._rounds: queue.SimpleQueue[list[_Round] | None] = queue.SimpleQueue()
        self._is_busy = False
        threading.Thread(target=self._run, name="fairque-renew-node", daemon=True).start()

    def look_at(self, rounds: list[_Round]) -> None:
        """Unless it is still at them."""
        if not self._is_busy:
            self._is_busy = True
            self._rounds.put(rounds)

    def stop(self) -> None:
        self._rounds.put(None)

    def _run(self) -> None:
        connections = BlockingConnections()
        while (rounds := self._rounds.get()) is not None:
            self._look(rounds, connections)
            self._is_busy = False
            if not self._is_known:  # where they are is known by now
                connections.close()
        connections.close()


class Renewal:
    """Renews what the settlers hold, and keeps the worker's entry in each partition of the queue.

    Ends the process when its loop stands still for too long.

    Args:
        task_queue: Where they are; it is open.
        backends: Of its partitions.
        options: Of the worker.
        settlers: Of each partition, with the deliveries that are running or not settled yet.
        runner: Told, on the loop, of deliveries that are no longer its own, and of canceled ones.
        run_times: Of each partition: told with a renewal.
        signals: Of the worker.
    """

    def __init__(
        self,
        task_queue: TaskQueue,
        backends: Sequence[Backend],
        options: WorkerOptions,
        settlers: Sequence[Settler],
        runner: Runner,
        run_times: Sequence[RunTimes],
        signals: Signals,
    ) -> None:
        self._connector = task_queue.connector
        self._rounds = [_Round(*each) for each in zip(backends, settlers, run_times, strict=True)]
        self._home = self._rounds[crc32(options.worker_id.encode()) % len(self._rounds)]
        self.fleet: Callable[[], int] = lambda: 1
        """How many workers there are, more or less."""
        self.scheduler: TaskScheduler | None = None
        """Of this worker: told where nobody looks at schedules."""
        self._ttl_ms = round(WORKER_TTL_MS * max(1, len(backends) / AS_OFTEN))
        self._options = options
        self._runner = runner
        self._signals = signals
        self._description = describe_worker(options)
        self._interval = task_queue.settings.lease_ms * RENEWAL / 1000
        self._stopping = threading.Event()
        self._ended = asyncio.Event()  # joining it would need a thread, and tasks may have them all
        self._nodes: dict[Address | None, _Node] = {}
        self._settings = task_queue.settings
        self._lease = task_queue.settings.lease_ms / 1000
        self._thread: threading.Thread | None = None
        self.has_tried = asyncio.Event()
        """Set once the worker's entry was sent, or could not be."""
        self._loop = asyncio.get_running_loop()
        self.watch = LoopWatch(runner, options.stall_timeout, self._on_loop)
        self._slots = SlotWatch(runner, options.concurrency)

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
        connections = BlockingConnections()
        try:
            while not self._stopping.is_set():  # at once the first time: others count the slots of this worker
                with self._outliving(self._rounds):
                    self._look(connections)
                self._on_loop(self.has_tried.set)
                self._rest()
        finally:
            connections.close()
            for node in self._nodes.values():
                node.stop()
            self._on_loop(self._ended.set)

    @contextlib.contextmanager
    def _outliving(self, rounds: Sequence[_Round]) -> Iterator[None]:
        """The thread outlives whatever goes wrong in a round."""
        try:
            yield
        except Exception:
            logger.exception("renewal failed, trying again")
            for each in rounds:
                self._put_off(each)

    def _rest(self) -> None:
        seconds = min(LOOK_SECONDS, self._interval / 2)
        now = time.monotonic()
        left = min(max(each.renewed + self._interval, each.retry_at) - now for each in self._rounds)
        if left > 0:  # to the point: what is left of a lease is how long the process may stand still
            seconds = min(seconds, left)
        self.watch.rest(seconds, self._stopping.wait)

    def _look(self, connections: BlockingConnections) -> None:
        if self.watch.look(any(each.settler.holds for each in self._rounds)):
            self._end_process()
        self._slots.look()
        if all(each.connector is self._connector for each in self._rounds):
            self._look_at_all(self._rounds, connections)
        else:
            self._look_at_nodes()

    def _look_at_nodes(self) -> None:
        """Of a cluster."""
        rounds: defaultdict[Address | None, list[_Round]] = defaultdict(list)
        for each in self._rounds:
            rounds[each.connector.address].append(each)
        for address, there in rounds.items():
            if address not in self._nodes:
                self._nodes[address] = _Node(self._look_at_all, is_known=address is not None)
            self._nodes[address].look_at(there)

    def _look_at_all(self, rounds: Sequence[_Round], connections: BlockingConnections) -> None:
        """Those of one node."""
        with self._outliving(rounds), contextlib.suppress(FairqueError):
            self._sign_together(rounds, connections)
        for each in rounds:
            with self._outliving([each]):
                self._look_at(each, connections.requester(each.connector))

    def _sign_together(self, rounds: Sequence[_Round], connections: BlockingConnections) -> None:
        """Idle workers are many: what one has to tell a node goes there in one message, with what is due next. What
        does not come through that way is told alone.
        """
        answered = [each.settler.answered for each in rounds]  # before what is held, see `_look_at`
        idle = [(each, claims) for each, claims in zip(rounds, answered, strict=True) if self._is_idle(each)]
        if not any(self._is_due(each, 0, claims) for each, claims in idle):
            return
        along = [(each, claims) for each, claims in idle if self._is_due(each, 0, claims, ALONG)]
        about, now = self._about(), time.monotonic()
        told = [about | {"claims": claims} for _, claims in along]
        signs = [
            (each.connector, each.keys, self._sign(each, fields)) for (each, _), fields in zip(along, told, strict=True)
        ]
        for (each, _), fields, signed in zip(along, told, sign_together(connections, signs), strict=True):
            if signed is not None and self._note_signed(each, fields, signed):
                each.renewed = now
                each.backoff.reset()

    def _look_at(self, each: _Round, requester: BlockingRequester) -> None:
        answered = each.settler.answered  # before what is held: it is to be no more than that
        held = each.settler.held()
        if not self._is_due(each, len(held), answered):
            return
        now = time.monotonic()
        try:
            renewed = self._renew(requester, each, held, answered)
        except FairqueError as exc:
            what = counted(len(held), "delivery", "deliveries") if held else "the worker's entry"
            logger.warning("could not renew %s, trying again: %s", what, exc)
            self._put_off(each)
            return
        each.renewed = now
        each.backoff.reset()
        if renewed.lost:
            self._on_loop(self._runner.drop, renewed.lost)
        if renewed.canceled:
            self._on_loop(self._runner.cancel, renewed.canceled)
        for delivery, elsewhere in renewed.moved:
            self._on_loop(each.settler.follow, delivery, elsewhere)
        if renewed.is_to_fire:
            self._fire(each)

    def _fire(self, each: _Round) -> None:
        if self.scheduler is not None:
            self._on_loop(self.scheduler.look, self._rounds.index(each))

    def _is_due(self, each: _Round, held: int, answered: int, part: float = 1) -> bool:
        """Whether so much of its pause is over."""
        return time.monotonic() >= max(each.renewed + part * self._pause(each, held, answered), each.retry_at)

    def _pause(self, each: _Round, held: int, answered: int) -> float:
        """Seconds between two renewals. Of many partitions, an idle worker claims more rarely than once in a lease, and
        each claim is a sign that would be missed: so it is told that nothing came of it.
        """
        if held or each.run_times:
            return self._interval
        if len(self._rounds) == 1:
            return IDLE_HEARTBEAT_SECONDS
        if each.told.get("claims") != answered:
            return self._interval
        return SPREAD_HEARTBEAT_SECONDS * (1 if each is self._home else self._rarity())

    def _rarity(self) -> float:
        """Some worker gives a sign to each partition every few seconds, so that it is known that all users are served;
        those that serve some of them do so themselves.
        """
        if self._options.groups != [()]:
            return 1
        return max(1, min(len(self._rounds) / AS_OFTEN, self.fleet() / 2))

    def _put_off(self, each: _Round) -> None:
        """While leases last, tries come often enough to save them. Then it is the others who wait, see `StealPause`."""
        now = time.monotonic()
        may_last = now < each.renewed + self._lease
        each.retry_at = now + each.backoff.next(self._lease / 10 if may_last else longest_pause(self._lease))

    def _renew(self, requester: BlockingRequester, each: _Round, held: list[Delivery], answered: int) -> Renewed:
        fields = self._about() | {"claims": answered}
        if self._is_idle(each) and not held:
            signed = sign(requester, each.keys, self._sign(each, fields))
            if self._note_signed(each, fields, signed):
                return Renewed([], [], [], is_to_fire=False)
        each.told = {}
        renewed = self._renew_all(requester, each, held, fields)
        each.told = {} if held else fields  # that it has nothing any more is told with all the rest
        return renewed

    def _about(self) -> dict[str, Any]:
        """What is told of the worker, but for what differs from partition to partition."""
        return {
            **self._description,
            "running": len(self._runner),
            "leftover": self._runner.leftover_threads,
            "waiting": self._runner.waiting,
            "memory": memory_used(),
            "draining": int(self._signals.stopping),
            "names": names_known(self._options),
        }

    @property
    def _scheduler_name(self) -> str:
        return self.scheduler.name if self.scheduler is not None else ""

    def _is_idle(self, each: _Round) -> bool:
        """Whether a sign of life says all that there is to say, which costs a fraction."""
        return bool(each.told) and not (each.settler.holds or each.run_times)

    def _sign(self, each: _Round, fields: dict[str, Any]) -> Sign:
        """Until there is an answer, what has changed is not certain."""
        changed = {name: of for name, of in fields.items() if each.told.get(name) != of}
        each.told = {name: of for name, of in each.told.items() if name not in changed}
        return Sign(self._options.worker_id, self._ttl_ms, changed, self._scheduler_name)

    def _note_signed(self, each: _Round, fields: dict[str, Any], signed: Signed) -> bool:
        """Returns whether that was enough: else it is to renew, with all that is to be known."""
        each.told = {} if signed.is_to_renew else fields
        if signed.is_to_fire:
            self._fire(each)
        return not signed.is_to_renew

    def _renew_all(
        self, requester: BlockingRequester, each: _Round, held: list[Delivery], fields: dict[str, Any]
    ) -> Renewed:
        lost: list[tuple[Delivery, Refusal]] = []
        canceled: list[Delivery] = []
        moved: list[tuple[Delivery, UserElsewhere]] = []
        is_to_fire, scheduler = False, self._scheduler_name
        for at in range(0, max(1, len(held)), BATCH):
            is_last = at + BATCH >= len(held)
            told = fields if is_last else {}  # it is a sign of life when all have been renewed
            ended = each.run_times.take() if is_last else []
            part = held[at : at + BATCH]
            answer = renew(requester, each.keys, self._options.worker_id, told, part, ended, self._ttl_ms, scheduler)
            lost += answer.lost
            canceled += answer.canceled
            moved += answer.moved
            is_to_fire = is_to_fire or answer.is_to_fire
        return Renewed(lost, canceled, moved, is_to_fire)

    def _end_process(self) -> None:
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
        self._tell_last_wills(culprit)
        logging.shutdown()
        os._exit(STALLED)

    def _tell_last_wills(self, culprit: Delivery | None) -> None:
        """To all partitions at once: one may be away."""
        wills = [threading.Thread(target=self._tell_last_will, args=(each, culprit)) for each in self._rounds]
        for will in wills:
            will.start()
        for will in wills:
            will.join()

    def _tell_last_will(self, each: _Round, culprit: Delivery | None) -> None:
        requester = BlockingRequester(each.connector)
        LastWill(each.keys, self._settings, self._options.worker_id, each.settler).execute(requester, culprit)
        requester.close()

    def _on_loop(self, call: Callable[..., object], *args: Any) -> None:
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
