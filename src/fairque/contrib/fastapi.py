"""fairque in a FastAPI app: queues and workers that live as long as the app, in its own event loop.

::

    queue = TaskQueue("redis://localhost:6379")
    app = FastAPI(lifespan=lifespan(queue, worker=lambda: Worker(queue)))
    install_handlers(app)
    app.get("/health")(health)


    @app.post("/resize")
    async def resize_image(image: int, queue: QueueDep) -> str:
        return (await queue.enqueue(resize(image), user_id="acme")).task_id

Each process of the app (``uvicorn --workers 4``) has a worker of its own; ``embedded://`` is a server per queue, so
use ``embedded:///some/dir`` with several. An app that only enqueues leaves out `worker`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from functools import cache
from typing import Annotated, Any
from weakref import WeakSet

import msgspec

from fairque import (
    ConfigError,
    DuplicateTask,
    FairqueError,
    InvalidInput,
    NotEncodable,
    QueueFull,
    QueueUnavailable,
    Restarted,
    ResultTimeout,
    Streamed,
    TaskCanceled,
    TaskExists,
    TaskFailed,
    TaskHandle,
    TaskQueue,
    TaskStream,
    UnknownTask,
    UserFrozen,
    Worker,
    WrongType,
    XComMissing,
)
from fairque.tasks.types.adapters import travels_as

try:
    from fastapi import Depends, FastAPI, Header, Request, Response
    from fastapi.responses import JSONResponse
    from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
    from starlette.requests import HTTPConnection
    from starlette.types import Receive, Scope, Send
except ModuleNotFoundError as exc:
    raise ImportError(f"fairque.contrib.fastapi needs {exc.name}: pip install 'fairque[fastapi]'") from exc

__all__ = ["LastEventId", "QueueDep", "health", "install_handlers", "lifespan", "queue_dep", "stream_events"]

logger = logging.getLogger("fairque.fastapi")
STATE = "fairque"
RETRY_SECONDS = 5
HEALTH_SECONDS = 2.0

WorkerSource = Worker | Callable[[], Worker]
State = Mapping[str, Any]
Inner = Callable[[FastAPI], AbstractAsyncContextManager[State]] | Callable[[FastAPI], AbstractAsyncContextManager[None]]


def lifespan(
    *queues: TaskQueue,
    worker: WorkerSource | Iterable[WorkerSource] = (),
    inner: Inner | None = None,
    require: bool = False,
) -> Callable[[FastAPI], AbstractAsyncContextManager[dict[str, Any]]]:
    """The lifespan of an app with queues: opens them, runs workers, drains those at the end, and closes the queues.

    The workers start after `inner` and stop before it ends, so that tasks find what it provides. The app starts when
    their own lifespans are open; what one of them raises at its start is raised by that of the app.

    A worker that dies is logged, and `health` tells. It is not started again: that is for who supervises the process.

    Args:
        queues: The first one is `QueueDep`, each is ``queue_dep(name)``.
        worker: A `Worker` of one of these queues, or a function that makes one, or several of either. A worker runs
            once: an app that is started more than once, as in tests, needs functions.
        inner: The app's own lifespan. What it yields is kept.
        require: What happens when Redis is not there at the start: with True the start fails with `QueueUnavailable`.
            By default the app starts (after the `timeout` of the queue), calls fail with `QueueUnavailable` until
            Redis is there, and the workers wait.

    Raises:
        InvalidInput: No queue, two of one name, or a worker of another queue.
        ConfigError: At the start: a server that cannot be used.
    """
    by_name = {queue.name: queue for queue in queues}
    if not queues or len(by_name) < len(queues):
        raise InvalidInput(f"lifespan takes one or more queues with different names, not {[q.name for q in queues]}")
    sources = [worker] if isinstance(worker, Worker) or callable(worker) else list(worker)
    used: WeakSet[Worker] = WeakSet()

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            for queue in queues:
                stack.push_async_callback(queue.close)
                await _open(queue, require)
            state = await stack.enter_async_context(inner(app)) if inner is not None else None
            workers = [_made(source, queues, used) for source in sources]
            served = [await stack.enter_async_context(_Served(each)) for each in workers]
            yield {**(state or {}), STATE: _Embedded(by_name, served)}

    return run


@cache
def queue_dep(name: str | None = None) -> Callable[[HTTPConnection], Any]:
    """The dependency on the queue of this name, by default on the first one of the `lifespan`.

    ``Mails = Annotated[TaskQueue, Depends(queue_dep("mails"))]``. Called again it is the same one, so that tests can
    replace it: ``app.dependency_overrides[queue_dep("mails")] = …``.
    """

    async def queue(connection: HTTPConnection) -> TaskQueue:
        queues = _embedded(connection).queues
        if name is not None and name not in queues:
            raise ConfigError(f"this app has no queue {name!r}: its lifespan has {', '.join(map(repr, queues))}")
        return queues[name] if name is not None else next(iter(queues.values()))

    return queue


QueueDep = Annotated[TaskQueue, Depends(queue_dep())]
"""``async def endpoint(queue: QueueDep)``: the first queue of the `lifespan`."""


async def health(request: Request) -> Response:
    """An endpoint that tells whether all is well: ``app.get("/health")(health)``.

    200, or 503 when Redis does not answer within 2 seconds or a worker has died. It tells the names of queues and
    workers, and no reasons: those are in the log.
    """
    embedded = _embedded(request)
    answers = await asyncio.gather(*map(_answers, embedded.queues.values()))
    queues = dict(zip(embedded.queues, answers, strict=True))
    workers = {served.worker.worker_id: served.is_running for served in embedded.served}
    is_well = all((*queues.values(), *workers.values()))
    return JSONResponse({"ok": is_well, "queues": queues, "workers": workers}, 200 if is_well else 503)


def install_handlers(app: FastAPI) -> None:
    """Answer errors of fairque that an endpoint lets pass, in the manner of FastAPI, with ``{"detail": …}``.

    ====================  ====  ========================================================================
    `InvalidInput`        422   the detail is a list with one entry, as where FastAPI refuses arguments
    `UnknownTask`         404   and `XComMissing`
    `TaskExists`          409
    `QueueFull`           429   with ``Retry-After``, unless its user is paused without an end
    `QueueUnavailable`    503   with ``Retry-After``
    `UserFrozen`          503   with ``Retry-After``
    `ResultTimeout`       504
    ====================  ====  ========================================================================

    What the client cannot help stays an error of the server: `ConfigError`, `DuplicateTask`, `NotEncodable` and
    `WrongType`, which are kinds of `InvalidInput`; `StoreError`; and `TaskFailed` and its like, whose meaning only
    the endpoint knows. Only the text of `InvalidInput` reaches the client: it names the value that breaks a rule.
    """
    for error, handler in _HANDLERS.items():
        app.add_exception_handler(error, handler)


LastEventId = Annotated[str | None, Header(alias="Last-Event-ID")]
"""``position: LastEventId = None``: where a browser goes on reading, see `stream_events`."""


async def stream_events(handle: TaskHandle[Streamed[Any]], position: str | None = None) -> Response:
    """What a task yields as server-sent events, for ``new EventSource("/answers/…")`` in a browser.

    ::

        @app.get("/answers/{task_id}")
        async def answer(task_id: str, queue: QueueDep, position: LastEventId = None) -> Response:
            return await stream_events(queue.handle("acme", task_id), position)

    ==============  ====================================================================================
    event           data, as JSON
    ==============  ====================================================================================
    ``message``     a chunk; the id of the event is its position, which a browser that connects again sends
    ``restarted``   the number of the attempt: what was read counts no more, another run yields from the beginning
    ``finished``    null
    ``failed``      the kind of the failure, as `FailureKind` has it; what else is known of it stays here
    ``canceled``    null
    ``gone``        null: the task was purged meanwhile
    ==============  ====================================================================================

    The last four come at the end: let the client close its `EventSource` there. One that connects again all the same is
    told to stop (204). In silence a comment keeps the connection open.

    Raises:
        UnknownTask: No such task, or its result has expired.
        InvalidInput: The position is none.
        QueueUnavailable: Redis did not answer in time. A later outage is waited out.
    """
    if position == _THE_END:
        return Response(status_code=204)
    stream = handle.stream(after=position)
    await handle.state()
    return _EventStream(_kept_open(_events(stream)))


# Inside


class _Served:
    """A worker that runs for as long as ``async with``."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._is_stopping = False

    @property
    def is_running(self) -> bool:
        return not self._task.done()

    async def __aenter__(self) -> _Served:
        # Not `async with worker`, which waits until Redis is there.
        self._task = asyncio.create_task(self.worker.run(), name=f"fairque-worker-{self.worker.worker_id}")
        opened = asyncio.create_task(self.worker.has_opened.wait())
        try:
            await asyncio.wait([self._task, opened], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._abort()
            raise
        finally:
            opened.cancel()
        if self._task.done() and not self.worker.has_opened.is_set():
            self._task.result()
        self._task.add_done_callback(self._on_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_stopping = True
        await self.worker.stop()
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:  # who stops the app has no more patience
            await self._abort()
            raise

    async def _abort(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    def _on_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.critical("worker %s died", self.worker.worker_id, exc_info=error)
        elif not self._is_stopping:
            logger.critical("worker %s ended, and the app goes on", self.worker.worker_id)


class _Embedded:
    """What a start of an app has of fairque: queues by name, and workers."""

    def __init__(self, queues: Mapping[str, TaskQueue], served: list[_Served]) -> None:
        self.queues = queues
        self.served = served


async def _open(queue: TaskQueue, require: bool) -> None:
    try:
        await queue.open()
    except QueueUnavailable as exc:
        if require:
            raise
        logger.warning("the app starts while queue %r is not available: %s", queue.name, exc)


def _made(source: WorkerSource, queues: tuple[TaskQueue, ...], used: WeakSet[Worker]) -> Worker:
    worker = source if isinstance(source, Worker) else source()
    if worker in used:
        raise InvalidInput(
            "the app is started again, and a worker runs once: lifespan(…, worker=lambda: Worker(queue))"
        )
    if worker.queue not in queues:
        raise InvalidInput(f"worker {worker.worker_id!r} serves a queue that its lifespan was not given")
    used.add(worker)
    return worker


def _embedded(connection: HTTPConnection) -> _Embedded:
    embedded = getattr(connection.state, STATE, None)
    if not isinstance(embedded, _Embedded):
        raise ConfigError(
            "this app runs without queues: FastAPI(lifespan=lifespan(queue)), and in tests `with TestClient(app)`"
        )
    return embedded


async def _answers(queue: TaskQueue) -> bool:
    try:
        async with asyncio.timeout(HEALTH_SECONDS):
            await queue.stats()
    except (FairqueError, TimeoutError) as exc:
        logger.warning("queue %r does not answer: %s", queue.name, exc)
        return False
    return True


# Streams, as clients see them

_THE_END = "end"
_NOTHING: Any = object()
_UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
SILENT_SECONDS = 15.0


class _EventStream(EventSourceResponse):
    """Reads no longer than its client."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, headers=_UNBUFFERED)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


async def _events(stream: TaskStream[Any]) -> AsyncGenerator[bytes, None]:
    while True:
        try:
            async with aclosing(stream.__aiter__()) as chunks:
                async for chunk in chunks:
                    yield _event(None, chunk, stream.position)
        except Restarted as exc:
            yield _event("restarted", exc.attempt, stream.position)
        except TaskFailed as exc:
            yield _event("failed", exc.kind)
            return
        except TaskCanceled:
            yield _event("canceled")
            return
        except UnknownTask:
            yield _event("gone")
            return
        else:
            yield _event("finished")
            return


def _event(kind: str | None, data: Any = None, position: str | None = _THE_END) -> bytes:
    encoded = msgspec.json.encode(data, enc_hook=travels_as).decode()
    return format_sse_event(event=kind, data_str=encoded, id=position)


async def _kept_open(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """A proxy closes what is silent for long."""
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events, _NOTHING))
            if not (await asyncio.wait([coming], timeout=SILENT_SECONDS))[0]:
                yield KEEPALIVE_COMMENT
            elif (event := coming.result()) is _NOTHING:
                return
            else:
                coming = None
                yield event
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])
        await events.aclose()


# Errors, as clients see them


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, (ConfigError, DuplicateTask, NotEncodable, WrongType)):
        raise error
    return JSONResponse({"detail": [{"type": "invalid_input", "loc": [], "msg": str(error)}]}, 422)


async def _unknown(_: Request, error: Exception) -> Response:
    kind = "task" if isinstance(error, UnknownTask) else "value"
    return JSONResponse({"detail": f"no such {kind}, or it has expired"}, 404)


async def _exists(*_: object) -> Response:
    return JSONResponse({"detail": "such a task exists"}, 409)


async def _full(_: Request, error: Exception) -> Response:
    seconds = error.retry_after if isinstance(error, QueueFull) else 0.0
    return _later(429, "too many tasks are waiting", None if seconds is None else math.ceil(seconds))


async def _unavailable(_: Request, error: Exception) -> Response:
    logger.warning("a request fails: %s", error)
    return _later(503, "the task queue is not available", RETRY_SECONDS)


async def _frozen(*_: object) -> Response:
    return _later(503, "the tasks of this user stand still for a while", RETRY_SECONDS)


async def _not_in_time(*_: object) -> Response:
    return JSONResponse({"detail": "the task has not ended in time"}, 504)


def _later(status: int, detail: str, seconds: int | None) -> Response:
    headers = {"Retry-After": str(max(1, seconds))} if seconds is not None else {}
    return JSONResponse({"detail": detail}, status, headers)


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    InvalidInput: _refuse,
    UnknownTask: _unknown,
    XComMissing: _unknown,
    TaskExists: _exists,
    QueueFull: _full,
    QueueUnavailable: _unavailable,
    UserFrozen: _frozen,
    ResultTimeout: _not_in_time,
}
