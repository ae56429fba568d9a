"""`TaskScheduler`: fires schedules, and adds, changes and lists them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Unpack

import anyio

from fairque.backoff import Backoff
from fairque.checks import Duration, check_count, check_id, check_list, check_seconds
from fairque.errors import InvalidInput, QueueUnavailable, StoreError, UnknownSchedule, WrongType
from fairque.everybody import check_user
from fairque.listed import Listed
from fairque.queue.enqueue_call import for_user
from fairque.queue.queue import TaskQueue
from fairque.redis.missing import noting_missing
from fairque.redis.store_schedules import Move, ScheduleStore, StoredSchedule, Write
from fairque.schedule.spec import Misfire, Overlap, ScheduleChanges, ScheduledTask
from fairque.scheduler.changes import Wanted, added, changed, check_not_ended, paused, resumed
from fairque.scheduler.declarations import Declarations
from fairque.scheduler.firing import Template, check_task, run_of
from fairque.scheduler.loop import ScheduleLoop
from fairque.scheduler.page import SchedulePage, look_at_schedules, next_slots
from fairque.scheduler.schedule import Schedule, checked_spec
from fairque.scheduler.spread_loops import SpreadLoops
from fairque.tasks.task import Task

__all__ = ["TaskScheduler"]

logger = logging.getLogger("fairque.scheduler")
PAGE = 500
BATCH = 500
MOST_TRIES = 10
MAX_SCHEDULE_ID_BYTES = 480
"""Leaves room for the slot in the id of a task."""


class TaskScheduler:
    """Has tasks enqueued at planned times.

    Workers run one of their own, so it is made by hand to manage schedules, or to fire them in a process that serves
    no tasks: ``await TaskScheduler(queue).run()``. Any number may run: each slot of a schedule makes one task, whoever
    comes first. The task's id is made of the schedule's id and the slot, and ``current_task().schedule`` tells both.

    Schedules live in Redis. Their ids are unique in a queue. Times are those of the Redis server.

    Args:
        queue: An open queue.
        is_watched: Whether somebody calls `look` where nobody else looks at the schedules, as a worker does with its
            signs of life. Else it looks by itself, twice a minute.

    Attributes:
        name: What it is called among the schedulers of the queue.
    """

    def __init__(self, queue: TaskQueue, *, is_watched: bool = False) -> None:
        self._queue = queue
        self.name = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._is_watched = is_watched
        self._store = ScheduleStore(queue.reader)
        self._declarations = Declarations(self._store, self._make_template, queue.enqueue_door)
        self._loop = ScheduleLoop(
            *(queue, self._store, self._declarations, queue.keys.schedules_channel, self.name), is_watched=is_watched
        )
        self._spread: SpreadLoops | None = None
        self._stopped = asyncio.Event()

    # Managing schedules

    async def add_schedule(
        self,
        cron_expr: str | None = None,
        task: Task[Any] | None = None,
        *,
        every: Duration | None = None,
        at: datetime | None = None,
        timezone: str = "UTC",
        user_id: str | None = None,
        schedule_id: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        jitter: Duration = 0.0,
        max_runs: int | None = None,
        misfire: Misfire = "once",
        misfire_limit: int = 100,
        misfire_grace: Duration = 60.0,
        overlap: Overlap = "allow",
    ) -> str:
        """Have a task enqueued again and again, or once, and return the id of the schedule:
        ``add_schedule("0 12 * * *", report(), user_id="acme", schedule_id="noon")``.

        With the id of a schedule that the user has already, that one is changed to what is said here. Whether it is
        paused, its counts and, unless the times are others, its next slot stay. So a program may add its schedules at
        each start. One that has ended stays so, unless its times or its `max_runs` are others: then it begins anew.

        Args:
            cron_expr: Minutes, hours, day of the month, month, day of the week; with six fields, seconds come first.
                Also ``@hourly``, ``@daily``, ``@weekly``, ``@monthly``, ``@yearly``.
            task: What is enqueued, with its options. Its arguments are stored with the schedule.
            every: Instead: an interval (a number is seconds, at least 1), counted from `start`, else from now.
            at: Instead: one moment. Naive datetimes are local time.
            timezone: What the cron expression is about. Where the clocks change, an expression whose hours are ``*``
                follows elapsed time. Any other names local times: one that is skipped fires once, right after the gap,
                and one that comes twice fires the first time only.
            user_id: Whose schedule it is, and whose share its tasks are charged to; default: the task's own user. That
                stays so for as long as the schedule is there.
            schedule_id: Default: a random one.
            start: No slot before this.
            end: No slot after this.
            jitter: Each slot fires later by up to this, to spread the load; seconds or a timedelta.
            max_runs: The schedule ends after so many firings.
            misfire: What becomes of slots that nobody could fire for longer than `misfire_grace`: ``"once"`` fires once
                for all of them, ``"skip"`` drops them, ``"all"`` fires each, the last `misfire_limit` of them.
            misfire_limit: At most 1,000.
            misfire_grace: Seconds or a timedelta.
            overlap: When a task of the schedule has not ended yet: ``"allow"`` it, ``"skip"`` the slot, or
                ``"cancel_running"``: cancel that task.

        Raises:
            InvalidInput: A value breaks a rule, the schedule would never fire, or another user has one with this id;
                nothing was written.
            QuotaExceeded: The user may not have so many bytes in Redis.
            QueueUnavailable: Redis did not answer in time.
        """
        schedule = Schedule(
            cron_expr,
            task,
            every=every,
            at=at,
            timezone=timezone,
            user_id=user_id,
            schedule_id=schedule_id,
            start=start,
            end=end,
            jitter=jitter,
            max_runs=max_runs,
            misfire=misfire,
            misfire_limit=misfire_limit,
            misfire_grace=misfire_grace,
            overlap=overlap,
        )
        return (await self.add_schedules([schedule]))[0]

    async def add_schedules(self, schedules: Iterable[Schedule]) -> list[str]:
        """Add many, as `add_schedule` does one, and return their ids in the same order.

        They are read and written 500 at a time, in two round trips. Each 500 are added all or not at all: where one of
        them cannot be, the error is about that one, and those before these 500 have been added.

        Raises:
            InvalidInput: As `add_schedule`; or two have the same id. What can be told without Redis is told before
                anything is written.
            QuotaExceeded: A user may not have so many bytes in Redis.
        """
        given = [_check_schedule(each) for each in check_list("schedules", schedules)]
        door = self._queue.enqueue_door
        if door is None or not given:
            return await self._add_all(given)

        async def put_in(tasks: list[Task[Any]]) -> tuple[list[str], list[str]]:
            changed = [replace(each, task=task, user_id=None) for each, task in zip(given, tasks, strict=True)]
            ids = await self._add_all(changed)
            return ids, ids

        tasks = [for_user(check_task(each.task), each.user_id) for each in given]
        return await door.through("schedules", tasks, put_in)

    async def _add_all(self, schedules: Sequence[Schedule]) -> list[str]:
        wanted = [self._wanted(each) for each in schedules]
        ids = [each.schedule_id for each in wanted]
        for name, times in Counter(ids).items():
            if times > 1:
                raise InvalidInput(f"{times} schedules have the id {name!r}")
        for at in range(0, len(wanted), BATCH):
            await self._add(wanted[at : at + BATCH])
        return ids

    async def update_schedule(
        self,
        schedule_id: str,
        *,
        task: Task[Any] | None = None,
        user_id: str | None = None,
        **changes: Unpack[ScheduleChanges],
    ) -> ScheduledTask:
        """Change a schedule; see `add_schedule` for what there is. What is not given stays as it is.

        None brings the default back. The next firing moves only when the times are changed. What a declared schedule is
        said to be in the code comes back when the code changes.

        Args:
            schedule_id: Which one.
            task: What is enqueued from now on, for the user of the schedule.
            user_id: Whose it must be; default: the task's own user. A schedule is never given to another user.
            **changes: See `add_schedule`.

        Raises:
            InvalidInput: A value breaks a rule, the schedule has ended, or it is another user's; nothing was written.
            UnknownSchedule: There is none with this id.
        """
        door = self._queue.enqueue_door
        if task is None or door is None:
            return await self._update(schedule_id, task, user_id, changes)

        async def put_in(tasks: list[Task[Any]]) -> tuple[list[str], ScheduledTask]:
            return [schedule_id], await self._update(schedule_id, tasks[0], None, changes)

        return await door.through("schedules", [for_user(check_task(task), user_id)], put_in)

    async def _update(
        self, schedule_id: str, task: Task[Any] | None, user_id: str | None, changes: ScheduleChanges
    ) -> ScheduledTask:
        def change(known: StoredSchedule) -> Write:
            check_not_ended(known)
            spec = checked_spec(changes, known.spec)
            if spec.max_runs is not None and spec.max_runs <= known.schedule.runs:
                raise InvalidInput(f"max_runs is {spec.max_runs}, and it has run {known.schedule.runs} times already")
            owner = known.schedule.user_id
            template = None if task is None else self._make_template(schedule_id, task, user_id, owner)
            _check_owner(known, user_id if template is None else template.user_id)
            return changed(known, spec, {} if template is None else template.fields)

        return await self._change(schedule_id, change)

    async def remove_schedule(self, schedule_id: str) -> bool:
        """Remove it. Tasks that it made stay. False: there was none. A declared one comes back: pause it instead."""
        return await self._store.remove(_check_schedule_id(schedule_id))

    async def get_schedule(self, schedule_id: str) -> ScheduledTask:
        """A schedule and its statistics.

        Raises:
            UnknownSchedule: There is none with this id.
        """
        return (await self._known(schedule_id)).schedule

    async def list_schedules(
        self, user_id: str | None = None, active: bool | None = None, *, limit: int | None = None
    ) -> Listed[ScheduledTask]:
        """The schedules of a user, or of all, in the order of user and id.

        Args:
            user_id: Whose; None: everybody's.
            active: True: those that will fire again; False: those that are paused or have ended.
            limit: At most so many.
        """
        if user_id is not None:
            check_user("user_id", user_id)
        if limit is not None:
            check_count("limit", limit, 1, 1_000_000)
        found: list[ScheduledTask] = []
        with noting_missing() as missing:
            async for known in self._each(user_id):
                if active is None or known.schedule.active == active:
                    found.append(known.schedule)
                if len(found) == limit:
                    break
        return Listed(found, missing.numbers)

    async def pause_schedule(self, schedule_id: str) -> ScheduledTask:
        """Fire no more until `resume_schedule`.

        Raises:
            InvalidInput: It has ended.
            UnknownSchedule: There is none with this id.
        """
        return await self._change(schedule_id, paused)

    async def resume_schedule(self, schedule_id: str) -> ScheduledTask:
        """Go on with the next slot from now. Those that passed during the pause are not made up for.

        Raises:
            InvalidInput: It has ended, or has no slots any more.
            UnknownSchedule: There is none with this id.
        """
        return await self._change(schedule_id, resumed)

    async def run_now(self, schedule_id: str) -> str:
        """Enqueue the task of a schedule at once, and return its id. The next firing stays where it is.

        It does not count as one of the schedule's runs, and ``overlap="skip"`` does not hold it back; while it has not
        ended, it holds back the slots. With ``"cancel_running"``, it cancels what has not ended.

        Raises:
            InvalidInput: The backlog of the user is full.
            UnknownSchedule: There is none with this id.
            SealError: Its arguments are sealed, and cannot be read here.
        """
        unique = os.urandom(4).hex()
        for _ in range(MOST_TRIES):
            known = await self._known(schedule_id)
            due, spec = known.due, known.spec
            assert due is not None
            task_id = f"{schedule_id}@run-{unique}"
            door = self._queue.firing_door
            body, callbacks = run_of(self._queue.sealer, door, due, spec, task_id, known.now_ms)
            overlap = "allow" if spec.overlap == "skip" else spec.overlap
            move = Move(due, task_id, body, callbacks, None, None, 0, "now", overlap, None)
            [outcome] = await self._loop.send([move])
            if outcome == "full":
                raise InvalidInput(f"schedule {schedule_id!r}: the backlog of user {due.user_id!r} is full")
            if outcome == "fired":
                return task_id
        raise _changed_by_others(schedule_id)

    async def next_runs(self, schedule_id: str, n: int = 5) -> list[datetime]:
        """The next slots, as aware datetimes in UTC, without jitter. Fewer when it ends, none while it is paused.

        Raises:
            UnknownSchedule: There is none with this id.
        """
        check_count("n", n, 1, 1000)
        return next_slots(await self._known(schedule_id), n)

    async def schedule_page(
        self, user_id: str | None = None, *, limit: int = 50, after: str | None = None, next_runs: int = 3
    ) -> SchedulePage:
        """Schedules of a user, or of all, with their next slots and what became of the last tasks that each made.

        Costs two round trips, and the server a look at each of them and at five tasks of each.

        Args:
            user_id: Whose; None: everybody's.
            limit: At most so many, up to 500.
            after: That of the page before.
            next_runs: How many slots ahead, up to 20.

        Raises:
            InvalidInput: A value breaks a rule, or `after` is of a page of another user.
        """
        return await look_at_schedules(self._store, self._queue.reader, user_id, limit, after, next_runs)

    # Firing

    async def run(self) -> None:
        """Fire what is due until `stop` is called, the queue is closed or the task is cancelled. Outages of Redis are
        waited out.

        Between two firings it sleeps, and is woken when schedules change. Schedules that ``@task(cron=…)`` declares in
        this process are registered first.

        Raises:
            NotPermitted: The user of Redis may not do what a scheduler does.
        """
        backoff = Backoff()
        while not (self._stopped.is_set() or self._queue.connector.is_closed):
            try:
                loops = await self._loops()
            except QueueUnavailable as exc:
                logger.warning("cannot begin to fire schedules, trying again: %s", exc)
                with anyio.move_on_after(backoff.next()):
                    await self._stopped.wait()
            else:
                await loops.run()
                break

    async def _loops(self) -> ScheduleLoop | SpreadLoops:
        """Of a queue with partitions, one for each. They see to what they may do, and to settings yet to be made."""
        if self._spread is None and await self._queue.reader.is_divided(store=False):
            self._spread = SpreadLoops(
                *(self._queue, self._queue.reader, self._declarations, self.name), is_watched=self._is_watched
            )
            if self._stopped.is_set():
                self._spread.stop()
        return self._spread or self._loop

    def look(self, partition: int = 0) -> None:
        """Nobody else may be looking at the schedules of this partition."""
        (self._spread or self._loop).look(partition)

    async def stop(self) -> None:
        """Have `run` return after what it is doing."""
        self._stopped.set()
        self._loop.stop()
        if self._spread is not None:
            self._spread.stop()

    async def fire_due(self, ahead: Duration = 0.0) -> int:
        """Fire everything that is due now, or would be within `ahead` seconds, one slot at a time, and return how many
        tasks that made. For tests, and for those who keep time themselves.

        Raises:
            InvalidInput: That would be more than 10,000 firings; those were made.
        """
        loops = await self._loops()
        return await loops.fire_due(round(check_seconds("ahead", ahead) * 1000))

    # Reading and writing

    def _make_template(
        self, schedule_id: str, task: Task[Any] | None, user_id: str | None, owner: str | None = None
    ) -> Template:
        limit = self._queue.settings.max_message_bytes
        return Template.of(schedule_id, task, user_id, limit, owner, self._queue.sealer)

    async def _known(self, schedule_id: str) -> StoredSchedule:
        known = await self._store.get(_check_schedule_id(schedule_id))
        if known is None:
            raise UnknownSchedule(f"no schedule has the id {schedule_id!r}")
        return known

    async def _each(self, user_id: str | None) -> AsyncIterator[StoredSchedule]:
        page, after = await self._store.page(user_id, "", PAGE)
        while True:
            for known in page:
                yield known
            if not after:
                return
            page, after = await self._store.page(user_id, after, PAGE)

    async def _change(self, schedule_id: str, change: Callable[[StoredSchedule], Write]) -> ScheduledTask:
        """Write what `change` makes of the schedule as it is, anew when somebody else was faster."""
        for _ in range(MOST_TRIES):
            if await self._store.write(change(await self._known(schedule_id))) == "done":
                return (await self._known(schedule_id)).schedule
        raise _changed_by_others(schedule_id)

    def _wanted(self, schedule: Schedule) -> Wanted:
        name = schedule.schedule_id
        name = _check_schedule_id(name) if name is not None else os.urandom(10).hex()
        return Wanted(name, schedule.spec, self._make_template(name, schedule.task, schedule.user_id))

    async def _add(self, wanted: Sequence[Wanted]) -> None:
        """All or none."""
        ids = [each.schedule_id for each in wanted]
        for _ in range(MOST_TRIES):
            now_ms, known = await self._store.look(ids)
            writes = [added(each, known.get(each.schedule_id), now_ms) for each in wanted]
            changes = [write for write in writes if write is not None]
            if not changes or await self._store.write(*changes) == "done":
                return
        raise _changed_by_others(*ids)


def _check_schedule(value: object) -> Schedule:
    if not isinstance(value, Schedule):
        raise WrongType(f"only a Schedule can be added among many, not {value!r}")
    return value


def _check_owner(known: StoredSchedule, user_id: str | None) -> None:
    if user_id is not None and known.schedule.user_id != user_id:
        name = known.schedule.schedule_id
        raise InvalidInput(
            f"schedule {name!r} is not {user_id!r}'s, and is given to nobody: remove it, and add it anew"
        )


def _check_schedule_id(schedule_id: str) -> str:
    check_id("schedule_id", schedule_id)
    if len(schedule_id.encode()) > MAX_SCHEDULE_ID_BYTES:
        raise InvalidInput(f"schedule_id has more than {MAX_SCHEDULE_ID_BYTES} bytes: {schedule_id[:40]!r}…")
    return schedule_id


def _changed_by_others(*schedule_ids: str) -> StoreError:
    some = ", ".join(map(repr, schedule_ids[:3])) + (", …" if len(schedule_ids) > 3 else "")
    return StoreError(f"schedule {some} is changed all the time by others")
