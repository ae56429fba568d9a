"""`Runner`: the tasks that run in this worker: started, timed out, canceled, abandoned, put back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextvars import Context
from functools import partial
from typing import Any, Literal

import anyio

from fairque.backoff import Backoff
from fairque.counted import counted
from fairque.errors import BadArguments, BrokenSeal, FairqueError, UnknownKey
from fairque.models import FailureKind
from fairque.redis.delivery import Delivery, Outcome, Refusal
from fairque.redis.places import UserElsewhere
from fairque.redis.store import Store
from fairque.tasks.failure import Failure
from fairque.tasks.message import BadMessage, name_in
from fairque.worker.context import running
from fairque.worker.declared_limits import LimitDeclarations
from fairque.worker.executor import Executor, PutBack, UnknownName
from fairque.worker.group import Group, Served
from fairque.worker.hooks import Hooks
from fairque.worker.options import WorkerOptions
from fairque.worker.outcomes import Outcomes
from fairque.worker.run_times import RunTimes
from fairque.worker.running_task import RunningTask
from fairque.worker.settler import Settler
from fairque.worker.settlers import Settlers
from fairque.worker.signals import Signals
from fairque.worker.task_log import log_about
from fairque.worker.threads import TooManyThreads
from fairque.worker.unsaid import Restated

__all__ = ["Runner"]

SURVIVOR_SECONDS = 1.0
LONGEST_RETURN_MS = 60_000
MOST_NAMED = 3
EVENTS = {"finished": "success", "failed": "failure", "retry": "retry", "snoozed": "snooze"}
"""What hooks are told of an outcome; of others nothing."""


class Runner:
    """Starts deliveries and sees to it that each gets one outcome.

    Bodies run as plain asyncio tasks, held in a set until they end: an anyio task group costs seven times as much for
    each, and they must not bring each other down.

    Args:
        executor: Runs one body.
        outcomes: Says what its end means.
        settler: Takes the outcomes.
        hooks: Told how tasks end.
        options: Of the worker: how much patience it has with tasks.
        signals: Woken when a slot has become free; whether the worker stops.
        limits: What was claimed without regard for one of these is put back.
        stores: Take the receipt of suspects, each of its partition.
        run_times: Take how long those ran that ended by themselves, each of its partition.
    """

    def __init__(
        self,
        executor: Executor,
        outcomes: Outcomes,
        settler: Settler | Settlers,
        hooks: Hooks,
        options: WorkerOptions,
        signals: Signals,
        limits: LimitDeclarations,
        stores: Sequence[Store],
        run_times: Sequence[RunTimes],
    ) -> None:
        self._stores = stores
        self._run_times = run_times
        self._executor = executor
        self._outcomes = outcomes
        self._settler = settler
        self._hooks = hooks
        self._options = options
        self._signals = signals
        self._limits = limits
        self._runs: dict[int, RunningTask] = {}  # by identity of the delivery
        self._beside = 0  # of those, what runs in the slot of another one
        self._bodies: dict[asyncio.Task[Any], Delivery] = {}  # until they end, which may be after their run
        self._survivors: set[asyncio.TimerHandle] = set()
        self._arrived: list[Delivery] = []  # not started yet
        self._arriving: dict[int, tuple[Delivery, asyncio.Task[None]]] = {}  # suspects, until that is noted
        self._prepared: Delivery | None = None  # at this moment

    def __len__(self) -> int:
        """Slots in use."""
        return len(self._runs) - self._beside + len(self._arrived) + len(self._arriving)

    @property
    def leftover_threads(self) -> int:
        """Threads whose tasks are over."""
        return self._executor.leftover_threads

    def take(self, deliveries: list[Delivery], at_once: bool) -> None:
        """Give them slots. They are started at once, or a moment later, so that the next call goes out first."""
        for delivery in deliveries:
            self._settler.hold(delivery)
            for follower in delivery.followers:
                self._settler.hold(follower)
        self._arrived += deliveries
        if at_once:
            self._start_arrived()
        else:
            asyncio.get_running_loop().call_soon(self._start_arrived)

    def _start_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        for delivery in arrived:
            if delivery.followers:
                self._start_together([delivery, *delivery.followers])
            else:
                self._start(delivery)

    def _start(self, delivery: Delivery, is_noted: bool = False) -> None:
        run = self._made_ready(delivery, is_noted)
        if run is not None:
            self._launch(run)

    def _start_together(self, deliveries: list[Delivery]) -> None:
        """In one slot, as their body serves them all."""
        runs = [run for delivery in deliveries if (run := self._made_ready(delivery)) is not None]
        are_one = all(run.function is not None and run.function.collects for run in runs)
        if len(runs) > 1 and are_one and self._limits.cover(runs[0].function):
            group = Group(runs, self._serve)
            self._beside += len(runs) - 1
            for run in runs:
                run.group = group
        for run in runs:
            self._launch(run)

    def _serve(self, runs: list[RunningTask], context: Context | None) -> asyncio.Task[list[Served]]:
        """The body of a group."""
        body = asyncio.get_running_loop().create_task(self._executor.run_together(runs), context=context)
        self._bodies[body] = runs[0].delivery
        body.add_done_callback(self._bodies.pop)
        return body

    def _made_ready(self, delivery: Delivery, is_noted: bool = False) -> RunningTask | None:
        """What cannot run here has its outcome at once; that a suspect arrived is noted before any code of it runs."""
        if delivery.canceling:
            self._settler.report(Outcome(delivery, "canceled"))
            self._hooks.tell("cancel", delivery, name_in(delivery.body), time.monotonic())
            return None
        if not delivery.body or self._signals.stopping:
            self._put_back(delivery)
            return None
        try:
            if delivery.deaths >= self._options.max_deliveries:
                dead = counted(delivery.deaths, "worker")
                text = f"{dead} fell silent that ran nothing else, or whose event loop it had blocked"
                self._give_up(delivery, Failure(FailureKind.LOST, "TaskLost", text))
                return None
            if delivery.lost and not is_noted:
                self._let_arrive(delivery)
                return None
            return self._prepare(delivery)
        except (UnknownName, TooManyThreads, Restated, UnknownKey) as exc:
            self._return(delivery, exc)
        except (BadMessage, BrokenSeal) as exc:
            self._give_up(delivery, Failure(FailureKind.BAD_MESSAGE, type(exc).__name__, str(exc)))
        except BadArguments as exc:
            self._give_up(delivery, Failure(FailureKind.BAD_ARGUMENTS, "BadArguments", str(exc)))
        except BaseException as exc:  # whatever code of an argument's class raised, it is this delivery's own
            log_about(logging.ERROR, delivery, "cannot be prepared", exc_info=True)
            self._give_up(delivery, Failure(FailureKind.BAD_MESSAGE, type(exc).__name__, str(exc)))
        return None

    def _prepare(self, delivery: Delivery) -> RunningTask:
        """Decoding arguments may run code of their classes, on the loop."""
        self._prepared = delivery
        try:
            return self._executor.prepare(delivery)
        finally:
            self._prepared = None

    def drop(self, deliveries: list[tuple[Delivery, Refusal]]) -> None:
        """They are not this worker's any more: whatever their bodies do is refused."""
        for delivery, why in deliveries:
            run = self._runs.get(id(delivery))
            if run is None:
                continue
            self._close(run)
            self._settler.forget(delivery)
            self._log_loss(delivery, why)
            self._tell("lost", run)
            self._abandon(run, "lost", "its delivery was lost")

    def _log_loss(self, delivery: Delivery, why: Refusal) -> None:
        log_about(logging.WARNING, delivery, "was lost: %s", why.text)

    def cancel_task(self, user: bytes, task_id: bytes) -> None:
        """By name, as the message has it."""
        arrived = [each for delivery in self._arrived for each in (delivery, *delivery.followers)]
        for delivery in [*arrived, *(delivery for delivery, _ in self._arriving.values())]:
            delivery.canceling = delivery.canceling or _is(delivery, user, task_id)
        self.cancel([run.delivery for run in self._runs.values() if _is(run.delivery, user, task_id)])

    def cancel(self, deliveries: list[Delivery]) -> None:
        """Somebody does not want them any more. Their bodies may clean up; then, or after the grace, they have ended.

        A thread cannot be stopped: it is told by `current_task().canceled`, and left alone after the grace.
        """
        for delivery in deliveries:
            run = self._runs.get(id(delivery))
            if run is None or run.canceled:
                continue
            run.canceled, run.cut_off = True, "canceled"
            if run.timer is not None:
                run.timer.cancel()
            run.timer = asyncio.get_running_loop().call_later(self._options.cancel_grace, self._end_grace, run)
            if run.body is not None and not run.is_in_thread:
                run.body.cancel()

    def release(self) -> None:
        """Cancel what runs and put it back, to the front of its lane."""
        for delivery, arrival in self._arriving.values():
            arrival.cancel()
            self._put_back(delivery)
        self._arriving.clear()
        for run in list(self._runs.values()):
            self._close(run)
            self._report(run, Outcome(run.delivery, "released"))
            self._tell("release", run)
            self._abandon(run, "released", "the stop of its worker")

    async def join(self, seconds: float) -> None:
        """Wait for bodies that were cancelled."""
        if self._bodies:
            await asyncio.wait(self._bodies, timeout=seconds)
        for timer in self._survivors:
            timer.cancel()
        for delivery in self._bodies.values():
            log_about(logging.WARNING, delivery, "goes on after the stop of its worker")

    def runs(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this is the body of a task of this worker."""
        return task in self._bodies

    def blocker(self, loop: asyncio.AbstractEventLoop) -> Delivery | None:
        """Whose code the loop is busy with. Called from another thread."""
        if self._prepared is not None:
            return self._prepared
        current = asyncio.current_task(loop)
        if current is None:
            return None
        for run in list(self._runs.values()):
            if run.body is current or (run.group is not None and run.group.body is current):
                return run.delivery
        return _delivery_of_child(current)

    def describe_blocker(self, loop: asyncio.AbstractEventLoop) -> str:
        """The same for a person: a task that runs in a thread may be what keeps the interpreter for itself."""
        blocker = self.blocker(loop)
        if blocker is not None:
            return _described(blocker)
        threads = [_described(run.delivery) for run in list(self._runs.values()) if run.is_in_thread]
        return " or ".join(threads[:MOST_NAMED]) or "something outside the tasks"

    @property
    def waiting(self) -> int:
        """Slots in which a task waits for the end of another one. Called from another thread, as `describe_waiting`."""
        return sum(run.waits > 0 for run in list(self._runs.values()))

    def describe_waiting(self) -> str:
        waiting = [_described(run.delivery) for run in list(self._runs.values()) if run.waits > 0]
        return ", ".join(waiting[:MOST_NAMED])

    def _launch(self, run: RunningTask) -> None:
        if not self._limits.cover(run.function):
            self._put_back(run.delivery)
            return
        loop = asyncio.get_running_loop()
        self._runs[id(run.delivery)] = run
        timeout = run.begin_time(self._options.task_timeout)
        if timeout is not None:
            run.timer = loop.call_later(timeout, self._time_out, run, timeout)
        if run.group is not None and self._executor.has_nothing_around(run):  # no coroutine for each, then
            run.group.enter(run, partial(self._take, run))
            return
        run.body = task = loop.create_task(self._body(run))
        self._bodies[task] = run.delivery
        task.add_done_callback(lambda task: self._body_ended(run, task))

    def _take(self, run: RunningTask, served: Served) -> None:
        """From the body of its group."""
        if run.ended:
            return
        if served.error is not None:
            self._raised(run, served.error)
        else:
            self._returned(run, served.value)

    async def _body(self, run: RunningTask) -> None:
        """Nothing leaves this coroutine: what a body raises, SystemExit included, is an outcome."""
        try:
            value = await self._executor.run(run)
        except BaseException as exc:
            if not run.ended:
                self._raised(run, exc)
        else:
            if not run.ended:
                self._returned(run, value)

    def _let_arrive(self, delivery: Delivery) -> None:
        arrival = asyncio.get_running_loop().create_task(self._arrive(delivery))
        self._arriving[id(delivery)] = delivery, arrival
        self._bodies[arrival] = delivery
        arrival.add_done_callback(self._bodies.pop)

    async def _arrive(self, delivery: Delivery) -> None:
        """Decoding its arguments may be what kills this process at once."""
        refusal = await self._arrives(delivery)
        del self._arriving[id(delivery)]
        if refusal is True:
            self._start(delivery, is_noted=True)
            return
        self._settler.forget(delivery)
        self._signals.wake()
        self._log_loss(delivery, refusal)
        self._hooks.tell("lost", delivery, name_in(delivery.body), time.monotonic())

    async def _arrives(self, delivery: Delivery) -> Literal[True] | Refusal:
        backoff = Backoff()
        while True:
            try:
                return await self._stores[delivery.partition].receive(self._options.worker_id, delivery)
            except UserElsewhere as exc:
                self._settler.follow(delivery, exc)
                await anyio.sleep(backoff.next())
            except FairqueError as exc:
                log_about(logging.WARNING, delivery, "arrived, which cannot be noted, trying again: %s", exc)
                await anyio.sleep(backoff.next())

    def _body_ended(self, run: RunningTask, task: asyncio.Task[None]) -> None:
        del self._bodies[task]
        run.body = None  # they know each other: without this, each task would be left to the garbage collector
        if not run.ended and task.cancelled():  # before its first step
            self._raised(run, asyncio.CancelledError())

    def _end_grace(self, run: RunningTask) -> None:
        if not run.ended:
            self._end_canceled(run)
            self._abandon(run, "canceled", f"its cancellation and {self._options.cancel_grace:g} s of grace")

    def _end_canceled(self, run: RunningTask) -> None:
        self._close(run)
        self._report(run, Outcome(run.delivery, "canceled"))
        self._tell("cancel", run)
        log_about(logging.INFO, run.delivery, "was canceled")

    def _returned(self, run: RunningTask, value: Any) -> None:
        if run.canceled:
            self._end_canceled(run)
            return
        result = self._outcomes.finished(run, value)
        if isinstance(result, Failure):
            self._end(run, self._outcomes.failed(run.delivery, run.name, result, run.began), result)
        else:
            self._end(run, result)

    def _raised(self, run: RunningTask, error: BaseException) -> None:
        if run.canceled:
            self._end_canceled(run)
            return
        if isinstance(error, PutBack):
            self._return_run(run, error.why)
            return
        self._end(run, *self._outcomes.raised(run, error))

    def _return_run(self, run: RunningTask, why: UnknownKey) -> None:
        """Before its body began."""
        if (failure := self._impatience(run.delivery, why)) is not None:
            self._end(run, self._outcomes.failed(run.delivery, run.name, failure, run.began), failure)
            return
        self._close(run)
        self._report(run, Outcome(run.delivery, "released", 0, self._delay_ms(run.delivery, why)))
        self._tell("release", run)

    def _time_out(self, run: RunningTask, seconds: float) -> None:
        if run.ended:
            return
        outcome, failure = self._outcomes.timed_out(run, seconds)
        self._tell("timeout", run, failure)
        self._end(run, outcome, failure)
        self._abandon(run, "timeout", f"its timeout of {seconds:g} s")

    def _end(self, run: RunningTask, outcome: Outcome, failure: Failure | None = None) -> None:
        self._close(run)
        self._report(run, outcome)
        self._run_times[run.delivery.partition].note(run.name, outcome.run_ms, is_payload=run.function is None)
        if (event := EVENTS.get(outcome.kind)) is not None:
            self._tell(event, run, failure)

    def _tell(self, event: str, run: RunningTask, failure: Failure | None = None) -> None:
        self._hooks.tell(event, run.delivery, run.name, run.began, failure)

    def _report(self, run: RunningTask, outcome: Outcome) -> None:
        outcome.run_ms = (time.monotonic() - run.began) * 1000 / (run.group.size if run.group is not None else 1)
        outcome.charge = run.charged
        self._settler.report(outcome)

    def _close(self, run: RunningTask) -> None:
        run.ended = True
        if run.timer is not None:
            run.timer.cancel()
        del self._runs[id(run.delivery)]
        if run.group is not None:
            self._beside -= run.group.left > 1
            run.group.leave(run)
        self._executor.forget(run.delivery)
        self._signals.wake()

    def _abandon(self, run: RunningTask, cut_off: str, reason: str) -> None:
        """Its slot is free; a body that swallows the cancellation harms only itself, and is reported."""
        run.cut_off = cut_off
        run.canceled = True  # a thread has nothing else to hear of it by
        if run.body is None or run.body.done():
            return
        run.body.cancel()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(SURVIVOR_SECONDS, self._report_survivor, run.body, run.delivery, reason)
        self._survivors.add(timer)
        run.body.add_done_callback(lambda _: self._discard_timer(timer))

    def _discard_timer(self, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        self._survivors.discard(timer)

    def _report_survivor(self, body: asyncio.Task[None], delivery: Delivery, reason: str) -> None:
        log_about(logging.WARNING, delivery, "goes on after %s", reason)
        body.cancel()

    def _give_up(self, delivery: Delivery, failure: Failure) -> None:
        now = time.monotonic()
        name = name_in(delivery.body)
        self._settler.report(self._outcomes.failed(delivery, name, failure, now))
        self._hooks.tell("failure", delivery, name, now, failure)

    def _return(self, delivery: Delivery, why: UnknownName | TooManyThreads | Restated | UnknownKey) -> None:
        """Another worker may know it, or its key, after a deploy at the latest, or have a thread for it; or its code
        says more.
        """
        if isinstance(why, Restated):
            self._settler.report(Outcome(delivery, "restated", record=why.body))
            return
        if (failure := self._impatience(delivery, why)) is not None:
            self._give_up(delivery, failure)
            return
        self._put_back(delivery, self._delay_ms(delivery, why))

    def _impatience(self, delivery: Delivery, why: Exception) -> Failure | None:
        """Why a task is given up that has been put back for too long."""
        since, patience = delivery.returned_since_ms, self._options.unknown_task_patience
        if not since or delivery.started_ms - since <= patience * 1000:
            return None
        if isinstance(why, UnknownName):
            text = f"no worker knew a task {why.name!r} for {patience:g} s{why.hint}"
            return Failure(FailureKind.UNKNOWN_TASK, "UnknownTask", text)
        if isinstance(why, UnknownKey):
            return Failure(FailureKind.BAD_MESSAGE, "UnknownKey", f"no worker had the key for {patience:g} s: {why}")
        return None

    def _delay_ms(self, delivery: Delivery, why: Exception) -> int:
        delay_ms: int = min(LONGEST_RETURN_MS, 500 * 2 ** min(delivery.returned, 10))
        log_about(logging.WARNING, delivery, "is put back for %.1f s: %s", delay_ms / 1000, why)
        return delay_ms

    def _put_back(self, delivery: Delivery, delay_ms: int = 0) -> None:
        """What has not begun here. Without a body, it is more than this worker has asked for, and nobody's business."""
        self._settler.report(Outcome(delivery, "released", 0, delay_ms))
        if delivery.body:
            self._hooks.tell("release", delivery, name_in(delivery.body), time.monotonic())


def _is(delivery: Delivery, user: bytes, task_id: bytes) -> bool:
    return delivery.task_id == task_id and delivery.user == user


def _described(delivery: Delivery) -> str:
    return f"task {name_in(delivery.body)} ({delivery.id!r}) of user {delivery.user_id!r}"


def _delivery_of_child(task: asyncio.Task[Any]) -> Delivery | None:
    """Of an asyncio task that a body started; Python 3.11 does not tell."""
    get_context = getattr(task, "get_context", None)
    context = get_context().get(running) if get_context is not None else None
    return context.delivery if isinstance(context, RunningTask) else None
