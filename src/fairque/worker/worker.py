"""`Worker`: the loops that claim, settle, renew and listen."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import anyio
import msgspec

from fairque.checks import check_count, check_id, check_seconds
from fairque.config.config import WorkerConfig
from fairque.errors import FairqueError, InvalidInput, QueueUnavailable
from fairque.models import EVERYONE
from fairque.queue.queue import TaskQueue
from fairque.redis.delivery import Claim, Delivery
from fairque.scheduler.scheduler import TaskScheduler
from fairque.tasks.limits import declared_limits
from fairque.worker.assignment import assignment
from fairque.worker.description import describe_worker, names_known, new_worker_id
from fairque.worker.executor import Executor, TaskHandler
from fairque.worker.hooks import Hook, Hooks
from fairque.worker.inputs import Inputs
from fairque.worker.outcomes import Outcomes
from fairque.worker.progress import Progress
from fairque.worker.renewal import Renewal
from fairque.worker.runner import Care, Runner
from fairque.worker.settler import Settler
from fairque.worker.steal_pause import StealPause

__all__ = ["Worker"]

logger = logging.getLogger("fairque.worker")
LONGEST_PAUSE = 2.0
GOODBYE_SECONDS = 5.0
SHORTEST_SLEEP = 0.005
LIMITS = 500
# Claiming in quarters keeps Redis and the loop busy at the same time. Tuned with the bench.
CLAIM_SHARE = 4


class Worker:
    """Serves a queue: ``await Worker(queue).run()``, or ``async with Worker(queue): …``. A worker runs once.

    Args:
        queue: Where the tasks come from.
        concurrency: Tasks that run at once.
        assigned_users: Users served first; ``"*"`` is everyone.
        steal_targets: Users served when the assigned ones have nothing.
        handler: Serves tasks without a function, see `TaskHandler`.
        worker_id: Unique among the workers; default: host, pid and a random part.
        poll_interval: Seconds between two looks when no message comes; a safety net, not the way work is found.
        shutdown_timeout: Seconds that running tasks are given when the worker stops; what is left is cancelled and
            returned to the front of its lane.
        stall_timeout: Seconds for which a blocked event loop keeps its leases.
        max_deliveries: A task whose workers died this often is failed as ``lost``.
        unknown_task_patience: Seconds for which a task that no worker knows is put back, before it is failed.
        cancel_grace: Seconds in which a canceled task may clean up before its slot is taken away.
        scheduler: Whether it fires schedules, see `TaskScheduler`. All workers may: a slot makes one task.
        task_timeout: Seconds that a task may run which has no timeout of its own; None sets no limit.
        on_success, on_failure, on_retry, on_timeout, on_lost: Called with a `TaskEvent`; plain or async functions.
            A failure is final, a retry is not; `on_timeout` comes before either. `on_lost` tells of a delivery that
            another worker took over.
    """

    def __init__(
        self,
        queue: TaskQueue,
        *,
        concurrency: int = 10,
        assigned_users: Iterable[str] = (EVERYONE,),
        steal_targets: Iterable[str] = (),
        handler: TaskHandler | None = None,
        worker_id: str | None = None,
        poll_interval: float = 5.0,
        shutdown_timeout: float = 25.0,
        stall_timeout: float = 300.0,
        max_deliveries: int = 5,
        unknown_task_patience: float = 3600.0,
        cancel_grace: float = 5.0,
        scheduler: bool = True,
        task_timeout: float | None = None,
        on_success: Hook | None = None,
        on_failure: Hook | None = None,
        on_retry: Hook | None = None,
        on_timeout: Hook | None = None,
        on_lost: Hook | None = None,
    ) -> None:
        check_count("concurrency", concurrency, 1, 10_000)
        check_seconds("poll_interval", poll_interval, least=0.01)
        check_seconds("shutdown_timeout", shutdown_timeout)
        check_seconds("stall_timeout", stall_timeout)
        care = Care(max_deliveries, unknown_task_patience, cancel_grace, task_timeout)
        self.queue = queue
        self.concurrency = concurrency
        self.groups = assignment(assigned_users, steal_targets)
        self.worker_id = check_id("worker_id", worker_id) if worker_id is not None else new_worker_id()
        self.poll_interval = poll_interval
        self.shutdown_timeout = shutdown_timeout
        self._attention = asyncio.Event()  # a message, a free slot, the end
        self._claims = queue.store()
        self._settles = queue.store()
        self._services = queue.store(patience=queue.connector.timeout)  # what running tasks ask for
        self._progress = Progress(self._services)
        self._scheduler = TaskScheduler(queue) if scheduler else None
        self._hooks = Hooks(
            {"success": on_success, "failure": on_failure, "retry": on_retry, "timeout": on_timeout, "lost": on_lost}
        )
        self._settler = Settler(
            self._settles,
            self.worker_id,
            few=concurrency // 2,
            busy=lambda: len(self._runner) > 0,
            refused=self._on_refused,
            settled=self._on_settled,
        )
        self._runner = Runner(
            Executor(
                self.worker_id,
                concurrency=concurrency,
                handler=handler,
                inputs=Inputs(self._services),
                progress=self._progress,
            ),
            Outcomes(self.worker_id, queue.settings),
            self._settler,
            self._hooks,
            freed=self._attention.set,
            care=care,
        )
        description = describe_worker(concurrency, self.groups)
        self._renewal = Renewal(
            queue.connector,
            queue.keys,
            self.worker_id,
            interval=queue.settings.lease_ms * 0.3 / 1000,
            stall_timeout=stall_timeout,
            describe=lambda: description | {"running": len(self._runner), "names": "" if handler else names_known()},
            held=self._settler.held,
            lost=self._runner.drop,
            canceled=self._runner.cancel,
            blocker=self._runner.blocker,
        )
        self._ran = False
        self._stopping = False
        self._until_idle = False
        self._steal_pause = StealPause(queue.settings.lease_ms, queue.connector.timeout)
        self._started = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, queue: TaskQueue, config: WorkerConfig, **options: Any) -> Self:
        """A worker as the configuration has it: ``Worker.from_config(queue, config.workers[0])``.

        Args:
            queue: Where the tasks come from.
            config: One of `FairQueueConfig.workers`. Its `processes` are for ``fairque worker``.
            **options: What a configuration cannot say, such as `handler` and hooks; and what is to be different.
        """
        given = msgspec.structs.asdict(config)
        del given["processes"]
        name = given.pop("id")
        given["concurrency"] = given.pop("max_concurrent_tasks")
        given["worker_id"] = f"{name}-{new_worker_id()}" if name is not None else None
        return cls(queue, **(given | options))

    async def run(self) -> None:
        """Serve until `stop` is called. Cancelling it stops the worker as well, without waiting for running tasks.

        Outages of Redis are waited out, from the start on.
        """
        if self._ran:
            raise InvalidInput("a worker runs once: make another one")
        self._ran = True
        await self._open()
        logger.info("worker %s starts, concurrency %d", self.worker_id, self.concurrency)
        self._reporting = anyio.CancelScope(shield=True)  # needs a loop, and there may be none when a worker is made
        self._renewal.start()
        self._progress.start()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._report)
                group.start_soon(self._listen)
                if self._scheduler is not None:
                    group.start_soon(self._scheduler.run)
                try:
                    await self._declare_limits()
                    await self._claim_loop()
                    await self._drain(self.shutdown_timeout)
                except BaseException:
                    with anyio.CancelScope(shield=True):
                        await self._drain(0)
                    raise
                finally:
                    self._reporting.cancel()
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._say_goodbye()

    async def _open(self) -> None:
        """Outages are waited out; what cannot get better by waiting, such as other settings, is raised."""
        await self.queue.connector.ensure_open()
        pause = 0.05
        while not self._stopping:
            try:
                await self._claims.agree()
                return
            except QueueUnavailable as exc:
                logger.warning("cannot open the queue, trying again: %s", exc)
                await self._attend(pause * (0.5 + random.random()))
                pause = min(LONGEST_PAUSE, pause * 2)
            except FairqueError:
                await self._claims.close()
                raise

    async def _report(self) -> None:
        """Goes on when the scope around the worker is cancelled: what runs then is still to be put back."""
        with self._reporting:
            await self._settler.run()

    async def run_until_idle(self) -> None:
        """Serve until nothing waits that this worker may serve now, and everything it started has ended."""
        self._until_idle = True
        await self.run()

    async def stop(self) -> None:
        """Claim nothing more, give running tasks `shutdown_timeout`, put back what is left.

        Returns when that is done where the worker was started with ``async with``, else at once. A task or a hook of
        this worker that calls it is not waited for by itself: there, too, it returns at once.
        """
        self._stopping = True
        self._attention.set()
        caller = asyncio.current_task()
        if self._task is not None and not (self._runner.runs(caller) or self._hooks.runs(caller)):
            await asyncio.wait([self._task])

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run(), name=f"fairque-worker-{self.worker_id}")
        started = asyncio.create_task(self._started.wait())
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

    async def _declare_limits(self) -> None:
        """What the code says of task names holds for every worker, from the first claim on."""
        limits = declared_limits()
        while limits and not self._stopping:
            try:
                await self._claims.set_limits(limits[:LIMITS], declared=True)
            except FairqueError as exc:
                logger.warning("cannot declare the limits of tasks, trying again: %s", exc)
                await self._attend(LONGEST_PAUSE * random.random())
            else:
                del limits[:LIMITS]

    async def _claim_loop(self) -> None:
        pause = 0.05
        while not self._stopping:
            free = self.concurrency - len(self._runner)
            if free <= 0 or len(self._settler) > self.concurrency * 10 + 1000:
                await self._attend(None)
                continue
            self._attention.clear()
            want = min(free, max(1, self.concurrency // CLAIM_SHARE))
            try:
                claim = await self._claim(want)
            except FairqueError as exc:
                logger.warning("cannot claim, trying again: %s", exc)
                await self._attend(pause * (0.5 + random.random()))
                pause = min(LONGEST_PAUSE, pause * 2)
                self._steal_pause.silent()
                continue
            self._steal_pause.heard()
            pause = 0.05
            self._started.set()
            for delivery in claim.deliveries:
                self._runner.start(delivery)
            if len(claim.deliveries) < want:
                if self._until_idle and not claim.deliveries and claim.sleep != 0 and self._is_idle():
                    return
                await self._attend(self._nap(claim))

    async def _claim(self, want: int) -> Claim:
        return await self._claims.claim(
            self.worker_id,
            want,
            groups=self.groups,
            steal=not self._steal_pause.left,
        )

    def _nap(self, claim: Claim) -> float:
        """Seconds to sleep unless a message comes."""
        sleep = self.poll_interval if claim.sleep is None else min(claim.sleep, self.poll_interval)
        pause = self._steal_pause.left
        if pause:
            sleep = min(sleep, pause)
        return max(sleep, SHORTEST_SLEEP)

    async def _attend(self, seconds: float | None) -> None:
        """Wait for a message, a freed slot, or the time."""
        with anyio.move_on_after(seconds):
            await self._attention.wait()
        if seconds is None:
            self._attention.clear()

    def _is_idle(self) -> bool:
        """Nothing runs and everything is reported, and no message came since: reports may have made more work."""
        return not (len(self._runner) or len(self._settler) or self._attention.is_set())

    async def _listen(self) -> None:
        """Messages that wake the claim loop. Without them the safety poll still finds everything."""
        channel = self.queue.keys.wake_channel(self.worker_id)
        while True:
            try:
                await self.queue.listener.subscribe(channel, self._on_message)
                break
            except FairqueError as exc:
                logger.warning("cannot listen for work, trying again: %s", exc)
                await anyio.sleep(LONGEST_PAUSE * random.random())
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await self.queue.listener.unsubscribe(channel, self._on_message)

    def _on_message(self, message: bytes | None) -> None:
        """Empty: there is work. None: messages may have been missed. Else user and id of a task to cancel."""
        if message:
            user, _, task_id = message.partition(b" ")
            self._runner.cancel_task(user, task_id)
            return
        if message is None:  # reconnected
            self._steal_pause.silent()
        self._attention.set()

    def _on_settled(self) -> None:
        if self._until_idle or self._stopping:
            self._attention.set()

    def _on_refused(self, delivery: Delivery) -> None:
        logger.warning("task %r of user %r: outcome refused, another worker has it", delivery.id, delivery.user_id)
        self._hooks.tell("lost", delivery, "", time.monotonic())

    async def _drain(self, seconds: float) -> None:
        """Let running tasks end, put back those that do not, and report everything."""
        self._stopping = True
        if len(self._runner) and seconds > 0:
            logger.info("worker %s stops: %d tasks run, %g s for them", self.worker_id, len(self._runner), seconds)
            await self._wait_until(lambda: not len(self._runner), seconds)
        self._runner.release()
        await self._runner.join(1.0)
        if not await self._wait_until(lambda: not self._settler.unreported, GOODBYE_SECONDS):
            logger.warning("%d outcomes not reported; those tasks will run again", self._settler.unreported)

    async def _wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            while not condition():
                await self._attend(None)
        return condition()

    async def _say_goodbye(self) -> None:
        await self._renewal.stop()
        await self._progress.stop()
        try:
            await self._claims.leave(self.worker_id, self.groups)
        except FairqueError as exc:
            logger.warning("could not say goodbye: %s", exc)
        await self._claims.close()
        await self._settles.close()
        await self._services.close()
        await self._hooks.drain(1.0)
        logger.info("worker %s stopped", self.worker_id)
