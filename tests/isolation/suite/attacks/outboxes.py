"""Rows of an outbox, which a relay moves as fast as it can."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session

from fairque.contrib.sqlalchemy import Outbox, OutboxRelay, OutboxRow, metadata
from tests.isolation.suite.attack import ATTACKER, Attacker, attack
from tests.isolation.suite.attacks.floods import ids
from tests.isolation.suite.bounds import Rivals
from tests.isolation.suite.tasks import nap

ROWS = 1_000


@asynccontextmanager
async def database() -> AsyncIterator[Engine]:
    with tempfile.TemporaryDirectory() as directory:
        engine = create_engine(f"sqlite:///{Path(directory) / 'outbox.db'}")
        metadata.create_all(engine)
        yield engine
        engine.dispose()


async def flood(a: Attacker, user_of: Callable[[int], str]) -> None:
    """There are always rows to be moved, and at most ten times as many tasks that wait."""
    async with database() as engine:
        relay = OutboxRelay(a.queue, engine)
        async for _ in a.again(0.01):
            if (await a.queue.stats()).queued < 10 * ROWS:
                await add(a, engine, user_of)
            await relay.move()
        await relay.drain()  # what is left: each row is a task in the end


async def add(a: Attacker, engine: Engine, user_of: Callable[[int], str]) -> None:
    outbox = Outbox(a.queue)
    with Session(engine) as session, session.begin():
        if session.scalar(select(func.count()).select_from(OutboxRow)) == 0:
            session.add_all([await outbox.row(nap(), user_id=user_of(n)) for n in range(ROWS)])
            a.put_in += ROWS


@attack("a flood of outbox rows", f"{ROWS:,} rows at a time, which a relay moves")
async def rows(a: Attacker) -> None:
    await flood(a, lambda _: ATTACKER)


@attack("outbox rows of many user ids", "the same, of 1,000 ids", lambda scale: Rivals(users=ids(scale)))
async def rows_of_many(a: Attacker) -> None:
    await flood(a, lambda n: f"{ATTACKER}-{n % ids(a.scale)}")
