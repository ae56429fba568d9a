"""`RunningTask`: a task on its way through this worker, from its delivery to its outcome."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

from fairque.queue.xcom import BlockingXCom, XCom
from fairque.redis.delivery import Delivery
from fairque.tasks.function import TaskFunction
from fairque.tasks.message import Message, Overrides
from fairque.tasks.options import NO_OPTIONS, TaskOptions, soft_and_hard
from fairque.worker.context import TaskContext

__all__ = ["RunningTask"]

_NO_OVERRIDES = Overrides()


class Services(Protocol):
    """What a worker does for a task while it runs."""

    def state(self) -> Any: ...
    def xcom(self, run: RunningTask) -> XCom | BlockingXCom: ...
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
        waits: For the ends of how many others it waits at this moment.
        ended: Whether its outcome is known, whatever its body still does.
    """

    __slots__ = (
        "_services",
        "args",
        "began",
        "body",
        "defaults",
        "delivery",
        "ended",
        "function",
        "kwargs",
        "message",
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
        self.waits = 0
        self._services = services

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
    def state(self) -> Any:
        return self._services.state()

    @property
    def xcom(self) -> Any:
        return self._services.xcom(self)

    def _headers(self) -> dict[str, str]:
        return self.overrides.headers

    def _report(self, fraction: float, message: str) -> None:
        self._services.progress(self, fraction, message)
