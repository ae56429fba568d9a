"""`Executor`: makes a delivery ready, and runs its body where it belongs: on the loop, in a thread, in a subprocess."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from fairque.errors import BadArguments, BrokenSeal, FairqueError, UnknownKey
from fairque.middleware import CallNext, Once, chained
from fairque.queue.batch import Batch, BlockingBatch
from fairque.queue.handle import TaskHandle
from fairque.queue.pipeline_handle import PipelineHandle
from fairque.queue.queue import TaskQueue
from fairque.queue.waiter import waiter
from fairque.queue.xcom import BlockingXCom, XCom
from fairque.redis.delivery import Delivery
from fairque.tasks.cause import Cause, cause_in
from fairque.tasks.failure import RaisedElsewhere, unfit
from fairque.tasks.function import TaskFunction
from fairque.tasks.message import Message, encode_value, is_payload
from fairque.tasks.names import hint
from fairque.tasks.pipeline import Pipeline
from fairque.tasks.registry import get_function, registry
from fairque.tasks.sealed import open_task
from fairque.tasks.task import Task
from fairque.tasks.xcom import xcom_of
from fairque.worker.context import running
from fairque.worker.group import Served
from fairque.worker.inputs import Inputs
from fairque.worker.lifespan import Lifespan
from fairque.worker.options import WorkerOptions
from fairque.worker.progress import Progress
from fairque.worker.running_task import RunningTask
from fairque.worker.soft_timeout import telling
from fairque.worker.streams import Streams
from fairque.worker.subprocesses.frames import Job
from fairque.worker.subprocesses.pool import ProcessPool
from fairque.worker.threads import Threads
from fairque.worker.unsaid import restate

__all__ = ["Executor", "PutBack", "UnknownName"]

T = TypeVar("T")
LAST_SECONDS = 1.0
TWICE = "a middleware may run a generator once in an attempt: what it has yielded, others have read"
HINT_SECONDS = 1.0


class UnknownName(Exception):
    """This worker has no function of that name; another one may. `hint` names one that may have been meant."""

    def __init__(self, name: str, hint: str = "") -> None:
        super().__init__(f"no task {name!r} here{hint}")
        self.name = name
        self.hint = hint


class PutBack(Exception):
    """What a task is given by others cannot be read here; another worker may be able to."""

    def __init__(self, why: UnknownKey) -> None:
        super().__init__(str(why))
        self.why = why


class Executor:
    """What is needed to run deliveries: functions by name, a handler for the rest, and threads and processes to run in.

    Args:
        options: Of the worker. Its concurrency bounds the threads as well.
        queue: Where tasks put in others.
        inputs: Fetches what tasks are given by others.
        progress: Takes what running tasks report.
        lifespan: Of the worker: it has what its tasks share.
        streams: Runs generators.

    Attributes:
        run: Runs a body, within the middlewares of the worker where it has any.
    """

    def __init__(
        self,
        options: WorkerOptions,
        queue: TaskQueue,
        inputs: Inputs,
        progress: Progress,
        lifespan: Lifespan[Any],
        streams: Streams,
    ) -> None:
        self._queue = queue
        self._sealer = queue.sealer
        self._worker_id = options.worker_id
        self._handler = options.handler
        self._middleware = options.run_middleware
        self.run: Callable[[RunningTask], Coroutine[Any, Any, Any]] = (
            self._run_within if self._middleware else self._run
        )
        self._inputs = inputs
        self._progress = progress
        self._lifespan = lifespan
        self._streams = streams
        self._loop = asyncio.get_running_loop()
        self._threads = Threads(options.concurrency, options.max_leftover_threads)
        self._hinted = -math.inf
        self._processes = ProcessPool(options.concurrency, options.max_tasks_per_child)

    def prepare(self, delivery: Delivery) -> RunningTask:
        """Raises `BadMessage`, `UnknownName`, `BadArguments`, `TooManyThreads`, `Restated` and `SealError`."""
        message = open_task(self._sealer, delivery.user_id, delivery.id, delivery.body)
        function = self._function_for(message)
        if function is not None and function.run_in == "thread":
            self._threads.check(delivery.user_id)
        if function is not None and message.overrides is not None and message.overrides.unsaid:
            restate(delivery, message, function, self._inputs.max_message_bytes, self._sealer)
        run = RunningTask(delivery, message, function, self._worker_id, self)
        if self._sealer is not None:
            self.cause(run)  # one that cannot be opened here is for another worker, or nobody
        if run.overrides.inputs or xcom_of(function).reads:
            run.message = message
        else:
            run.args, run.kwargs = _arguments(message, function)
        return run

    def _function_for(self, message: Message) -> TaskFunction[Any, Any] | None:
        """None: it is for the handler."""
        is_for_handler = is_payload(message.args)
        function = None if is_for_handler else get_function(message.name)
        if function is None and (not is_for_handler or self._handler is None):
            raise UnknownName(message.name, self._hint(message.name))
        return function

    def _hint(self, name: str) -> str:
        """At most once a second: names come from users, and comparing them takes a while."""
        now = time.monotonic()
        if now < self._hinted + HINT_SECONDS:
            return ""
        self._hinted = now
        return hint(name, registry)

    async def _run_within(self, run: RunningTask) -> Any:
        running.set(run)
        waiter.set(run)
        if run.message is not None:  # as with what is decoded before: they are around what has its arguments
            await self._gather(run, run.message)
            run.message = None
        last: CallNext = partial(self._run_plain, run)
        if run.function is not None and run.function.yields:
            last = Once(last, TWICE)
        return await chained(self._middleware, run, last)()

    async def _run_plain(self, run: RunningTask) -> Any:
        """What a middleware is given is a value, not its encoding."""
        value = await self._run(run)
        return msgspec.msgpack.decode(value) if isinstance(value, msgspec.Raw) else value

    async def _run(self, run: RunningTask) -> Any:
        """Run the body where it belongs, with `current_task()` in place."""
        function = run.function
        running.set(run)
        waiter.set(run)
        if run.message is not None:
            await self._gather(run, run.message)
        if function is not None and function.collects:
            group = run.group
            if group is not None and group.awaits(run):
                return await group.serve(run)
            return (await self.run_together([run]))[0].get()
        if function is None:
            assert self._handler is not None
            return await _timed(self._handler.process_task(*run.args), run)
        if function.yields:
            return await _timed(self._streams.run(run, function, self._threads), run)
        if function.run_in == "loop":
            body = function.body(*run.args, **run.kwargs)
            return await (body if run.soft_ends == math.inf else telling(body, run))
        if function.run_in == "thread":
            value = await self._threads.run(run.delivery, partial(function.body, *run.args, **run.kwargs))
            # It may be a wrapper around an async function.
            return await _timed(value, run) if inspect.isawaitable(value) else value
        return await self._run_in_process(run, function)

    def has_nothing_around(self, run: RunningTask) -> bool:
        """Whether its body is all there is to run."""
        return not self._middleware and run.message is None

    async def run_together(self, runs: list[RunningTask]) -> list[Served]:
        """One body for all of them, which are of one function and one user: what it has for each. `current_task()` is
        the first of them. Nothing is raised: what the body raises, SystemExit included, is for all.
        """
        try:
            values = await self._values_of(runs)
        except BaseException as exc:
            return [Served(error=exc, traceback=exc.__traceback__)] * len(runs)
        return [Served.of(value) for value in values]

    async def _values_of(self, runs: list[RunningTask]) -> Sequence[Any]:
        first, function = runs[0], runs[0].function
        assert function is not None
        running.set(first)
        waiter.set(first)
        items = [run.args[0] if run.args else next(iter(run.kwargs.values())) for run in runs]
        if function.run_in == "thread":
            found = await self._threads.run(first.delivery, partial(function.body, items))
            found = await _timed(found, first) if inspect.isawaitable(found) else found
        else:
            found = await _timed(function.body(items), first)
        if not isinstance(found, Sequence) or len(found) != len(items):
            text = f"{len(found)} results" if isinstance(found, Sequence) else f"a {type(found).__name__}"
            raise ValueError(f"{function.name!r} was given {len(items)} arguments, and returned {text}")
        return found

    async def _run_in_process(self, run: RunningTask, function: TaskFunction[Any, Any]) -> Any:
        reply = await self._processes.run(_job(run, function), partial(self.progress, run))
        run.charged += reply.charged
        if reply.raised is not None:
            raise RaisedElsewhere(reply.raised)
        return reply.value

    async def _gather(self, run: RunningTask, message: Message) -> None:
        """Everything that others give: outputs in the arguments, results of dependencies, XCom values."""
        try:
            if run.overrides.inputs:
                message = await self._inputs.arguments(run.delivery, message)
            if run.function is not None and xcom_of(run.function).reads:
                run.args, run.kwargs = await self._given(run, message, run.function)
            else:
                run.args, run.kwargs = _arguments(message, run.function)
        except BadArguments as exc:
            raise unfit(exc) from None
        except BrokenSeal as exc:
            raise unfit(BadArguments(f"what others give cannot be opened: {exc}")) from None
        except UnknownKey as exc:
            raise PutBack(exc) from None

    async def _given(
        self, run: RunningTask, message: Message, function: TaskFunction[Any, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """The arguments, with what its XCom options say: results of dependencies, and pulled values."""
        args, kwargs = function.signature.decode(message.args, message.kwargs)
        xcom, inputs = xcom_of(function), run.inputs
        if xcom.auto and run.overrides.depends_on:
            inputs.update(await self._inputs.results(run.delivery, run.overrides))
        if xcom.pull_keys:
            inputs.update(await self._inputs.pulled(run.delivery, function))
        kwargs |= function.signature.accepted(inputs, len(args), kwargs)
        function.signature.check_call(args, kwargs)
        return args, kwargs

    @property
    def leftover_threads(self) -> int:
        """Threads whose tasks are over."""
        return self._threads.left

    @property
    def queue_name(self) -> str:
        return self._queue.name

    @property
    def server(self) -> tuple[str, int | None] | None:
        return self._queue.connector.server

    def state(self) -> Any:
        return self._lifespan.state

    def cause(self, run: RunningTask) -> Cause | None:
        return cause_in(run.delivery.body, self._sealer, run.user_id)

    def xcom(self, run: RunningTask) -> XCom | BlockingXCom:
        if run.is_in_thread and run.ended:
            raise FairqueError("this task is over: its thread can neither pull nor push values any more")
        values = self._inputs.xcom(run.user_id, xcom_of(run.function).namespace)
        return BlockingXCom(values, self._loop) if run.is_in_thread else values

    def batch(self, run: RunningTask, batch_id: str) -> Batch | BlockingBatch:
        batch = self._queue.batch(run.user_id, batch_id=batch_id, adder=run.task_id)
        return BlockingBatch(batch, self._loop) if run.is_in_thread else batch

    async def enqueue_child(
        self, run: RunningTask, key: str, task: Task[Any] | Pipeline, with_parent: bool, options: Mapping[str, Any]
    ) -> TaskHandle[Any] | PipelineHandle:
        parent = self._queue.handle(run.user_id, run.task_id)
        return await self._queue.enqueue_child(parent, key, task, with_parent=with_parent, options=options)

    def wait_in_thread(self, call: Coroutine[Any, Any, T]) -> T:
        if not self._loop.is_running() or asyncio._get_running_loop() is self._loop:
            call.close()
            raise FairqueError("enqueue_from_thread works in the thread of a plain task: here, await enqueue")
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def progress(self, run: RunningTask, fraction: float, message: str) -> None:
        self._progress.report(run.delivery, fraction, message)

    def forget(self, delivery: Delivery) -> None:
        """Its run has ended."""
        self._progress.forget(delivery)

    async def close(self) -> None:
        """Nothing runs any more, but in threads whose tasks are over: what goes on there has a moment."""
        await self._threads.close(LAST_SECONDS)
        await self._processes.close()


def _timed(body: Awaitable[Any], run: RunningTask) -> Awaitable[Any]:
    return body if run.soft_ends == math.inf else telling(body, run)


def _arguments(message: Message, function: TaskFunction[Any, Any] | None) -> tuple[Any, Any]:
    """As the message has them. Those for a subprocess stay encoded, as decoding may run code of their classes.

    Raises `BadArguments`.
    """
    if function is not None and function.run_in == "process":
        return message.args, message.kwargs
    if function is not None:
        args, kwargs = function.signature.decode(message.args, message.kwargs)
        function.signature.check_call(args, kwargs)
        return args, kwargs
    try:
        return (msgspec.msgpack.decode(message.args),), {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadArguments(f"the payload of task {message.name!r} cannot be decoded: {exc}") from None


def _job(run: RunningTask, function: TaskFunction[Any, Any]) -> Job:
    return Job(
        function.fn.__module__,
        function.fn.__qualname__,
        function.name,
        msgspec.Raw(encode_value(run.args)),
        msgspec.Raw(encode_value(run.kwargs)),
        run.user_id,
        run.task_id,
        run.name,
        run.attempt,
        run.worker_id,
        run.schedule,
        msgspec.Raw(encode_value(run.inputs)),
        run.overrides.headers,
        run.snoozed,
        run.soft_ends - time.monotonic() if run.soft_ends < math.inf else None,
        run.cause,
        run.ended_batch,
        run.queue_name,
        run.entered or [],
    )
