"""`RunningTask`: a task on its way through this worker, from its delivery to its outcome."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from fairque.checks import check_kind
from fairque.models import BatchProgress
from fairque.queue.batch import Batch, BlockingBatch
from fairque.queue.handle import TaskHandle
from fairque.queue.pipeline_handle import PipelineHandle
from fairque.queue.xcom import BlockingXCom, XCom
from fairque.redis.delivery import Delivery
from fairque.tasks.cause import Cause, ended_batch_in
from fairque.tasks.function import TaskFunction
from fairque.tasks.message import Message, Overrides, follow_up_in
from fairque.tasks.options import NO_OPTIONS, TaskOptions, soft_and_hard
from fairque.tasks.pipeline import Pipeline
from fairque.tasks.task import Task
from fairque.worker.context import TaskContext
from fairque.worker.group import Group
from fairque.worker.subprocesses.frames import Entered, entered

__all__ = ["RunningTask"]

T = TypeVar("T")
_NO_OVERRIDES = Overrides()


class Services(Protocol):
    """What a worker does for a task while it runs."""

    @property
    def queue_name(self) -> str: ...
    @property
    def server(self) -> tuple[str, int | None] | None: ...
    def state(self) -> Any: ...
    def cause(self, run: RunningTask) -> Cause | None: ...
    def xcom(self, run: RunningTask) -> XCom | BlockingXCom: ...
    def batch(self, run: RunningTask, batch_id: str) -> Batch | BlockingBatch: ...
    def enqueue_child(
        self, run: RunningTask, key: str, task: Task[Any] | Pipeline, with_parent: bool, options: Mapping[str, Any]
    ) -> Coroutine[Any, Any, TaskHandle[Any] | PipelineHandle]: ...
    def wait_in_thread(self, call: Coroutine[Any, Any, T]) -> T: ...
    def progress(self, run: RunningTask, fraction: float, message: str) -> None: ...


class RunningTask(TaskContext[Any]):
    """A delivery with its function and arguments, and how far it is. `current_task()` hands it to its body.

    Attributes:
        delivery: What came from Redis.
        function: None where a `TaskHandler` serves it.
        overrides, defaults: Options of the task and, where it does not say, of its function.
        args, kwargs: What the body is called with; encoded for one in a subprocess.
        message: Only where others give it something before it runs, see `Inputs`.
        began: On the clock of `time.monotonic`.
        body: Runs it; None before it starts and after it has ended.
        timer: Of its timeout, then of the grace after a cancellation.
        entered: What its body runs within in a subprocess.
        on_wait: Told for whom it has waited, and for how many seconds.
        waits: For the ends of how many others it waits at this moment.
        ended: Whether its outcome is known, whatever its body still does.
        cut_off: Why its body is cancelled: "canceled", "timeout", "lost" or "released"; empty while it is not.
        group: Those that run with it in one body; None: it runs alone.
    """

    __slots__ = (
        "_named",
        "_services",
        "args",
        "began",
        "body",
        "cut_off",
        "defaults",
        "delivery",
        "ended",
        "entered",
        "function",
        "group",
        "kwargs",
        "message",
        "on_wait",
        "overrides",
        "timer",
        "waits",
    )

    def __init__(
        self,
        delivery: Delivery,
        message: Message,
        function: TaskFunction[Any, Any] | None,
        worker_id: str,
        services: Services,
    ) -> None:
        overrides = message.overrides or _NO_OVERRIDES
        super().__init__(delivery.user_id, delivery.id, message.name, delivery.attempt, worker_id, overrides.schedule)
        self.delivery = delivery
        self.snoozed = delivery.snoozed
        self.function = function
        self.overrides = overrides
        self.defaults: TaskOptions = function.defaults if function is not None else NO_OPTIONS
        self.args: Any = ()
        self.kwargs: Any = {}
        self.message: Message | None = None
        self.began = time.monotonic()
        self.body: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.ended = False
        self.cut_off = ""
        self.entered: list[Entered] | None = None
        self.on_wait: Callable[[str, float], None] | None = None
        self.group: Group[RunningTask] | None = None
        self.waits = 0
        self._services = services
        self._named: Counter[str] | None = None  # children without keys, by the names of their functions

    @property
    def is_in_thread(self) -> bool:
        return self.function is not None and self.function.run_in == "thread"

    def begin_time(self, most: float | None) -> float | None:
        """Its timeout, else `most`; what is soft of it begins as well."""
        soft: float | None
        hard: float | None
        if self.overrides.timeout is not None:
            soft, hard = self.overrides.soft_timeout, self.overrides.timeout
        elif self.defaults.timeout is not None:
            soft, hard = soft_and_hard(self.defaults.timeout)
        else:
            return most
        if soft is not None:
            self.soft_ends = self.began + soft
        return hard

    @property
    def queue_name(self) -> str:
        return self._services.queue_name

    @property
    def server(self) -> tuple[str, int | None] | None:
        """Where its queue is, as `EnqueueCall.server`."""
        return self._services.server

    @property
    def wait_seconds(self) -> float:
        """How long it stood in line for this run, on the server's clock."""
        return max(0, self.delivery.started_ms - self.delivery.queued_ms) / 1000

    def has_waited(self, whom: str, seconds: float) -> None:
        if self.on_wait is not None:
            self.on_wait(whom, seconds)

    @property
    def state(self) -> Any:
        return self._services.state()

    @property
    def cause(self) -> Cause | None:
        return self._services.cause(self)

    @property
    def parent(self) -> str | None:
        return self.overrides.parent or follow_up_in(self.delivery.body)[0] or None

    def _put_in(
        self, task: Task[Any] | Pipeline, key: str | None, with_parent: bool, options: Mapping[str, Any]
    ) -> Any:
        return self._services.enqueue_child(self, self._key_of(task, key), task, with_parent, options)

    def _put_in_from_thread(self, *child: Any) -> Any:
        return self._services.wait_in_thread(self._put_in(*child))

    def _key_of(self, task: Task[Any] | Pipeline, key: str | None) -> str:
        if key is not None:
            return key
        given = check_kind("task", task, Task, Pipeline)
        name = "pipeline" if isinstance(given, Pipeline) else given._short_name
        self._named = self._named or Counter()
        self._named[name] += 1
        return name if self._named[name] == 1 else f"{name}-{self._named[name]}"

    @property
    def ended_batch(self) -> BatchProgress | None:
        return ended_batch_in(self.delivery.body)

    @property
    def batch(self) -> Any:
        batch_id = self.overrides.batch
        return self._services.batch(self, batch_id) if batch_id else None

    @property
    def xcom(self) -> Any:
        return self._services.xcom(self)

    def enter_in_subprocess(
        self, manager: Callable[[dict[str, str]], AbstractContextManager[Any]], given: Mapping[str, str]
    ) -> None:
        if self.function is None or self.function.run_in != "process":
            return
        self.entered = [*(self.entered or []), entered(manager, given)]

    def _headers(self) -> dict[str, str]:
        return self.overrides.headers

    def _report(self, fraction: float, message: str) -> None:
        self._services.progress(self, fraction, message)
