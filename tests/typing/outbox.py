"""What type checkers see of the outbox: blocking and async sessions and engines are taken as they are."""

from __future__ import annotations

from typing import assert_type

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from fairque import TaskQueue, sync, task
from fairque.contrib.sqlalchemy import Outbox, OutboxRelay, OutboxRow, SyncOutbox


@task
async def deliver(what: str) -> None: ...


async def put_in(
    queue: TaskQueue, session: AsyncSession, scoped: async_scoped_session[AsyncSession], blocking: Session
) -> None:
    outbox = Outbox(queue)
    assert_type(await outbox.enqueue(session, deliver("a lamp"), user_id="acme", priority=5), str)
    await outbox.enqueue(scoped, deliver("a lamp"), task_id="mine")
    await outbox.enqueue(blocking, deliver("a lamp"))
    await outbox.enqueue(session, deliver("a lamp"), colour="red")  # type: ignore[call-arg]
    await outbox.enqueue(queue, deliver("a lamp"))  # type: ignore[arg-type]
    assert_type(await outbox.row(deliver("a lamp")), OutboxRow)


def put_in_without_await(queue: sync.TaskQueue, session: Session, scoped: scoped_session[Session]) -> None:
    outbox = SyncOutbox(queue)
    assert_type(outbox.enqueue(session, deliver("a lamp"), user_id="acme"), str)
    outbox.enqueue(scoped, deliver("a lamp"))


async def move(queue: TaskQueue, engine: Engine, other: AsyncEngine) -> None:
    async with OutboxRelay(queue, engine, interval=0.2) as relay:
        assert_type(await relay.drain(), int)
    await OutboxRelay(queue, other).run()
