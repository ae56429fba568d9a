"""Runs one delivery where its body belongs: on the loop, in a thread, in a subprocess."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import anyio.to_process
import anyio.to_thread
import msgspec
from anyio import BrokenWorkerProcess, CapacityLimiter

from fairque.errors import BadArguments
from fairque.models import FailureKind
from fairque.queue.xcom import BlockingXCom, XCom
from fairque.redis.delivery import Delivery
from fairque.tasks.failure import Failure, Raised, RaisedElsewhere, Reply
from fairque.tasks.function import TaskFunction
from fairque.tasks.message import Message, Overrides, decode_body, encode_value, is_payload
from fairque.tasks.options import NO_OPTIONS
from fairque.tasks.registry import get_function
from fairque.tasks.xcom import xcom_of
from fairque.worker.context import TaskContext, running
from fairque.worker.inputs import Inputs
from fairque.worker.job import Job, JobContext
from fairque.worker.process_body import run_in_process
from fairque.worker.progress import Progress

__all__ = ["Executor", "TaskHandler", "UnknownName"]

_NO_OVERRIDES = Overrides()


class TaskHandler(ABC):
    """Serves the tasks that have no function: those of ``Task.create(payload=…)``."""

    @abstractmethod
    async def process_task(self, payload: dict[str, Any]) -> Any:
        """Do the work; what it returns is the result. `current_task()` tells the user and the id."""


class UnknownName(Exception):
    """This worker has no function of that name; another one may."""


class Executor:
    """What is needed to run deliveries: functions by name, a handler for the rest, and threads and processes to run in.

    Args:
        worker_id: Told to the tasks.
        concurrency: Bounds the threads and subprocesses as well.
        handler: Serves tasks without a function.
        inputs: Fetches what tasks are given by others.
        progress: Takes what running tasks report.
    """

    def __init__(
        self, worker_id: str, *, concurrency: int, handler: TaskHandler | None, inputs: Inputs, progress: Progress
    ) -> None:
        self._worker_id = worker_id
        self._handler = handler
        self._inputs = inputs
        self._progress = progress
        self._threads = CapacityLimiter(concurrency)
        self._processes = CapacityLimiter(concurrency)

    def prepare(self, delivery: Delivery) -> Job:
        """Raises `BadMessage`, `UnknownName` and `BadArguments`."""
        message = decode_body(delivery.body)
        overrides = message.overrides or _NO_OVERRIDES
        began = time.monotonic()
        function = self._function_for(message)
        defaults = function.defaults if function is not None else NO_OPTIONS
        context = JobContext(delivery, message.name, self._worker_id, self, function, overrides.schedule)
        if overrides.inputs or xcom_of(function).reads:
            return Job(delivery, message.name, overrides, defaults, function, (), {}, began, context, message)
        args, kwargs = _arguments(message, function)
        return Job(delivery, message.name, overrides, defaults, function, args, kwargs, began, context)

    def _function_for(self, message: Message) -> TaskFunction[Any, Any] | None:
        """None: it is for the handler."""
        is_for_handler = is_payload(message.args)
        function = None if is_for_handler else get_function(message.name)
        if function is None and (not is_for_handler or self._handler is None):
            raise UnknownName(message.name)
        return function

    async def run(self, job: Job) -> Any:
        """Run the body where it belongs, with `current_task()` in place."""
        function = job.function
        running.set(job.context)
        if job.message is not None:
            await self._gather(job, job.message)
        if function is None:
            assert self._handler is not None
            return await self._handler.process_task(*job.args)
        if function.run_in == "loop":
            return await function.fn(*job.args, **job.kwargs)
        if function.run_in == "thread":
            return await anyio.to_thread.run_sync(
                _call, function.fn, job.args, job.kwargs, abandon_on_cancel=True, limiter=self._threads
            )
        return await self._run_in_process(job, function)

    async def _run_in_process(self, job: Job, function: TaskFunction[Any, Any]) -> Any:
        try:
            answer = await anyio.to_process.run_sync(
                run_in_process,
                (function.fn.__module__, function.fn.__qualname__, function.name),
                encode_value(job.args),
                encode_value(job.kwargs) if job.kwargs else None,
                job.context.plain(),
                cancellable=True,
                limiter=self._processes,
            )
        except BrokenWorkerProcess:
            failure = Failure(FailureKind.ERROR, "ProcessDied", "the subprocess of the task died")
            raise RaisedElsewhere(Raised(failure, ("ProcessDied",))) from None
        reply = msgspec.msgpack.decode(answer, type=Reply)
        job.context.charged += reply.charged
        if reply.raised is not None:
            raise RaisedElsewhere(reply.raised)
        return msgspec.msgpack.decode(reply.value)

    async def _gather(self, job: Job, message: Message) -> None:
        """Everything that others give: outputs in the arguments, results of dependencies, XCom values."""
        try:
            if job.overrides.inputs:
                message = await self._inputs.arguments(job.delivery, message)
            if job.function is not None and xcom_of(job.function).reads:
                job.args, job.kwargs = await self._given(job, message, job.function)
            else:
                job.args, job.kwargs = _arguments(message, job.function)
        except BadArguments as exc:
            failure = Failure(FailureKind.BAD_ARGUMENTS, "BadArguments", str(exc))
            raise RaisedElsewhere(Raised(failure, is_final=True)) from None

    async def _given(self, job: Job, message: Message, function: TaskFunction[Any, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments, with what its XCom options say: results of dependencies, and pulled values."""
        args, kwargs = function.signature.decode(message.args, message.kwargs)
        xcom, inputs = xcom_of(function), job.context.inputs
        if xcom.auto and job.overrides.depends_on:
            inputs.update(await self._inputs.results(job.delivery, job.overrides.depends_on))
        if xcom.pull_keys:
            inputs.update(await self._inputs.pulled(job.delivery, function))
        kwargs |= function.signature.accepted(inputs, len(args), kwargs)
        function.signature.check_call(args, kwargs)
        return args, kwargs

    def xcom(self, context: TaskContext) -> XCom | BlockingXCom:
        assert isinstance(context, JobContext)
        function = context.function
        values = self._inputs.xcom(context.user_id, xcom_of(function).namespace)
        return BlockingXCom(values) if function is not None and function.run_in == "thread" else values

    def progress(self, context: TaskContext, fraction: float, message: str) -> None:
        assert isinstance(context, JobContext)
        self._progress.report(context.delivery, fraction, message)

    def forget(self, delivery: Delivery) -> None:
        """Its run has ended."""
        self._progress.forget(delivery)


def _arguments(message: Message, function: TaskFunction[Any, Any] | None) -> tuple[Any, dict[str, Any]]:
    """As the message has them. Raises `BadArguments`."""
    if function is not None:
        args, kwargs = function.signature.decode(message.args, message.kwargs)
        function.signature.check_call(args, kwargs)
        return args, kwargs
    try:
        return (msgspec.msgpack.decode(message.args),), {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadArguments(f"the payload of task {message.name!r} cannot be decoded: {exc}") from None


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)
