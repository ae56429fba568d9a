"""`OutboxRelay`: moves rows that were committed into the queue.

The life of a row::

    lock its user ─► read it ─► enqueue, with its receipt ─► delete it, commit ─► confirm the receipt
                                       │                          │                      │
        killed before: it waits ◄──────┘      killed before: it is read again, and       └ killed before: the receipt
        still                                 the receipt answers: no second task          goes after a week

There is no cursor: what comes first of all that is committed is next, so a transaction that commits late is not missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import msgspec
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from fairque import FairqueError, InvalidInput, QueueFull, QueueUnavailable, StoreError, TaskQueue, UserFrozen
from fairque.backoff import Backoff
from fairque.checks import Duration, check_seconds
from fairque.contrib.sqlalchemy import table
from fairque.contrib.sqlalchemy.database import Database
from fairque.contrib.sqlalchemy.row import task_in
from fairque.contrib.sqlalchemy.table import Taken, Waiting
from fairque.redis.delivery import NewTask
from fairque.redis.dividing import at_once, divided
from fairque.redis.keys import encode_user

__all__ = ["OutboxRelay"]

logger = logging.getLogger("fairque.outbox")
MOST_ROWS = 500
"""Of a step."""
MOST_USERS = 200
"""Of a step. PostgreSQL has room for some thousands of locks, of all relays together."""
WINDOW_MS = 10_000
"""From before rows are read until they have to be in Redis: what comes later is refused, and read again."""
KEEP_MS = 2 * WINDOW_MS
"""A receipt outlives every call that may have read the row before it was deleted."""
HOLD_SECONDS = 5.0
LONGEST_HOLD = 60.0


class OutboxRelay:
    """Moves rows of the table into the queue: users by turns, the rows of each in the order of their ids.

    Any number of relays may run. A row makes one task. Where the queue is full for a user, or a key of its is damaged,
    its rows wait, and those of others go on. A row that can never be put in (it depends on a task that nobody knows, or
    its `task_id` lives and `on_conflict` is ``"error"``) is set aside with the reason, in `OutboxRow.error`.

    Use it as ``async with OutboxRelay(queue, engine):``, such as in the lifespan of a worker, or await `run`.

    Args:
        queue: Rows for other queues are left alone. It has to be open.
        engine: Of the database, blocking or async.
        interval: Seconds between two looks while nothing waits, or a timedelta.

    Raises:
        InvalidInput: The interval is none.
        WrongType: What is given is no engine.
    """

    def __init__(self, queue: TaskQueue, engine: Engine | AsyncEngine, *, interval: Duration = 0.5) -> None:
        self.queue = queue
        self.interval = check_seconds("interval", interval, 0.001)
        self._database = Database(engine)
        self._held: dict[str, float] = {}
        self._running: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Move what is committed until it is cancelled. Outages of Redis and of the database are waited out."""
        backoff = Backoff()
        while True:
            try:
                moved = await self.move()
            except (FairqueError, SQLAlchemyError, OSError) as exc:
                pause = backoff.next()
                logger.warning("the outbox is tried again in %.1f s: %s", pause, exc)
                await asyncio.sleep(pause)
            else:
                backoff.reset()
                if not moved:
                    await asyncio.sleep(self.interval)

    async def move(self) -> int:
        """One round: some rows of each user of whom something waits. Returns how many tasks were put in.

        Raises:
            QueueUnavailable: Redis did not answer in time. What was moved is recognised.
            StoreError: Redis answered with an error that waiting does not cure.
            SQLAlchemyError: What the database raises.
        """
        moved, after = 0, ""
        while users := await self._users_after(after):
            after = users[-1]
            now = time.monotonic()
            ready = [user for user in users if self._held.get(user, now) <= now]
            while ready:
                moved_now, ready = await self._step(ready)
                moved += moved_now
        return moved

    async def drain(self) -> int:
        """Rounds until one of them moves nothing. Returns how many tasks were put in; raises what `move` raises."""
        total = 0
        while moved := await self.move():
            total += moved
        return total

    async def __aenter__(self) -> Self:
        if self._running is not None:
            raise InvalidInput("the relay runs already: make another one")
        self._running = asyncio.create_task(self.run(), name="fairque-outbox")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    async def _users_after(self, after: str) -> list[str]:
        async with self._database.transaction() as transaction:
            return await transaction.call(table.users_after, self.queue.name, after, MOST_USERS)

    async def _step(self, users: Sequence[str]) -> tuple[int, list[str]]:
        """Some rows of each of these users, in one transaction: how many, and the users that had no room in it."""
        store = self.queue.reader
        by_ms = await store.confirm((), KEEP_MS) + WINDOW_MS
        async with self._database.transaction() as transaction:
            taken = await transaction.call(_take, self.queue.name, users)
            sending = Sending(self.queue, by_ms)
            try:
                await sending.send(taken.rows)
            finally:
                self._hold(sending)  # a step that fails, or takes too long, finds fewer of them the next time
            await transaction.call(_put_down, sending)
        await store.confirm([row.receipt for row in sending.moved], KEEP_MS)
        return len(sending.moved), taken.left

    def _hold(self, sending: Sending) -> None:
        now = time.monotonic()
        self._held = {user: until for user, until in self._held.items() if until > now}
        for user, seconds in sending.held.items():
            self._held[user] = now + seconds

    def __repr__(self) -> str:
        return f"<OutboxRelay of {self.queue.name!r} from {self._database!r}>"


def _take(connection: Connection, queue: str, users: Sequence[str]) -> Taken:
    """Where there are no locks, nothing of the database is held while Redis is asked."""
    ours = table.lock(connection, queue, users)
    taken = table.read_rows(connection, queue, ours, MOST_ROWS) if ours else Taken([], [])
    if not table.can_lock(connection):
        connection.rollback()
    return taken


def _put_down(connection: Connection, sending: Sending) -> None:
    table.forget(connection, sending.moved)
    table.set_aside(connection, sending.refused)
    connection.commit()


class Sending:
    """Puts the rows of a step in, as few calls as it takes: nobody fails for another.

    Attributes:
        moved: What is in the queue.
        refused: What can never be put in, and why.
        held: Users whose rows wait on, and for how many seconds.
    """

    def __init__(self, queue: TaskQueue, by_ms: int) -> None:
        self._store = queue.reader
        self._by_ms = by_ms
        self.moved: list[Waiting] = []
        self.refused: dict[Waiting, str] = {}
        self.held: dict[str, float] = {}

    async def send(self, rows: Sequence[Waiting]) -> None:
        """Raises `QueueUnavailable`, but in a queue with partitions: where one does not answer, its users are held."""
        tasks = {row: new for row in rows if (new := self._task(row)) is not None}
        if self._store.backend.is_partitioned:
            await self._send_to_partitions(tasks)
        elif tasks:
            await self._send(tasks)

    async def _send_to_partitions(self, tasks: dict[Waiting, NewTask]) -> None:
        shares = divided(tasks, lambda row: self._store.keys_of(encode_user(row.user_id)).prefix)
        await at_once(self._send_there(tasks, some) for _, some in shares.values())

    async def _send_there(self, tasks: dict[Waiting, NewTask], rows: list[Waiting]) -> None:
        try:
            await self._send({row: tasks[row] for row in rows})
        except QueueUnavailable as exc:
            self.held.update(dict.fromkeys((row.user_id for row in rows), HOLD_SECONDS))
            logger.warning("rows of %d users in the outbox wait: %s", len({row.user_id for row in rows}), exc)

    def _task(self, row: Waiting) -> NewTask | None:
        try:
            return task_in(row.content, row.receipt, self._by_ms)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            self._refuse(row, f"its content is no task: {exc}")
            return None

    async def _send(self, tasks: dict[Waiting, NewTask]) -> None:
        rows = [row for row in tasks if row.user_id not in self.held]
        if not rows:
            return
        try:
            await self._store.enqueue([tasks[row] for row in rows])
        except QueueUnavailable:
            raise
        except FairqueError as exc:
            await self._send_apart(tasks, rows, exc)
        else:
            self.moved += rows

    async def _send_apart(self, tasks: dict[Waiting, NewTask], rows: list[Waiting], error: FairqueError) -> None:
        """The fault may be with one of them. Those of a user stay together and in order."""
        if len(rows) == 1:
            self._judge(rows[0], error)
            return
        users = list(dict.fromkeys(row.user_id for row in rows))
        first = set(users[: len(users) // 2])
        half = [row for row in rows if row.user_id in first] if first else rows[: len(rows) // 2]
        chosen = set(half)
        await self._send({row: tasks[row] for row in half})
        await self._send({row: tasks[row] for row in rows if row not in chosen})

    def _judge(self, row: Waiting, error: FairqueError) -> None:
        if isinstance(error, QueueFull):
            self.held[row.user_id] = min(error.retry_after or HOLD_SECONDS, LONGEST_HOLD)
        elif isinstance(error, (StoreError, UserFrozen)):
            self.held[row.user_id] = HOLD_SECONDS
            logger.warning("rows of user %r in the outbox wait: %s", row.user_id, error)
        else:
            self._refuse(row, str(error))

    def _refuse(self, row: Waiting, why: str) -> None:
        self.refused[row] = why
        logger.error("task %r of user %r in the outbox is set aside: %s", row.task_id, row.user_id, why)
