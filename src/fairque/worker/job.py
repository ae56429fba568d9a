"""A delivery made ready to run."""

from __future__ import annotations

from typing import Any

import msgspec

from fairque.redis.delivery import Delivery
from fairque.tasks.function import TaskFunction
from fairque.tasks.message import Firing, Message, Overrides
from fairque.tasks.options import TaskOptions
from fairque.worker.context import Services, TaskContext

__all__ = ["Job", "JobContext"]


class JobContext(TaskContext):
    """The context of a job of this worker, which can serve it."""

    __slots__ = ("delivery", "function")

    def __init__(
        self,
        delivery: Delivery,
        name: str,
        worker_id: str,
        services: Services,
        function: TaskFunction[Any, Any] | None,
        schedule: Firing | None,
    ) -> None:
        super().__init__(delivery.user_id, delivery.id, name, delivery.attempt, worker_id, services, schedule)
        self.delivery = delivery
        self.function = function

    def plain(self) -> TaskContext:
        """For a subprocess."""
        context = TaskContext(
            self.user_id, self.task_id, self.name, self.attempt, self.worker_id, schedule=self.schedule
        )
        context.inputs = self.inputs
        return context


class Job(msgspec.Struct, eq=False):
    """A delivery with its function and arguments. `message`: it is given something by others before it runs."""

    delivery: Delivery
    name: str
    overrides: Overrides
    defaults: TaskOptions
    function: TaskFunction[Any, Any] | None
    args: Any
    kwargs: dict[str, Any]
    began: float
    context: JobContext
    message: Message | None = None

    def __repr__(self) -> str:
        return f"<Job {self.name} of {self.delivery!r}>"

    @property
    def in_thread(self) -> bool:
        return self.function is not None and self.function.run_in == "thread"

    @property
    def timeout(self) -> float | None:
        return self.overrides.timeout if self.overrides.timeout is not None else self.defaults.timeout
