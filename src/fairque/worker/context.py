"""What a running task may ask about itself: `current_task()`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Unpack, get_origin, overload

from fairque.checks import check_number, check_text
from fairque.errors import FairqueError, InvalidInput, WrongType
from fairque.models import BatchProgress
from fairque.queue.handle import TaskHandle
from fairque.queue.pipeline_handle import PipelineHandle
from fairque.tasks.cause import Cause
from fairque.tasks.message import Firing
from fairque.tasks.options import BatchOption, Options
from fairque.tasks.pipeline import Pipeline
from fairque.tasks.task import Task

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    State = TypeVar("State", default=Any)
else:
    from typing import TypeVar

    State = TypeVar("State")

__all__ = ["State", "TaskContext", "current_task"]

R = TypeVar("R")
MOST_CHARGE = 1_000_000_000


class TaskContext(Generic[State]):
    """Ids and circumstances of the running task.

    Attributes:
        user_id: Whose task it is.
        task_id: Its id, unique per user.
        name: The registered name of the function.
        attempt: 1 for the first run.
        worker_id: The worker that runs it.
        schedule: The firing that made it, with `schedule_id`, `cron` and `planned_at`; None unless a schedule did.
        inputs: With ``auto_xcom``, the results of its direct dependencies by task name, and pulled values by parameter.
        charged: What was added to its cost by `charge`.
        soft_ends: When its soft timeout passes, on the clock of `time.monotonic`; infinity where it has none.
        snoozed: How often it has put itself off, by ``raise Snooze``.
        canceled: Whether somebody asked to cancel it, or what it does counts no more: it ran out of time, another
            worker has it, or its worker stops. A function in a thread cannot be stopped: let it look here.
    """

    __slots__ = (
        "attempt",
        "canceled",
        "charged",
        "inputs",
        "name",
        "schedule",
        "snoozed",
        "soft_ends",
        "task_id",
        "user_id",
        "worker_id",
    )

    def __init__(
        self,
        user_id: str,
        task_id: str,
        name: str,
        attempt: int,
        worker_id: str,
        schedule: Firing | None = None,
    ) -> None:
        self.user_id = user_id
        self.task_id = task_id
        self.name = name
        self.attempt = attempt
        self.worker_id = worker_id
        self.schedule = schedule
        self.inputs: dict[str, Any] = {}
        self.canceled = False
        self.charged = 0.0
        self.snoozed = 0
        self.soft_ends = math.inf

    @property
    def soft_timed_out(self) -> bool:
        """Whether its soft timeout has passed. An async function is told by `SoftTimeout`; others look here."""
        return time.monotonic() >= self.soft_ends

    @property
    def queue_name(self) -> str:
        """The name of the queue that it comes from."""
        raise NotImplementedError

    @property
    def headers(self) -> Mapping[str, str]:
        """The texts by name that its caller gave it by the option `headers`, to be read only."""
        return MappingProxyType(self._headers())

    @property
    def state(self) -> State:
        """What the lifespan of its worker has yielded, see `Worker`: the same for all of its tasks.

        Raises:
            FairqueError: The worker has no lifespan, or this is a subprocess, which cannot share objects with it.
        """
        raise FairqueError(
            "a subprocess has no state: what the lifespan of its worker has opened cannot be shared with another "
            "process; open it there at its first use"
        )

    @property
    def cause(self) -> Cause | None:
        """How the task ended whose callback this is; None for what is no callback."""
        return None

    @property
    def parent(self) -> str | None:
        """The id of the task that put this one in by `enqueue`, or whose callback this is."""
        return None

    @overload
    def enqueue(
        self, task: Task[R], *, key: str | None = None, cancel_with_parent: bool = False, **options: Unpack[Options]
    ) -> Coroutine[Any, Any, TaskHandle[R]]: ...
    @overload
    def enqueue(
        self, task: Pipeline, *, key: str | None = None, cancel_with_parent: bool = False, batch: BatchOption = None
    ) -> Coroutine[Any, Any, PipelineHandle]: ...
    def enqueue(
        self,
        task: Task[Any] | Pipeline,
        *,
        key: str | None = None,
        cancel_with_parent: bool = False,
        **options: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Put in a child: a task of the same user, which this one makes once, however often it runs.

        Its id is that of this task, a slash and the key. Of a pipeline, or a task with outputs of others among its
        arguments, that is the id of the run, and each of its tasks is a child. As long as this task has not ended, it
        is remembered which children it has put in: another attempt, or a requeued life, adds none of them again, also
        when they have ended.

        In a plain function use `enqueue_from_thread`.

        Args:
            task: What to put in.
            key: Unique among the children of this task. None: the last part of the function's name, of a pipeline
                ``pipeline``; the second call of one name in a run is ``name-2`` and so on, so where the order differs
                from run to run, give keys.
            cancel_with_parent: Whether it is canceled when this task is, wherever it is by then.
            options: See `TaskOptions`; there is no `task_id`, and the user is that of this task. A pipeline takes
                `batch` alone.

        Raises:
            InvalidInput: A value breaks a rule; nothing was written.
            DependencyError: This task does not run any more: it was canceled, or its worker lost it.
            QueueUnavailable: Redis did not answer in time. The call can be repeated safely.
            FairqueError: In a subprocess, which has no connection: use `fairque.sync` there.
        """
        return self._put_in(task, key, cancel_with_parent, options)  # type: ignore[no-any-return]

    @overload
    def enqueue_from_thread(
        self, task: Task[Any], *, key: str | None = None, cancel_with_parent: bool = False, **options: Unpack[Options]
    ) -> str: ...
    @overload
    def enqueue_from_thread(
        self, task: Pipeline, *, key: str | None = None, cancel_with_parent: bool = False, batch: BatchOption = None
    ) -> str: ...
    def enqueue_from_thread(
        self,
        task: Task[Any] | Pipeline,
        *,
        key: str | None = None,
        cancel_with_parent: bool = False,
        **options: Any,
    ) -> str:
        """The same for a plain function in its thread. Returns the id of the child, of a pipeline that of the run."""
        made: TaskHandle[Any] | PipelineHandle = self._put_in_from_thread(task, key, cancel_with_parent, options)
        return made.run_id if isinstance(made, PipelineHandle) else made.task_id

    def _put_in(self, *_: Any) -> Any:
        raise FairqueError("a subprocess has no connection to put tasks in: use fairque.sync there")

    def _put_in_from_thread(self, *_: Any) -> Any:
        return self._put_in()

    @property
    def ended_batch(self) -> BatchProgress | None:
        """What the batch came to whose callback this is; None for what is no callback of a batch."""
        return None

    @property
    def batch(self) -> Any:
        """The batch that counts this task, to add to it: a `Batch`, a `BlockingBatch` in a plain function, or None.

        Raises:
            FairqueError: In a subprocess, which has no connection.
        """
        raise FairqueError("a batch cannot be reached from a subprocess: use fairque.sync there")

    @property
    def xcom(self) -> Any:
        """The XCom values of this task's user: an `XCom`, or a `BlockingXCom` in a plain function.

        Raises:
            FairqueError: In a subprocess, which has no connection: push by the decorator instead.
        """
        raise FairqueError("XCom is not available in a subprocess: return the value, and push it with push_key")

    def charge(self, cost: float) -> None:
        """Add to what this task costs its user what became known while it runs: tokens, rows, bytes.

        It counts when the task ends, however it ends; that of an attempt whose worker dies is lost.

        Raises:
            InvalidInput: Not a number from 0 to 1,000,000,000.
        """
        self.charged += check_number("a charge", cost, 0, MOST_CHARGE)

    def progress(self, fraction: float, message: str = "") -> None:
        """Tell those who watch how far it is, from 0 to 1. Cheap: a few reports a second are sent, the rest is skipped.

        What is below 0 counts as 0, and what is above 1, as a sum of parts may be, as 1.

        Raises:
            InvalidInput: The fraction is no number, or the message has more than 2,000 characters.
        """
        if not isinstance(fraction, (int, float)) or math.isnan(fraction):
            raise InvalidInput(f"progress must be a number between 0 and 1, not {fraction!r}")
        self._report(float(min(1, max(0, fraction))), check_text("the message", message))

    def enter_in_subprocess(
        self, manager: Callable[[dict[str, str]], AbstractContextManager[Any]], given: Mapping[str, str]
    ) -> None:
        """For a middleware: where the body runs in a subprocess, have it run within ``manager(given)`` there, which
        finds none of the context variables that are set here. Where it runs in this process, nothing comes of it.

        Args:
            manager: A function at the top of a module, which the subprocess imports. What the context manager raises is
                the error of the attempt.
            given: Texts by name.

        Raises:
            WrongType: It is no function that could be found again, or these are no texts.
        """

    def _headers(self) -> dict[str, str]:
        return {}

    def _report(self, fraction: float, message: str) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<TaskContext {self.name} {self.task_id!r} of {self.user_id!r}, attempt {self.attempt}>"


running: ContextVar[TaskContext] = ContextVar("fairque_task")


@overload
def current_task() -> TaskContext: ...


@overload
def current_task(state: type[State], /) -> TaskContext[State]: ...


def current_task(state: type[Any] | None = None, /) -> TaskContext[Any]:
    """The task that runs here: in its coroutine, and in what that awaits or starts, in its thread or its subprocess.

    Args:
        state: The type of its `state`, for type checkers: ``current_task(Resources).state``. It is checked, but for
            what cannot be, such as a `TypedDict`.

    Raises:
        FairqueError: Called outside a task; or a state is asked for where there is none.
        WrongType: The state is of another type.
    """
    try:
        task = running.get()
    except LookupError:
        raise FairqueError("current_task() was called outside a task") from None
    if state is not None:
        _check_state(task.state, state)
    return task


def _check_state(found: Any, wanted: type[Any]) -> None:
    try:
        fits = isinstance(found, get_origin(wanted) or wanted)
    except TypeError:  # typed dicts, and most protocols
        return
    if not fits:
        raise WrongType(f"the lifespan of this worker has yielded a {type(found).__name__}, not a {wanted.__name__}")
