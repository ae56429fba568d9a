"""`Worker`: serves a queue. The life of a delivery in it:

turns       reports what has ended and asks for more, in one call                           turn.lua
claimer     as many as there are free slots; who is served is decided in Redis              claim.lua
runner      has it held, so that its lease is renewed, and gives it a slot
executor    finds its function and decodes its arguments; inputs fetches what other tasks give it
            runs the body, within the middlewares, on the loop, in a thread or in a subprocess
            meanwhile renewal keeps its lease, progress sends what it reports, inbox tells of a cancellation
            streams sends what a generator yields, and its end waits for that                   append.lua
runner      ends it at the first of these: it returned, raised, timed out, was canceled, lost or put back
outcomes    says what that means: finished, failed or, where retries says so, another try
settler     keeps that until it is reported, however long Redis is away                     settle.lua
hooks       tells the functions of the user

Of a queue with partitions, each has a settler of its own, and a desk in place of the claimer; spread turns has all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self

import anyio
import msgspec

from fairque.backoff import Backoff
from fairque.checks import Duration, check_count
from fairque.config.config import FairQueueConfig, WorkerConfig
from fairque.counted import counted
from fairque.errors import InvalidInput, QueueUnavailable
from fairque.everybody import EVERYBODY, Everybody, whom
from fairque.middleware import RunMiddleware, checked_middleware
from fairque.queue.queue import TaskQueue
from fairque.redis.store import Store
from fairque.worker import service
from fairque.worker.context import State
from fairque.worker.declared_limits import LimitDeclarations
from fairque.worker.handler import TaskHandler
from fairque.worker.hooks import Hook, TaskEvent, in_turn
from fairque.worker.lifeline import has_parent
from fairque.worker.lifespan import Lifespan, LifespanFunction
from fairque.worker.logs import LogSettings, level_of, set_up_logging
from fairque.worker.options import WorkerOptions, new_worker_id, user_groups
from fairque.worker.parts import Parts
from fairque.worker.recycling import Recycling
from fairque.worker.signals import Signals
from fairque.worker.worker_stats import WorkerStats

__all__ = ["Worker"]

logger = logging.getLogger("fairque.worker")
GOODBYE_SECONDS = 5.0
RETIRE_SECONDS = 3600.0


class Worker(Generic[State]):
    """Serves a queue: ``asyncio.run(Worker(queue).serve())`` in a program of its own, ``async with Worker(queue): …``
    beside something else. A worker runs once.

    Spans of time are in seconds, or timedeltas.

    Args:
        queue: Where the tasks come from.
        concurrency: Tasks that run at once.
        assigned_users: Users served first; `EVERYBODY` among them: all.
        steal_targets: Users served when the assigned ones have nothing.
        handler: Serves tasks without a function, see `TaskHandler`.
        worker_id: Unique among the workers; default: host, pid and a random part.
        poll_interval: Seconds between two looks when no message comes; a safety net, not the way work is found.
        shutdown_timeout: Seconds that running tasks are given when the worker stops; what is left is cancelled and
            returned to the front of its lane.
        stall_timeout: Seconds for which the event loop may stand still. Then the process ends, with code 1: what ran
            beside the task that blocks is put back at once, and that task is suspected as if it had killed the
            process. None: it never ends for that, and keeps its leases for as long.
        max_deliveries: A task that was alone in so many workers when they died is failed as ``lost``.
        unknown_task_patience: Seconds for which a task that no worker knows is put back, before it is failed.
        cancel_grace: Seconds in which a canceled task may clean up before its slot is taken away.
        max_leftover_threads: Threads of plain functions that may go on after their tasks are over, by a timeout or a
            cancellation, before the worker puts back all tasks that run in threads. A user may have an eighth of them,
            at least one, before that is done to its own tasks.
        scheduler: Whether it fires schedules, see `TaskScheduler`. All workers may: a slot makes one task.
        task_timeout: Seconds that a task may run which has no timeout of its own; None sets no limit.
        max_tasks_per_child: Tasks that a subprocess (``run_in="process"``) runs before it ends. 1: each task has a
            fresh one, and finds nothing that another one left. None: no limit.
        lifespan: A function that makes an async context manager, as `contextlib.asynccontextmanager` does. It is
            entered before the first claim, and left when all that ran has ended and is reported; what it yields is
            `TaskContext.state`. What it raises at its start ends the worker, as does its end before that of the worker,
            which drains first. What it raises at its end is logged, and raised by `run`.
        on_success, on_failure, on_retry, on_timeout, on_cancel, on_release, on_snooze, on_lost: Called with a
            `TaskEvent`; plain or async functions. A failure is final, a retry is not; `on_timeout` comes before either.
            `on_cancel` tells of a task that this worker ran, or was about to, when it was canceled. `on_release` tells
            of one that it puts back, without an attempt being counted: it stops, knows no such task, or has no thread
            left for it. `on_snooze` tells of one that put itself off. `on_lost` tells of a delivery that is not this
            worker's any more: another one took it over, or it is gone.
        run_middleware: Async functions around each run of a task, inside those of the queue, the first one outermost;
            see `RunMiddleware`.
    """

    def __init__(
        self,
        queue: TaskQueue,
        *,
        concurrency: int = 10,
        assigned_users: Iterable[str | Everybody] = (EVERYBODY,),
        steal_targets: Iterable[str | Everybody] = (),
        handler: TaskHandler | None = None,
        worker_id: str | None = None,
        poll_interval: Duration = 5.0,
        shutdown_timeout: Duration = 25.0,
        stall_timeout: Duration | None = 300.0,
        max_deliveries: int = 5,
        unknown_task_patience: Duration = 3600.0,
        cancel_grace: Duration = 5.0,
        max_leftover_threads: int = 80,
        scheduler: bool = True,
        task_timeout: Duration | None = None,
        max_tasks_per_child: int | None = None,
        lifespan: LifespanFunction[State] | None = None,
        on_success: Hook | None = None,
        on_failure: Hook | None = None,
        on_retry: Hook | None = None,
        on_timeout: Hook | None = None,
        on_cancel: Hook | None = None,
        on_release: Hook | None = None,
        on_snooze: Hook | None = None,
        on_lost: Hook | None = None,
        run_middleware: Sequence[RunMiddleware] = (),
    ) -> None:
        self.queue = queue
        self._is_named = worker_id is not None
        self.worker_id = worker_id if worker_id is not None else new_worker_id()
        spans: dict[str, Any] = {  # which may be timedeltas: the options make them seconds
            "poll_interval": poll_interval,
            "shutdown_timeout": shutdown_timeout,
            "stall_timeout": stall_timeout,
            "unknown_task_patience": unknown_task_patience,
            "cancel_grace": cancel_grace,
            "task_timeout": task_timeout,
        }
        self.options = WorkerOptions(
            worker_id=self.worker_id,
            concurrency=concurrency,
            groups=user_groups(assigned_users, steal_targets),
            handler=handler,
            max_deliveries=max_deliveries,
            max_leftover_threads=max_leftover_threads,
            scheduler=scheduler,
            max_tasks_per_child=max_tasks_per_child,
            **spans,
            hooks={
                "success": on_success,
                "failure": on_failure,
                "retry": on_retry,
                "timeout": on_timeout,
                "cancel": on_cancel,
                "release": on_release,
                "snooze": on_snooze,
                "lost": on_lost,
            },
            run_middleware=(*queue.run_middleware, *checked_middleware("run_middleware", run_middleware)),
        )
        self._signals = Signals()
        self._limits = LimitDeclarations(self._signals)
        self._lifespan: Lifespan[State] = Lifespan(lifespan, self._signals)
        self._ran = False
        self.report: Callable[[], bytes] | None = None
        """What this process tells of itself to the parent that started it, where that asks: see `Reports`. Called once
        a second, from a thread, and at the end.
        """
        self._parts: Parts | None = None  # from the moment on at which the queue is open
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_config(
        cls, queue: TaskQueue, config: FairQueueConfig | WorkerConfig, name: str | None = None, **options: Any
    ) -> Self:
        """A worker as the configuration has it: ``Worker.from_config(queue, config)``.

        Args:
            queue: Where the tasks come from.
            config: The configuration, whose section `scheduler` counts as well; or one of its workers alone. The
                `processes` of a worker, and what they may use, are for ``fairque worker``.
            name: Which of its workers, where there are several: its id, or its place as a text.
            **options: What a configuration cannot say, such as `handler` and hooks; and what is to be different.

        Raises:
            ConfigError: The configuration has no such worker, or several, and none is named.
        """
        if isinstance(config, FairQueueConfig):
            options = {"scheduler": config.scheduler.enabled, **options}
            config = config.worker(name)
        given = msgspec.structs.asdict(config)
        for of_processes in ("processes", "max_tasks", "max_memory", "http", "http_hosts"):
            del given[of_processes]
        own_id = given.pop("id")
        given["concurrency"] = given.pop("max_concurrent_tasks")
        for users in ("assigned_users", "steal_targets"):
            given[users] = tuple(map(whom, given[users]))
        given["worker_id"] = f"{own_id}-{new_worker_id()}" if own_id is not None else None
        worker = cls(queue, **(given | options))
        worker._is_named = "worker_id" in options  # else each process makes an id of its own
        return worker

    async def serve(
        self,
        *,
        processes: int = 1,
        max_tasks: int | None = None,
        max_memory: int | str | None = None,
        burst: bool = False,
        reload: bool = False,
        log_level: str | None = "info",
        log_json: bool = False,
    ) -> None:
        """Serve until SIGTERM, SIGHUP or Ctrl-C, as ``fairque worker`` does, in a program that is there for that:
        ``asyncio.run(Worker(queue).serve())``.

        The first signal drains, as `stop` does, and this returns. A second one ends the process at once, with 128 and
        the number of the signal. The queue is opened and closed, unless it is open. How each task ended is logged, by
        ``fairque.tasks``, never with arguments or results. Code that keeps Python's interpreter to itself for longer
        than `stall_timeout` ends the process, with code 1.

        Args:
            processes: More than one: this program is started anew for each, as it was started itself, and a copy
                serves when it comes to this call. This process starts those again that fail, and ends with all of them.
                So it is with `max_tasks`, `max_memory` and `reload` as well, also for one process.
            max_tasks: After so many runs of tasks, a process is replaced: when another one serves, it claims nothing
                more and ends when what it runs has ended, after an hour at the latest. One process at a time.
            max_memory: The same where it has more than so many bytes in memory, also as a text like ``"512M"``; its
                subprocesses are not counted. Looked at every second; on systems without ``/proc`` it is the most that
                the process ever had.
            burst: Serve until nothing waits that may run now, and return. What schedules have due is fired first; what
                is due later stays, as does what a policy holds back.
            reload: For development: start anew when a Python file changes, in the current directory or beside this
                program. What runs has a second to end, and is put back. Needs ``fairque[reload]``.
            log_level: ``"debug"``, ``"info"`` (every finished task), ``"warning"`` (retries) or ``"error"`` (failures).
                Logs go to standard error, unless logging was set up before. None: logging is left as it is.
            log_json: Whether they are lines of JSON, with the fields of each record.

        Raises:
            InvalidInput: An argument breaks a rule, this is not the main thread, or another worker has the signals.
            QueueUnavailable: Redis does not answer at the start. Later outages are waited out.
        """
        check_count("processes", processes, 1, 1_000)
        recycling = Recycling(max_tasks, max_memory)
        if burst and reload:
            raise InvalidInput("burst ends when nothing is left to do, and reload waits for changes: leave one out")
        service.check_process()
        if log_level is not None:
            set_up_logging(LogSettings(level_of(log_level), log_json))
        if has_parent() or not (processes > 1 or reload or recycling.is_wanted):
            await service.serve(self, burst=burst, recycling=recycling)
            return
        if processes > 1 or recycling.is_wanted:
            self.check_several()
        await service.serve_copies(processes, reload=reload)

    def check_several(self) -> None:
        """Whether several processes may serve with workers like this one. Raises `InvalidInput`."""
        if self._is_named:
            raise InvalidInput(f"several processes would all be worker {self.worker_id!r}: leave worker_id out")
        if self.queue.connector.is_private:
            raise InvalidInput(
                "embedded:// is a server for one process alone: several share embedded:///some/directory"
            )

    @property
    def state(self) -> State:
        """What the lifespan has yielded, while it is open. Raises `FairqueError` before and after, and without one."""
        return self._lifespan.state

    def stats(self) -> WorkerStats:
        """How it is; also from another thread, and when it has stopped."""
        if self._parts is None:
            return WorkerStats(slots=0, busy=0, claim_errors=0, stolen=0)
        return self._parts.stats()

    def add_hooks(self, hooks: Mapping[str, Callable[[TaskEvent], None]]) -> None:
        """More hooks of a worker that does not run yet, told before those that it has.

        Args:
            hooks: Plain functions by event: ``"success"`` for what `on_success` is told, and so on.

        Raises:
            InvalidInput: There is no such event, or the worker has begun to run.
        """
        if self._ran:
            raise InvalidInput("hooks are added before a worker runs")
        if unknown := hooks.keys() - self.options.hooks:
            raise InvalidInput(f"{min(unknown)!r} is no event of a worker: {', '.join(self.options.hooks)}")
        added = {event: in_turn(hook, self.options.hooks[event]) for event, hook in hooks.items()}
        self.options = msgspec.structs.replace(self.options, hooks={**self.options.hooks, **added})

    @property
    def has_opened(self) -> asyncio.Event:
        """Set once the worker runs and its lifespan, if it has one, is open."""
        return self._lifespan.has_opened

    @property
    def serves(self) -> asyncio.Event:
        """Set once Redis has answered its first claim."""
        return self._signals.serving

    @property
    def can_claim(self) -> bool:
        """Whether it takes tasks where it has free slots: Redis has answered its last claim, and it is not to stop."""
        is_serving = self._signals.serving.is_set() and not self._signals.stopping
        return is_serving and self._parts is not None and not self._parts.turns.is_held_up

    async def run(self) -> None:
        """Serve until `stop` is called. Cancelling it stops the worker as well, without waiting for running tasks.

        Outages of Redis are waited out, from the start on. Signals are left alone: a process that SIGTERM ends drains
        nothing, and others take over what ran there when its leases have run out. `serve` takes them.

        Raises:
            NotPermitted: The user of Redis may not do what a worker does.
        """
        if self._ran:
            raise InvalidInput("a worker runs once: make another one")
        self._ran = True
        try:
            await self._lifespan.open()
            if self._lifespan.has_opened.is_set():
                await self._run()
        finally:
            with anyio.CancelScope(shield=True):
                failure = await self._lifespan.close()
        if failure is not None:
            raise failure

    async def _run(self) -> None:
        store = await self._open()
        self._parts = parts = Parts(self.queue, self.options, self._signals, self._limits, self._lifespan, store)
        logger.info("worker %s starts, concurrency %d", self.worker_id, self.options.concurrency)
        parts.renewal.start()
        try:
            await self._serve(parts)
        finally:
            with anyio.CancelScope(shield=True):
                await parts.close()
            logger.info("worker %s stopped", self.worker_id)

    async def _open(self) -> Store:
        """A connection, once the queue has said what its settings are.

        Outages are waited out; what cannot get better by waiting, such as other settings or a missing permission, is
        raised.
        """
        await self.queue.connector.ensure_open()
        store = self.queue.store()
        backoff = Backoff()
        try:
            while not self._signals.stopping:
                try:
                    await store.check_roles("worker", *(["scheduler"] if self.options.scheduler else []))
                    await store.agree()
                    break
                except QueueUnavailable as exc:
                    logger.warning("cannot open the queue, trying again: %s", exc)
                    await self._signals.sleep(backoff.next())
            await self._limits.tell(store, self._signals.sleep)
        except BaseException:
            await store.close()
            raise
        return store

    async def _serve(self, parts: Parts) -> None:
        async with anyio.create_task_group() as group:
            for loop in parts.loops():
                group.start_soon(loop)
            try:
                await self._signals.wait_for_stop()
                await self._finish_what_runs(parts)
                await self._drain(parts, self.options.shutdown_timeout)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._drain(parts, 0)
                raise
            finally:
                parts.turns.stop()
            group.cancel_scope.cancel()

    async def _finish_what_runs(self, parts: Parts) -> None:
        """Of a worker that retires, for whose slots nobody waits."""
        signals, runner = self._signals, parts.runner
        if signals.retiring:
            running = counted(len(runner), "task runs", "tasks run")
            logger.info("worker %s retires: %s, at most %g s for them", self.worker_id, running, RETIRE_SECONDS)
            await signals.wait_until(lambda: not (signals.retiring and len(runner)), RETIRE_SECONDS)

    async def _drain(self, parts: Parts, seconds: float) -> None:
        """Let running tasks end, put back those that do not, and report everything."""
        signals, runner = self._signals, parts.runner
        signals.stop()
        if len(runner) and seconds > 0:
            running = counted(len(runner), "task runs", "tasks run")
            logger.info("worker %s stops: %s, %g s for them", self.worker_id, running, seconds)
            await signals.wait_until(lambda: not len(runner), seconds)
        runner.release()
        await runner.join(1.0)
        if not await signals.wait_until(lambda: parts.turns.is_quiet, GOODBYE_SECONDS):
            logger.warning(_what_is_open(parts.settler.unreported))

    async def run_until_idle(self) -> None:
        """Serve until nothing waits that this worker may serve now, and everything it started has ended."""
        self._signals.until_idle = True
        await self.run()

    def retire(self) -> None:
        """Claim nothing more, and stop when what runs has ended, after an hour at the latest: for a worker whose place
        another one has taken. Returns at once; `stop` shortens it.
        """
        self._signals.retire()

    async def stop(self) -> None:
        """Claim nothing more, give running tasks `shutdown_timeout`, put back what is left.

        Returns when that is done where the worker was started with ``async with``, else at once. A task or a hook of
        this worker that calls it is not waited for by itself: there, too, it returns at once.
        """
        self._signals.stop()
        if self._task is not None and not self._is_called_from_inside():
            await asyncio.wait([self._task])

    def _is_called_from_inside(self) -> bool:
        caller = asyncio.current_task()
        return self._parts is not None and (self._parts.runner.runs(caller) or self._parts.hooks.runs(caller))

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run(), name=f"fairque-worker-{self.worker_id}")
        started = asyncio.create_task(self._signals.serving.wait())
        try:
            await asyncio.wait([self._task, started], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._abort()
            raise
        finally:
            started.cancel()
        if self._task.done():
            self._task.result()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        except asyncio.CancelledError:  # the patience of who waits ends before `shutdown_timeout`
            await self._abort()
            raise
        assert self._task is not None
        if error is None:
            self._task.result()

    async def _abort(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])


def _what_is_open(unreported: int) -> str:
    """Of a worker that leaves while Redis does not answer."""
    if not unreported:
        return "the last claim was not answered: what it handed out, others take over"
    return counted(
        unreported, "outcome was not reported: its task runs again", "outcomes were not reported: their tasks run again"
    )
