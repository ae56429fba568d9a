"""`Outbox`: adds tasks to a transaction of the application. `SyncOutbox` does without await."""

from __future__ import annotations

from typing import Any, Protocol, Unpack, cast

from fairque import InvalidInput, Task, TaskQueue, WrongType
from fairque.contrib.sqlalchemy.row import OutboxRow, new_receipt
from fairque.sync import TaskQueue as BlockingQueue
from fairque.tasks.message import new_nonce
from fairque.tasks.options import Options

__all__ = ["Outbox", "SyncOutbox"]


class SomeSession(Protocol):
    """A `Session` of SQLAlchemy, an `AsyncSession`, or one that is scoped."""

    def add(self, instance: object, /) -> None: ...


class Outbox:
    """Puts tasks in with the commit of a transaction.

    Args:
        queue: Where they go. It need not be open, and Redis need not be there.
    """

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue

    async def enqueue(self, session: SomeSession, task: Task[Any], **options: Unpack[Options]) -> str:
        """Add a task to the transaction of a session, and return its id: ``queue.handle(user_id, task_id)`` finds it
        once a relay has moved it, a moment after the commit.

        The enqueue middlewares of the queue stand around this call. A `delay` and the seconds of `expires` count from
        when the task is moved. A pipeline cannot be put in so: put in a task that enqueues it.

        Args:
            session: Blocking or async. Nothing is sent to the database before its next flush.
            task: What is to run.
            **options: Those of `TaskOptions`; what is not given here comes from the task's own.

        Raises:
            InvalidInput: A value breaks a rule; nothing was added.
            MessageTooLarge: It is larger than `max_message_bytes` of the queue; the default, if that was never open.
        """
        row = await self.row(task, **options)
        session.add(row)
        return row.task_id

    async def row(self, task: Task[Any], **options: Unpack[Options]) -> OutboxRow:
        """The row that `enqueue` adds, for a session of your own ways. Raises what `enqueue` raises."""
        changed = _checked(task).options(**_given(options))
        door = self.queue.enqueue_door
        if door is None:
            return self._row(changed)

        async def put_in(tasks: list[Task[Any]]) -> tuple[list[str], OutboxRow]:
            made = self._row(tasks[0])
            return [made.task_id], made

        return await door.through("task", [changed], put_in)

    def _row(self, task: Task[Any]) -> OutboxRow:
        receipt = new_receipt()
        named = task if task.task_options.task_id else task.options(task_id=receipt)
        return OutboxRow.of(self.queue.message_of(named, new_nonce()), self.queue.name, receipt)

    def __repr__(self) -> str:
        return f"<Outbox of {self.queue.name!r}>"


class SyncOutbox:
    """`Outbox` for blocking code.

    Args:
        queue: A `fairque.sync.TaskQueue`. Redis need not be there.
    """

    def __init__(self, queue: BlockingQueue) -> None:
        self.queue = queue

    def enqueue(self, session: SomeSession, task: Task[Any], **options: Unpack[Options]) -> str:
        """As `Outbox.enqueue`."""
        bridge = self.queue._session
        row = bridge.run(Outbox(bridge.queue).row, task, **options)
        session.add(row)
        return row.task_id

    def __repr__(self) -> str:
        return f"<SyncOutbox of {self.queue.name!r}>"


def _checked(task: object) -> Task[Any]:
    if not isinstance(task, Task):
        raise WrongType(f"an outbox takes a task, as in enqueue(session, resize(42)), not {task!r}")
    if task.upstream:
        raise InvalidInput(f"{task!r} has outputs of others as arguments: put in a task that enqueues the pipeline")
    return task


def _given(options: Options) -> Options:
    return cast("Options", {name: value for name, value in options.items() if value is not None})
