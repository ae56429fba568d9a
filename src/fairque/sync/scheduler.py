"""`TaskScheduler` without await."""

from __future__ import annotations

from fairque.scheduler import scheduler
from fairque.sync.face import blocking
from fairque.sync.queue import TaskQueue
from fairque.sync.session import Session

__all__ = ["TaskScheduler"]


class TaskScheduler:
    """Has tasks enqueued at planned times, see `fairque.TaskScheduler`. It may be used wherever its queue may.

    Args:
        queue: It is opened by the first call, and in a forked child anew.
    """

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._made: tuple[Session, scheduler.TaskScheduler] | None = None

    add_schedule = blocking(scheduler.TaskScheduler.add_schedule)
    add_schedules = blocking(scheduler.TaskScheduler.add_schedules)
    update_schedule = blocking(scheduler.TaskScheduler.update_schedule)
    remove_schedule = blocking(scheduler.TaskScheduler.remove_schedule)
    get_schedule = blocking(scheduler.TaskScheduler.get_schedule)
    list_schedules = blocking(scheduler.TaskScheduler.list_schedules)
    pause_schedule = blocking(scheduler.TaskScheduler.pause_schedule)
    resume_schedule = blocking(scheduler.TaskScheduler.resume_schedule)
    run_now = blocking(scheduler.TaskScheduler.run_now)
    schedule_page = blocking(scheduler.TaskScheduler.schedule_page)
    next_runs = blocking(scheduler.TaskScheduler.next_runs)

    run = blocking(scheduler.TaskScheduler.run)
    stop = blocking(scheduler.TaskScheduler.stop)
    fire_due = blocking(scheduler.TaskScheduler.fire_due)

    @property
    def _session(self) -> Session:
        return self._of_session()[0]

    @property
    def _inner(self) -> scheduler.TaskScheduler:
        return self._of_session()[1]

    def _of_session(self) -> tuple[Session, scheduler.TaskScheduler]:
        """One for each session: in a forked child, and when the queue is opened again, there is another."""
        session, made = self._queue._session, self._made
        if made is None or made[0] is not session:
            made = self._made = session, scheduler.TaskScheduler(session.queue)
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} of {self._queue.name!r}>"
