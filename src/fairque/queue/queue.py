"""`TaskQueue`: where tasks are put in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, cast, overload

import msgspec

from fairque.checks import Duration, check_count, check_id, check_kind, check_list, check_seconds
from fairque.codec.codec import Codec, Sealer
from fairque.config.config import FairQueueConfig
from fairque.doctor.doctor import examine
from fairque.doctor.finding import QueueCheck
from fairque.errors import InvalidInput, WrongType
from fairque.everybody import check_user
from fairque.listed import Listed
from fairque.middleware import RunMiddleware, checked_middleware
from fairque.models import Enqueued, FailureKind, QueueHealth, QueueStats, TaskInfo, TaskState, UserInfo
from fairque.policy import packed_group
from fairque.queue.batch import Batch
from fairque.queue.cancel_all import cancel_all
from fairque.queue.dead_letters import Act, DeadGroup, DeadGroups, DeadLetter, DeadLetters, DeadStep, group_key
from fairque.queue.enqueue_call import EnqueueDoor, EnqueueMiddleware, for_user
from fairque.queue.firing_door import FiringDoor, FiringHeaders
from fairque.queue.handle import TaskHandle
from fairque.queue.health import look_at_health
from fairque.queue.listing import list_tasks
from fairque.queue.pipeline_handle import PipelineHandle
from fairque.queue.plan import PipelinePlan, child_of, dependency_ids
from fairque.queue.producer import BATCH, Producer, user_of
from fairque.queue.purge import Purged, purge
from fairque.queue.results import results_of
from fairque.queue.sights import Sights
from fairque.queue.source import Source
from fairque.queue.tenants import Tenants
from fairque.queue.xcom import DEFAULT_NAMESPACE, XComManager
from fairque.redis.backend import Backend, CallListener
from fairque.redis.connector import DEFAULT_TIMEOUT
from fairque.redis.delivery import NewTask, Placed, Put
from fairque.redis.listener import Listener
from fairque.redis.missing import noting_missing
from fairque.redis.partitions import MOST_PARTITIONS
from fairque.redis.store import Store
from fairque.settings import QueueSettings, checked_settings
from fairque.tasks.child import Parent, check_child, check_step, child_id
from fairque.tasks.function import TaskFunction
from fairque.tasks.message import new_nonce
from fairque.tasks.options import BatchOption, Callbacks, Options, OptionsOfMany
from fairque.tasks.pipeline import Pipeline, parallel
from fairque.tasks.registry import function_for
from fairque.tasks.task import Task
from fairque.transfer.exporting import export
from fairque.transfer.group_moves import move_group
from fairque.transfer.importing import Imported, import_records
from fairque.transfer.moving import Moved, move

__all__ = ["TaskQueue"]

R = TypeVar("R")


class TaskQueue(Tenants, Sights):
    """A queue that many users share. Use it as ``async with TaskQueue(...) as queue``, or call `open` and `close`.

    Args:
        url: ``redis://``, ``rediss://`` (TLS), ``unix://``, ``sentinel://host1,host2/service``,
            ``cluster://host1,host2`` or ``embedded://``. Without one: ``FAIRQUE_REDIS_URL``, else localhost.
            ``embedded://`` starts a private Valkey for this process, ``embedded:///some/dir`` one with append-only
            persistence that the processes of this machine share.
        name: Queues with different names know nothing of each other.
        timeout: Seconds within which every call succeeds or raises `QueueUnavailable`.
        priority_step: Seconds of head start that one level of priority is worth.
        lease: Seconds without a sign of life after which a worker's tasks are given to others.
        result_ttl: Seconds a result is kept, unless the task says otherwise.
        dead_letter_ttl: Seconds a failed task is kept.
        max_message_bytes: Limit for the message of a task, and for its result.
        fairness: What a service costs: what the task says (``"cost"``), or the seconds that it runs, times what the
            task says (``"time"``): charged by what tasks of the name took lately, corrected when it ends.
        usage_ttl: Seconds that what a user used is kept, from an hour to 40 days (default). Shorter where nobody bills,
            and many users come once: each takes some 250 bytes for as long.
        partitions: Over how many parts its users are spread, up to 1,024, for a Redis Cluster of several nodes. It is
            fixed when the queue is made; 1 (default) keeps all of it on one node.
        codec: What arguments, results and errors look like in Redis: `Encrypt`, `Sign` or `Compress`. All processes of
            the queue need one that reads what the others write.
        enqueue_middleware: Async functions around each call that puts tasks in through this object, the first one
            outermost; see `EnqueueMiddleware`.
        run_middleware: Async functions around each run of a task in the workers of this object, outside those of the
            worker; see `RunMiddleware`.
        firing_headers: Called by the schedulers of this object for each task that a schedule makes, with a `FiredTask`.
            It returns the headers of that task; it must not block.

    From `priority_step` to `partitions`, all are settings of the queue itself, which all its processes share: the first
    that opens it stores them there, with defaults for what it does not name, and what a later one does not name is
    taken from there. One that names another value gets a `SettingsMismatch`; see `change_settings`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        name: str = "default",
        timeout: Duration = DEFAULT_TIMEOUT,
        priority_step: Duration | None = None,
        lease: Duration | None = None,
        result_ttl: Duration | None = None,
        dead_letter_ttl: Duration | None = None,
        max_message_bytes: int | None = None,
        fairness: Literal["cost", "time"] | None = None,
        usage_ttl: Duration | None = None,
        partitions: int | None = None,
        codec: Codec | None = None,
        enqueue_middleware: Sequence[EnqueueMiddleware] = (),
        run_middleware: Sequence[RunMiddleware] = (),
        firing_headers: FiringHeaders | None = None,
    ) -> None:
        self.run_middleware = checked_middleware("run_middleware", run_middleware)
        around_enqueue = checked_middleware("enqueue_middleware", enqueue_middleware)
        given = checked_settings(
            priority_step=priority_step,
            lease=lease,
            result_ttl=result_ttl,
            dead_letter_ttl=dead_letter_ttl,
            max_message_bytes=max_message_bytes,
            fairness=fairness,
            usage_ttl=usage_ttl,
        )
        if partitions is not None:
            given["partitions"] = check_count("partitions", partitions, 1, MOST_PARTITIONS)
        self.name = name
        self._backend = Backend(url, name, timeout=timeout, given=given, codec=codec)
        self.keys = self._backend.keys
        self.connector = self._backend.connector
        self.enqueue_door = EnqueueDoor(around_enqueue, name, self.connector) if around_enqueue else None
        self.firing_door = FiringDoor(firing_headers, name, self.connector) if firing_headers is not None else None
        patience = self.connector.timeout
        self.listener = Listener(self.connector, self._backend.connector_of)
        self._reader = self.store(patience=patience)
        self._bulk = self.store(patience=patience)
        self._producer = Producer(self._reader, self._bulk, patience)
        self._source = Source(self._reader, self.listener)
        self._letters = DeadLetters(self._reader)

    @property
    def settings(self) -> QueueSettings:
        """What all processes that use the queue agree on. Known once it is open."""
        return self._backend.settings

    @property
    def sealer(self) -> Sealer | None:
        """Of the contents, for what is built on the queue; None: they are in Redis as they are."""
        return self._backend.sealer

    def store(self, *, patience: float = 0.0) -> Store:
        """The scripts over a connection of their own; of a queue with partitions, over one to each node.

        Its `parts` are the same for each partition, by itself.
        """
        return Store(self._backend, patience=patience)

    @classmethod
    def from_config(cls, config: FairQueueConfig, **options: Any) -> Self:
        """The queue that a configuration describes, in its sections `redis`, `queue` and `codec`.

        Args:
            config: The configuration.
            **options: What a configuration cannot say, such as middlewares; and what is to be different.
        """
        redis = config.redis
        given: dict[str, Any] = {"url": redis.redis_url, "timeout": redis.timeout, "codec": config.codec.codec}
        given |= msgspec.structs.asdict(config.queue)
        return cls(**(given | options))

    def time_calls(self, listener: CallListener) -> None:
        """Have the name of the script and the seconds told, after each call that goes to Redis through this object or
        a worker of it, repetitions and failures included; renewals of leases, which go from a thread, are left out.

        Args:
            listener: Called on the loop, and raises nothing.
        """
        self._backend.call_listeners += (listener,)

    @property
    def reader(self) -> Store:
        """The connection of the queue's own calls, for what is built on the queue."""
        return self._reader

    @property
    def source(self) -> Source:
        """What handles need of the queue, for what is built on it."""
        return self._source

    def message_of(self, task: Task[Any], nonce: bytes) -> NewTask:
        """What is sent for a task that names its user, for what is built on the queue. Raises what `enqueue` raises."""
        return self._make(task, None, nonce, defaultdict(dict))

    async def open(self) -> Self:
        """Connect, and look at the server and at the settings of the queue. Where that fails, nothing stays open.

        Raises:
            QueueUnavailable: Redis did not answer in time.
            ConfigError: The server is too old.
            NotPermitted: The user of Redis may not do what a process needs that reads, puts in or plans.
            SettingsMismatch: The queue has other settings than those asked for.
        """
        try:
            await self.connector.open()
            self._backend.agreed = False  # settings may have changed since it was open before
            with noting_missing():  # a node that hangs is waited for once
                await self._reader.check_server()
                await self._reader.agree(store=False)
        except BaseException:
            await self.close()
            self.connector.admit()  # as it was before: the next call tries again
            raise
        return self

    async def close(self) -> None:
        """Wait for what is being enqueued, then close every connection and stop an embedded server."""
        self.connector.home.enter()
        await self._producer.drain()
        self.connector.refuse()
        await self._bulk.close()
        await self._reader.close()
        await self.listener.close()
        self._source.moves.abandon()
        await self.connector.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @overload
    async def enqueue(
        self, task: Pipeline, *, user_id: str | None = None, batch: BatchOption = None
    ) -> PipelineHandle: ...
    @overload
    async def enqueue(self, task: Task[R], **options: Unpack[Options]) -> TaskHandle[R]: ...
    async def enqueue(
        self, task: Task[R] | Pipeline, *, user_id: str | None = None, **options: Any
    ) -> TaskHandle[R] | PipelineHandle:
        """Add a task, or all tasks of a pipeline in one step.

        Options are those of `TaskOptions`; what is not given here comes from the task's own.

        A `task_id` is an idempotency key of its user: while that task lives (it has not ended), another call adds
        nothing and returns a handle with ``created == False``. Another `on_conflict` replaces what waits, or raises.

        A task with outputs of others among its arguments brings those others with it.

        Calls of one process that overlap share round trips: while one is under way, those that come are sent together.

        Raises:
            InvalidInput: A value breaks a rule; nothing was written.
            DependencyError: It would wait for what is not known, for another user's task, or for itself.
            TaskExists: A task with this id lives, and `on_conflict` is ``"error"``.
            UnknownKey: The codec of the queue has no key for the user.
            QueueUnavailable: Redis did not answer in time. The task may or may not have been added; with a `task_id`
                the call can be repeated safely.
        """
        if isinstance(task, Pipeline):
            return await self._enqueue_pipeline(_in_batch(task, options), task, user_id)
        changed = _changed(task, options)
        if changed.upstream:
            return await self._enqueue_last(changed, user_id)
        if self.enqueue_door is not None:
            return await self._enqueue_through(self.enqueue_door, for_user(changed, user_id))
        new = self._make(changed, user_id, new_nonce(), defaultdict(dict))
        [put] = await self._producer.submit((new,))
        return self._handle(changed, new, put)

    async def enqueue_by_name(
        self,
        name: str,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> TaskHandle[Any]:
        """Add a call of a function that this process does not import: see `Task.by_name`, which makes the task.

        A worker that knows it checks the arguments, and fills in what the code says of its cost, its limits and its
        priority: where that is something else than was put in, the task goes back once, before it runs.

        Raises what `enqueue` raises, and `NotEncodable` for arguments that cannot be sent.
        """
        return await self.enqueue(Task.by_name(name, args, kwargs), **options)

    async def enqueue_child(
        self,
        parent: TaskHandle[Any],
        key: str,
        task: Task[Any] | Pipeline,
        *,
        with_parent: bool,
        options: Mapping[str, Any],
    ) -> TaskHandle[Any] | PipelineHandle:
        """Add a task for one that runs, which does so once for each key; see `TaskContext.enqueue`."""
        user_id, of = parent.user_id, Parent(parent.task_id, with_parent)
        if isinstance(task, Pipeline):
            return await self._enqueue_pipeline(_in_batch(task, options), task, user_id, of, key)
        changed, task_id = _changed(task, options), child_id(parent.task_id, key)
        if changed.upstream:
            return await self._enqueue_last(changed, user_id, of, key)
        check_child(changed, user_id)

        async def put_in(tasks: list[Task[Any]]) -> tuple[list[str], TaskHandle[Any]]:
            [sent] = tasks
            needs = list(dict.fromkeys(dependency_ids(sent.task_options.depends_on, user_id, {})))
            made = self._producer.make(
                sent, user_id, new_nonce(), task_id=task_id, depends_on=needs, parent=parent.task_id
            )
            new = child_of(made, of)
            [put] = await self._producer.submit((new,))
            return [task_id], self._handle(changed, new, put)

        if self.enqueue_door is None:
            return (await put_in([changed]))[1]
        return await self.enqueue_door.through("task", [for_user(changed, user_id)], put_in)

    async def enqueue_many(
        self,
        tasks: Iterable[Task[R]],
        **options: Unpack[OptionsOfMany],
    ) -> list[TaskHandle[R]]:
        """Add many tasks, in order, 500 in a round trip. Each 500 are added all or not at all.

        Options hold for all of them, see `TaskOptions`; a `task_id` is for one alone.

        A task may depend on one that stands before it in the list. Raises what `enqueue` raises; everything but
        dependencies is checked before the first round trip.
        """
        if "task_id" in options:
            raise InvalidInput("each task has an id of its own: give it by .options(task_id=…)")
        user_id = options.pop("user_id", None)
        given = list(check_list("tasks", tasks))
        changed = [_alone(_changed(task, options)) for task in given]
        if self.enqueue_door is None or not given:
            return await self._put_in(given, changed, user_id, self._producer.send_all)

        async def put_in(tasks: list[Task[Any]]) -> tuple[list[str], list[TaskHandle[R]]]:
            handles = await self._put_in(given, tasks, None, self._producer.send_all)
            return [handle.task_id for handle in handles], handles

        return await self.enqueue_door.through("tasks", [for_user(task, user_id) for task in changed], put_in)

    def batch(
        self,
        user_id: str,
        *,
        on_complete: Callbacks = None,
        on_success: Callbacks = None,
        ttl: Duration = 86_400.0,
        batch_id: str | None = None,
        adder: str | None = None,
    ) -> Batch:
        """A batch of tasks, to be opened by ``async with``, or the one of this id that was opened elsewhere.

        Args:
            user_id: Whose tasks they are.
            on_complete: Tasks that are put in, once, when all have ended, however.
            on_success: Tasks that are put in, once, when all have finished: where some had failed, when the last of
                those was requeued and has finished.
            ttl: Seconds after which it is abandoned when nobody has added to it or closed it, or a timedelta.
            batch_id: Unique per user; None makes a random one.
            adder: The id of the task of this batch that adds to it, which may do so also when it is closed. The
                batch of `current_task()` knows its own; in a subprocess, say `current_task().task_id`.

        Raises:
            InvalidInput: A value breaks a rule.
        """
        return Batch(self, user_id, batch_id, ttl, {"on_complete": on_complete, "on_success": on_success}, adder)

    async def push_function_task(
        self,
        user_id: str,
        fn: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Add a call of a registered function, given as such or as what `@task` made of it. Returns the task's id."""
        made = function_for(fn)(*args, **(kwargs or {})).options(**options)
        return (await self.enqueue(made, user_id=user_id)).task_id

    @overload
    def handle(self, user_id: str, task_id: str) -> TaskHandle[Any]: ...
    @overload
    def handle(self, user_id: str, task_id: str, *, task: TaskFunction[..., R]) -> TaskHandle[R]: ...
    def handle(self, user_id: str, task_id: str, *, task: TaskFunction[..., Any] | None = None) -> TaskHandle[Any]:
        """A handle for a task that was enqueued earlier, or elsewhere. Looks at nothing.

        Args:
            task: The function that it calls: results are converted to its annotation. Without it, to that of the
                function which is registered here by the task's name, if there is one.

        Raises `InvalidInput` for an id that breaks a rule, and for what is no task function.
        """
        signature = check_kind("task", task, TaskFunction).signature if task is not None else None
        user, name = check_user("user_id", user_id), check_id("task_id", task_id)
        return TaskHandle(self._source, user, name, signature=signature)

    async def results(self, handles: Iterable[TaskHandle[R]], timeout: Duration | None = None) -> list[R]:
        """Wait for the ends of many tasks, and return their values in the order of the handles.

        Raises what `TaskHandle.result` raises, for the first task to come to that; the others are not waited for then.

        Args:
            timeout: Seconds to wait for all of them, or a timedelta; None waits for ever, 0 looks once.
        """
        return await results_of(handles, timeout)

    async def change_settings(
        self,
        *,
        priority_step: Duration | None = None,
        lease: Duration | None = None,
        result_ttl: Duration | None = None,
        dead_letter_ttl: Duration | None = None,
        max_message_bytes: int | None = None,
        fairness: Literal["cost", "time"] | None = None,
        usage_ttl: Duration | None = None,
    ) -> None:
        """Change settings of the queue, for every process that opens it from now on.

        Those that run already go on with what they know: restart them, and give them the new values where they name
        any. What waits keeps its place.

        Raises:
            InvalidInput: A value breaks a rule, or there is none.
        """
        changes = checked_settings(
            priority_step=priority_step,
            lease=lease,
            result_ttl=result_ttl,
            dead_letter_ttl=dead_letter_ttl,
            max_message_bytes=max_message_bytes,
            fairness=fairness,
            usage_ttl=usage_ttl,
        )
        if not changes:
            raise InvalidInput("change_settings needs a setting to change, such as lease=30")
        await self._reader.change_settings(changes)

    async def stats(self) -> QueueStats:
        """Totals of the queue, and its workers."""
        return await self._reader.stats()

    async def users(self, *, offset: int = 0, limit: int = 100) -> Listed[UserInfo]:
        """Users, the most recently active first."""
        if offset < 0 or not 1 <= limit <= 1000:
            raise InvalidInput(f"offset must be at least 0 and limit 1 to 1000, not {offset!r} and {limit!r}")
        with noting_missing() as missing:
            found = await self._reader.users(offset, limit)
        return Listed(found, missing.numbers)

    async def active_users(self, *, limit: int = 100) -> Listed[UserInfo]:
        """Users with something to serve or something running, in no order.

        When there are more than `limit` (at most 1000), those that are served next and those that were served last.
        """
        count = check_count("limit", limit, 1, 1000)
        with noting_missing() as missing:
            found = await self._reader.active_users(count)
        return Listed(found, missing.numbers)

    async def user(self, user_id: str) -> UserInfo:
        """What is known of one user; zeros for one never heard of."""
        return await self._reader.user(check_user("user_id", user_id))

    async def tasks(
        self, user_id: str, *, state: TaskState | None = None, limit: int = 100, after: TaskInfo | None = None
    ) -> list[TaskInfo]:
        """A page of the tasks of a user, in one state or in all that are not ended, and failed ones.

        They come by state: started ones in the order of their start, queued ones in the order in which they will be
        served, scheduled ones by their time, deferred ones by id, failed ones by the time of their end. Of what
        `TaskHandle.info` tells, headers, dependencies, dependents and all errors but the last are left out.

        Finished and canceled tasks are not indexed, which would cost every task: to name one of those states looks at
        every key of the server, in small steps, a second or so per million keys for each page. They come by id.

        Args:
            user_id: The user.
            state: Only tasks in this state.
            limit: Most tasks of a page, 1 to 1000.
            after: The last task of the page before. When it has moved on since, its state is listed from the start, so
                that none is left out, and some may come again.
        """
        return await list_tasks(self._reader, check_user("user_id", user_id), state, limit, after)

    async def health(self) -> QueueHealth:
        """What tells whether the queue is well: its totals, the longest wait, failures, delays, memory."""
        return await look_at_health(self._reader)

    async def check(self, *, repair: bool = False) -> QueueCheck:
        """Look whether the queue contradicts itself: every key of it, in small steps, while others work.

        Each task must be in one place, each user where its tasks are served from, each total what is there, and so on:
        see the guide "When something is damaged". It takes a second or so for each 10,000 tasks, and looks at the names
        of all keys of the server.

        Args:
            repair: Mend what can be mended. No task that can still be run is lost; what was lost may cost a task its
                place in line, or one more run.

        Raises:
            SettingsMismatch: The queue has data of another layout.
        """
        return await examine(self._reader, repair=repair)

    def xcom(self, user_id: str, namespace: str = DEFAULT_NAMESPACE) -> XComManager:
        """The values that the tasks of a user share, from outside."""
        return XComManager(self._reader, user_id, namespace, self.settings.max_message_bytes)

    async def dead_letters(
        self,
        user_id: str | None = None,
        *,
        limit: int = 100,
        after: DeadLetter | None = None,
        group: DeadGroup | str | None = None,
    ) -> Listed[DeadLetter]:
        """A page of failed tasks, the oldest first; `after` is the last letter of the page before.

        A letter is kept for `dead_letter_ttl`. With `group`, those with one kind of error: see `dead_groups`.
        """
        if user_id is not None:
            check_user("user_id", user_id)
        return await self._letters.page(user_id, limit, after, group_key(group) if group is not None else "")

    async def dead_groups(self, user_id: str | None = None) -> DeadGroups:
        """The dead letters of a user, or of all, by the kind of their error, counted as they come and go.

        Of a user, 20 kinds are counted by themselves, of the queue 500: those that came first, until their letters are
        gone. So one user's many kinds leave those of others as they are. Costs one call, however many letters there
        are.
        """
        if user_id is not None:
            check_user("user_id", user_id)
        return await self._letters.groups(user_id)

    async def requeue_group(
        self, group: DeadGroup | str, *, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> DeadStep:
        """Requeue some dead letters with one kind of error, the oldest first, and say how far that came.

        Called with the `after` of the step before until there is none, it goes through all that were there at the first
        step; one that fails again meanwhile is left alone. It may be gone on with at any time, by any process.

        Args:
            group: One of `dead_groups`, or its key.
            user_id: Only those of this user.
            limit: Most letters of this step, up to 1,000.
            after: Where the step before ended.

        Raises:
            InvalidInput: A value breaks a rule.
        """
        return await self._dead_step(self._reader.requeue, group, user_id, limit, after)

    async def discard_group(
        self, group: DeadGroup | str, *, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> DeadStep:
        """Give some dead letters with one kind of error up; see `requeue_group`."""
        return await self._dead_step(self._reader.discard, group, user_id, limit, after)

    async def _dead_step(
        self,
        act: Act,
        group: DeadGroup | str,
        user_id: str | None,
        limit: int,
        after: str | None,
    ) -> DeadStep:
        if user_id is not None:
            check_user("user_id", user_id)
        return await self._letters.step(act, user_id, group_key(group), limit, after)

    async def requeue(self, task: DeadLetter | TaskHandle[Any]) -> TaskHandle[Any]:
        """Run a failed task again: its attempts start anew, its errors are kept.

        Raises:
            UnknownTask: It is not a dead letter.
            QueueFull: It does not fit into the `max_queued` of its user, and stays a dead letter.
        """
        check_kind("task", task, DeadLetter, TaskHandle)
        await self._letters.requeue(task.user_id, task.task_id)
        return self.handle(task.user_id, task.task_id)

    async def requeue_all(
        self,
        user_id: str | None = None,
        *,
        kind: FailureKind | str | None = None,
        task_name: str | None = None,
        limit: int = 1000,
    ) -> int:
        """Requeue at most `limit` dead letters that match, the oldest first; returns their number.

        They wait in the lanes of their users like all others, so that nobody else is delayed.

        Raises `QueueUnavailable` that names partitions which did not answer, when what the others have is requeued.

        Raises `QueueFull` when the next ones of a user, up to 100 at a time, do not fit into its `max_queued`: these
        stay dead letters, and what was requeued before stays requeued.
        """
        if user_id is not None:
            check_user("user_id", user_id)
        wanted = _failure_kind(kind) if kind is not None else None
        return await self._letters.requeue_all(
            user_id,
            lambda letter: wanted in (None, letter.kind) and task_name in (None, letter.name),
            limit,
        )

    async def discard(self, task: DeadLetter | TaskHandle[Any]) -> None:
        """Give a failed task up; nothing is left of it. Raises `UnknownTask` when it is not a dead letter."""
        check_kind("task", task, DeadLetter, TaskHandle)
        await self._letters.discard(task.user_id, task.task_id)

    async def cancel_all(
        self,
        user_id: str,
        *,
        name: str | None = None,
        state: TaskState | str | None = None,
        older_than: Duration | None = None,
        reason: str = "",
    ) -> int:
        """Cancel the tasks of a user that match, and say how many: what waits ends, what runs is told to stop.

        Those that are put in after the call began stay. It goes in bounded steps, between which others work, and may be
        called again. Each task is canceled as by `TaskHandle.cancel`. Those that are canceled by their dependencies
        with it are not counted.

        Args:
            user_id: The user.
            name: Only tasks of this name.
            state: Only those that are ``queued``, ``scheduled``, ``deferred`` or ``started``.
            older_than: Only those that were put in, or requeued, longer ago, in seconds or as a timedelta.
            reason: Kept with each, of at most 2,000 characters.

        Raises:
            InvalidInput: A value breaks a rule; nothing was canceled.
        """
        return await cancel_all(self._reader, user_id, name=name, state=state, older_than=older_than, reason=reason)

    async def purge(self, user_id: str, *, timeout: Duration = 30.0) -> Purged:
        """Cancel and erase everything of a user: waiting, running and failed tasks, results, XCom values, policy.

        Works in bounded steps and may be called again. Results are found by looking at every key of the server, which
        takes a second or so per million keys, in small steps.

        Args:
            user_id: The user.
            timeout: Seconds to wait for running tasks to stop.
        """
        return await purge(self._reader, check_user("user_id", user_id), check_seconds("timeout", timeout))

    async def export_user(self, user_id: str) -> AsyncGenerator[bytes]:
        """Everything that a user has, as records to be kept in their order: for another queue, or for the user.

        The user stands still meanwhile: nothing of it starts, what ends is reported when it goes on, and calls that
        would change something of it wait, or raise `UserFrozen` after the `timeout` of the queue. Others are served as
        ever. It goes on when the last record was taken, when the loop is left, or half a minute after the exporter was
        killed or stood still. What runs goes on running, and is told as queued, with the attempts that it had. Nothing
        is erased.

        Works in bounded steps, and looks at every key of the server, which takes a second or so per million keys.

        Args:
            user_id: The user.

        Yields:
            Records, of some hundred KiB at most unless one value is larger. What is sealed stays so.

        Raises:
            InvalidInput: Nothing is known of the user.
            UserFrozen: It is being exported by another, or its import is not complete.
        """
        async with aclosing(export(self._bulk, check_user("user_id", user_id))) as records:
            async for record in records:
                yield record

    async def move(self, user_id: str, partition: int) -> Moved:
        """Carry a user to another partition, with all that it has: also what runs, which goes on.

        The user stands still meanwhile, as in `export_user`: its calls wait, nothing of it starts, and what ends is
        reported when it goes on. Others are served as ever. Order, attempts, leases, limits, virtual time and usage are
        what they were. Whoever looks for it where it was is sent on, and remembers. A user of whom nothing is known yet
        will live there.

        Works in bounded steps, and looks at every key of the server. A process that is killed in the middle leaves a
        user that goes on where it was after half a minute, or, from the step on in which it left, one that workers
        carry to the end.

        Args:
            user_id: The user.
            partition: Its number, from 0.

        Raises:
            InvalidInput: There is no such partition, or the user is in a group.
            UserFrozen: It is being exported or moved by another.
            QueueUnavailable: It stood still for too long, and went on where it was.
        """
        check_user("user_id", user_id)
        return await move(self._bulk, user_id, check_count("partition", partition, 0, MOST_PARTITIONS - 1))

    async def move_group(self, group: str, partition: int) -> int:
        """Carry a group to another partition, and all of its users after it, one by one, each as `move` does it.

        From the first step on, who is put into the group goes there. Until the last of its users has come, those who
        have and those who have not are two groups, each with the weight of it. Where it is broken off, call it again.

        Args:
            group: The outermost one: all of it lives together.
            partition: Its number, from 0.

        Returns:
            How many users were carried.

        Raises:
            InvalidInput: There is no such partition, or the group is within another one.
            UserFrozen: One of its users is being exported or moved by another.
            QueueUnavailable: A partition did not answer, or a user stood still for too long.
        """
        root = packed_group(group)
        if "/" in root:
            raise InvalidInput(f"group {group!r} lives where {group.split('/', maxsplit=1)[0]!r} does: move that")
        count = check_count("partition", partition, 0, MOST_PARTITIONS - 1)
        return await move_group(self._bulk, root, count)

    async def import_user(self, records: AsyncIterable[bytes] | Iterable[bytes]) -> Imported:
        """Make a user of what `export_user` has yielded, which then goes on where it stood.

        Works in bounded steps, keeping the ids of its tasks in memory, and nothing of the user is served before the
        last one. Where it is broken off, wherever, call it again with the same records: what is there already is passed
        over. `purge` gives it up. Until then the user stands still, as in `export_user`, and `health` names it.

        The queue may be another one, on another server. Sealed contents can only be read in the realm (the name of the
        queue, unless its codec says another one) that they were sealed for. Records are checked before they are
        written, as they may be by any hand: whatever they hold, only things of their user are touched.

        Args:
            records: All records of an export, in their order.

        Raises:
            BadExport: They are broken off, changed, of another version, realm or `priority_step`, or break a rule.
            InvalidInput: The user is known here already.
            UserFrozen: Another import of it is not complete.
        """
        return await import_records(self._bulk, records)

    def _make(
        self, task: Task[Any], user_id: str | None, nonce: bytes, ids: defaultdict[str, dict[Task[Any], str]]
    ) -> NewTask:
        depends_on = task.task_options.depends_on
        if not depends_on:
            return self._producer.make(task, user_id, nonce)
        user = user_of(task, user_id)
        needs = dependency_ids(depends_on, user, ids[user])
        return self._producer.make(task, user_id, nonce, depends_on=list(dict.fromkeys(needs)))

    async def _put_in(
        self,
        given: Sequence[Task[R]],
        changed: Sequence[Task[R]],
        user_id: str | None,
        send: Callable[[list[NewTask]], Awaitable[list[Put]]],
    ) -> list[TaskHandle[R]]:
        """The changed ones, each under the name of the one that was given: others may depend on that."""
        nonce = b""
        ids: defaultdict[str, dict[Task[Any], str]] = defaultdict(dict)  # by user
        made: list[NewTask] = []
        for task, sent in zip(given, changed, strict=True):
            if len(made) % BATCH == 0:  # names a round trip: an id that comes again in a later one is not its own
                nonce = new_nonce()
            new = self._make(sent, user_id, nonce, ids)
            ids[new.user_id][task] = new.task_id
            made.append(new)
        return [self._handle(task, new, put) for task, new, put in zip(given, made, await send(made), strict=True)]

    async def _enqueue_through(self, door: EnqueueDoor, task: Task[R]) -> TaskHandle[R]:
        async def put_in(tasks: list[Task[Any]]) -> tuple[list[str], TaskHandle[R]]:
            [handle] = await self._put_in([task], tasks, None, self._producer.submit)
            return [handle.task_id], handle

        return await door.through("task", [task], put_in)

    def _handle(self, task: Task[R], new: NewTask, put: Put) -> TaskHandle[R]:
        if isinstance(put, Placed):
            return TaskHandle(self._source, new.user_id, put.task_id, enqueued=put.enqueued, signature=task.signature)
        enqueued = Enqueued.CREATED if put else Enqueued.KEPT
        return TaskHandle(self._source, new.user_id, new.task_id, enqueued=enqueued, signature=task.signature)

    async def _enqueue_last(
        self, task: Task[R], user_id: str | None, parent: Parent | None = None, key: str = ""
    ) -> TaskHandle[R]:
        """A task with outputs of others among its arguments, and with it those others."""
        graph = parallel(task)
        nodes = _in_batch(graph, {"batch": task.task_options.batch})
        run = await self._enqueue_pipeline(nodes, graph, user_id, parent, key)
        return cast("TaskHandle[R]", run[graph.names()[task]])

    async def _enqueue_pipeline(
        self,
        nodes: Sequence[Task[Any]],
        pipeline: Pipeline,
        user_id: str | None,
        parent: Parent | None = None,
        key: str = "",
    ) -> PipelineHandle:
        """`key`: of a run that its parent puts in once."""
        run_id = None
        if parent is not None:
            for node in nodes:
                check_step(node, cast("str", user_id))
            longest = max((len(name.encode()) for name in pipeline.names().values()), default=0)
            run_id = child_id(parent.task_id, key, len(".") + longest)

        async def put_in(tasks: Sequence[Task[Any]]) -> tuple[list[str], PipelineHandle]:
            plan = PipelinePlan(
                self._producer,
                pipeline,
                tasks,
                user_id if parent is not None or self.enqueue_door is None else None,
                keeps_results=self.settings.result_ttl_ms > 0,
                run_id=run_id,
                parent=parent,
            )
            run = await self._put_in_pipeline(pipeline, plan)
            return [handle.task_id for handle in run.tasks.values()], run

        if self.enqueue_door is None:
            return (await put_in(nodes))[1]
        return await self.enqueue_door.through("pipeline", [for_user(node, user_id) for node in nodes], put_in)

    async def _put_in_pipeline(self, pipeline: Pipeline, plan: PipelinePlan) -> PipelineHandle:
        puts = await self._producer.submit(plan.tasks)
        nodes = cast("tuple[Task[Any], ...]", pipeline.nodes)
        handles: dict[str, TaskHandle[Any]] = {
            plan.names[node]: self._handle(node, new, put)
            for node, new, put in zip(nodes, plan.tasks, puts, strict=True)
        }
        return PipelineHandle(
            self._source, plan.user_id, plan.run_id, handles, [plan.names[leaf] for leaf in pipeline.leaves]
        )


def _failure_kind(kind: FailureKind | str) -> FailureKind:
    try:
        return FailureKind(kind)
    except ValueError:
        raise InvalidInput(f"kind must be {', '.join(FailureKind)}, not {kind!r}") from None


def _in_batch(pipeline: Pipeline, options: Mapping[str, Any]) -> tuple[Task[Any], ...]:
    """Its tasks, with the only option that a pipeline takes."""
    if others := options.keys() - {"batch"}:
        raise InvalidInput(f"a pipeline takes no {min(others)}: give it to its tasks, by .options()")
    nodes = cast("tuple[Task[Any], ...]", pipeline.nodes)
    batch = options.get("batch")
    return nodes if batch is None else tuple(node.options(batch=batch) for node in nodes)


def _alone(task: Task[R]) -> Task[R]:
    if task.upstream:
        raise InvalidInput(f"{task!r} has outputs of others as arguments: enqueue it alone, or in a pipeline")
    return task


def _changed(task: Task[R], options: Mapping[str, Any]) -> Task[R]:
    if not isinstance(task, Task):
        raise WrongType(f"only a task can be enqueued, as in enqueue(resize(42)), not {task!r}")
    changes = {name: value for name, value in options.items() if value is not None}
    return task.options(**changes) if changes else task
