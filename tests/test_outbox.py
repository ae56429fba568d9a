"""Tasks that are put in with the commit of a transaction of a database."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, event, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from fairque import (
    Encrypt,
    EnqueueCall,
    InvalidInput,
    QueueUnavailable,
    TaskQueue,
    TaskState,
    UnknownKey,
    Worker,
    WrongType,
    task,
)
from fairque.contrib.sqlalchemy import Outbox, OutboxRelay, OutboxRow, SyncOutbox, metadata, table
from fairque.contrib.sqlalchemy import relay as relays
from fairque.redis.delivery import NewTask
from fairque.sync import TaskQueue as BlockingQueue
from fairque.testing import run_all
from tests.support.command import call_command, run_command
from tests.support.contents import contents
from tests.support.eventually import eventually
from tests.support.postgres import Postgres, find_postgres
from tests.support.process import WorkerProcess
from tests.support.resp import RespClient
from tests.support.servers import Server

KEY, SECRET = os.urandom(32), "the secret of zoe"


@task
def note(number: int = 0) -> int:
    return number


@task
def write(text: str) -> int:
    return len(text)


class Database:
    """One engine, with sessions in the manner of that."""

    def __init__(self, engine: Engine | AsyncEngine) -> None:
        self.engine = engine

    async def run(self, function: Callable[[Session], Any]) -> Any:
        """In a transaction that commits."""
        if isinstance(self.engine, AsyncEngine):
            async with AsyncSession(self.engine) as session, session.begin():
                return await session.run_sync(function)
        with Session(self.engine) as session, session.begin():
            return function(session)

    async def make(self) -> None:
        await self.run(lambda session: metadata.create_all(session.connection()))

    async def put(self, outbox: Outbox, *tasks: Any, **options: Any) -> list[str]:
        rows = [await outbox.row(each, **options) for each in tasks]
        ids = [row.task_id for row in rows]
        await self.run(lambda session: session.add_all(rows))
        return ids

    async def left(self) -> int:
        return int(await self.run(lambda session: session.scalar(select(func.count()).select_from(OutboxRow))))

    async def dispose(self) -> None:
        if isinstance(self.engine, AsyncEngine):
            await self.engine.dispose()
        else:
            self.engine.dispose()


DRIVERS = [
    "sqlite",
    "sqlite+aiosqlite",
    "postgresql+psycopg",
    "postgresql+psycopg_async",
    "postgresql+asyncpg",
]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    programs = find_postgres()
    if programs is None:
        assert not os.environ.get("CI"), "the tests need PostgreSQL here (Debian: apt install postgresql)"
        pytest.skip("there is no PostgreSQL (Debian: apt install postgresql)")
    with Postgres(programs) as started:
        yield started


@pytest.fixture
def postgres_name(postgres: Postgres) -> Iterator[str]:
    """A database of the test's own."""
    name = f"test_{os.urandom(6).hex()}"
    postgres.sql(f"CREATE DATABASE {name}")
    yield name
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=DRIVERS)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    driver = request.param
    if driver.startswith("postgresql"):
        url = request.getfixturevalue("postgres").url(driver, request.getfixturevalue("postgres_name"))
    else:
        url = f"{driver}:///{tmp_path / 'app.db'}"
    async with opened(url) as made:
        yield made


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    made = Database(create_async_engine(url) if "async" in url or "aio" in url else create_engine(url))
    await made.make()
    yield made
    await made.dispose()


@pytest.fixture(autouse=True)
async def _purged(server: Server, queue_name: str) -> AsyncIterator[None]:
    yield
    async with TaskQueue(server.url, name=queue_name) as queue:
        for user in await queue.users():
            await queue.purge(user.user_id)


async def ended(queue: TaskQueue, user: str, ids: list[str]) -> list[Any]:
    return await queue.results([queue.handle(user, each) for each in ids], timeout=20)


# Putting in


async def test_a_task_is_put_in_with_the_commit(queue: TaskQueue, database: Database):
    relay = OutboxRelay(queue, database.engine)
    ids = await database.put(Outbox(queue), note(7), user_id="acme")
    assert (await queue.stats()).queued == 0
    assert await relay.drain() == 1
    assert await queue.handle("acme", ids[0]).state() is TaskState.QUEUED
    await run_all(queue)
    assert await ended(queue, "acme", ids) == [7]
    assert (await database.left(), await relay.drain()) == (0, 0)


async def test_what_is_rolled_back_is_never_put_in(queue: TaskQueue, tmp_path: Path):
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    database = Database(engine)
    await database.make()
    async with AsyncSession(engine) as session:
        await Outbox(queue).enqueue(session, note(), user_id="acme")
        await session.flush()
        await session.rollback()
    assert await OutboxRelay(queue, engine).drain() == 0
    assert (await queue.stats()).queued == 0
    await database.dispose()


async def test_the_id_of_a_row_is_the_id_of_its_task_where_the_call_names_none(queue: TaskQueue):
    row = await Outbox(queue).row(note(), user_id="acme")
    assert row.task_id == row.receipt
    row = await Outbox(queue).row(note(), user_id="acme", task_id="mine")
    assert row.task_id == "mine" != row.receipt


async def test_what_cannot_be_put_in_is_refused_before_it_is_added(queue: TaskQueue):
    outbox: Any = Outbox(queue)
    with pytest.raises(InvalidInput, match="no user_id"):
        await outbox.row(note())
    with pytest.raises(WrongType, match="takes a task"):
        await outbox.row("note")
    with pytest.raises(InvalidInput, match="outputs of others"):
        await outbox.row(note(note(1).output), user_id="acme")
    with pytest.raises(WrongType, match="Engine"):
        OutboxRelay(queue, outbox)
    with pytest.raises(InvalidInput, match="interval"):
        OutboxRelay(queue, create_engine("sqlite://"), interval=0)


async def test_middlewares_stand_around_the_call(server: Server, queue_name: str, database: Database):
    seen: list[str] = []

    async def tag(call: EnqueueCall, call_next: Any) -> None:
        call.add_headers({"from": "shop"})
        await call_next()
        seen.extend(call.ids)

    async with TaskQueue(server.url, name=queue_name, enqueue_middleware=[tag]) as queue:
        ids = await database.put(Outbox(queue), note(), user_id="acme")
        assert seen == ids
        await OutboxRelay(queue, database.engine).drain()
        assert (await queue.handle("acme", ids[0]).info()).headers == {"from": "shop"}


async def test_a_queue_that_was_never_open_can_put_in(queue: TaskQueue, database: Database):
    away = Outbox(TaskQueue("redis://127.0.0.1:1", name=queue.name))
    await database.put(away, note(3), user_id="acme")
    assert await OutboxRelay(queue, database.engine).drain() == 1


def test_blocking_code_puts_in_as_well(server: Server, queue_name: str, tmp_path: Path):
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    metadata.create_all(engine)
    with BlockingQueue(server.url, name=queue_name) as queue:
        with Session(engine) as session, session.begin():
            name = SyncOutbox(queue).enqueue(session, note(4), user_id="acme")
        with Session(engine) as session:
            [row] = session.scalars(select(OutboxRow))
            assert (row.task_id, row.user_id, row.queue) == (name, "acme", queue_name)
    engine.dispose()


# Moving


async def test_the_rows_of_a_user_are_put_in_by_their_numbers(queue: TaskQueue, database: Database):
    ids = await database.put(Outbox(queue), *map(note, range(30)), user_id="acme")
    await OutboxRelay(queue, database.engine).drain()
    waiting = await queue.tasks("acme", state=TaskState.QUEUED)
    assert [each.task_id for each in waiting] == ids


@pytest.mark.parametrize("late", [0, 1])
async def test_a_transaction_that_commits_late_is_not_missed(queue: TaskQueue, late: int, tmp_path: Path):
    """The other one's row has the higher number, and is moved before it commits."""
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    database = Database(engine)
    await database.make()
    rows = [await Outbox(queue).row(note(n), user_id="acme") for n in range(2)]
    for number, row in enumerate(rows):
        row.id = number + 1
    relay = OutboxRelay(queue, engine)
    for row in (rows[1 - late], rows[late]):
        await database.run(lambda session, row=row: session.add(row))
        assert await relay.drain() == 1
    engine.dispose()


async def test_rows_of_other_queues_are_left_alone(queue: TaskQueue, database: Database):
    await database.put(Outbox(TaskQueue(queue.connector.url, name="other")), note(), user_id="acme")
    assert await OutboxRelay(queue, database.engine).drain() == 0
    assert await database.left() == 1


async def test_one_users_many_rows_do_not_delay_another_ones_only_row(
    queue: TaskQueue, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(relays, "MOST_ROWS", 20)
    await database.put(Outbox(queue), *map(note, range(200)), user_id="acme")
    await database.put(Outbox(queue), note(), user_id="zoe")
    assert await OutboxRelay(queue, database.engine).move() == 11, "ten of acme, and zoe's"
    assert (await queue.user("zoe")).normal == 1


async def test_more_users_than_a_step_has_room_for_are_served_in_one_round(
    queue: TaskQueue, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(relays, "MOST_USERS", 3)
    for user in range(8):
        await database.put(Outbox(queue), note(), user_id=f"user {user}")
    assert await OutboxRelay(queue, database.engine).move() == 8


async def test_large_rows_of_some_do_not_keep_others_from_a_round(
    queue: TaskQueue, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(table, "MOST_BYTES", 3000)
    for user in range(6):
        await database.put(Outbox(queue), write("x" * 2000), write("y"), user_id=f"user {user}")
    await database.put(Outbox(queue), *(write("y") for _ in range(5)), user_id="zoe")
    relay = OutboxRelay(queue, database.engine)
    assert await relay.move() == 6 + 5, "of each the first at least, as many as there is room for"
    assert await relay.move() == 6


async def test_many_users_are_served_by_few_calls(queue: TaskQueue, tmp_path: Path):
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    database = Database(engine)
    await database.make()
    rows = [await Outbox(queue).row(note(n), user_id=f"user {n}") for n in range(1000)]
    await database.run(lambda session: session.add_all(rows))
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert await OutboxRelay(queue, engine).drain() == 1000
    assert len(asked) <= 8 * 1000 / relays.MOST_USERS
    for user in range(1000):
        await queue.purge(f"user {user}")
    engine.dispose()


async def test_rows_of_a_user_that_is_exported_wait_and_delay_no_other(queue: TaskQueue, database: Database):
    await queue.enqueue(note(-1), user_id="still")
    await database.put(Outbox(queue), *map(note, range(3)), user_id="still")
    await database.put(Outbox(queue), *map(note, range(3)), user_id="zoe")
    records = queue.export_user("still")
    await anext(records)
    assert await OutboxRelay(queue, database.engine).drain() == 3
    assert ((await queue.user("still")).normal, (await queue.user("zoe")).normal) == (1, 3)
    await records.aclose()
    assert await OutboxRelay(queue, database.engine).drain() == 3
    assert (await queue.user("still")).normal == 4


async def test_a_full_backlog_delays_its_own_user_alone(queue: TaskQueue, database: Database):
    await queue.set_policy("full", max_queued=3)
    ids = await database.put(Outbox(queue), *map(note, range(10)), user_id="full")
    await database.put(Outbox(queue), *map(note, range(5)), user_id="zoe")
    relay = OutboxRelay(queue, database.engine)
    await relay.drain()
    assert ((await queue.user("full")).normal, (await queue.user("zoe")).normal) == (3, 5)
    assert [each.task_id for each in await queue.tasks("full", state=TaskState.QUEUED)] == ids[:3]
    assert await database.left() == 7
    await queue.set_policy("full", max_queued=100)
    relay = OutboxRelay(queue, database.engine)  # it does not know who had to wait
    assert await relay.drain() == 7


async def test_users_that_have_to_wait_do_so_also_after_a_step_that_failed(
    queue: TaskQueue, database: Database, monkeypatch: pytest.MonkeyPatch
):
    for user in range(4):
        await queue.set_policy(f"full {user}", max_queued=1)
        await queue.enqueue(note(), user_id=f"full {user}")
        await database.put(Outbox(queue), note(), user_id=f"full {user}")
    await database.put(Outbox(queue), note(), user_id="zoe")
    sends, calls = relays.Sending.send, list[int]()

    async def cut_off(self: relays.Sending, rows: Any) -> None:
        calls.append(len(rows))
        await sends(self, rows)
        if len(calls) == 1:
            raise QueueUnavailable("cut off")

    monkeypatch.setattr(relays.Sending, "send", cut_off)
    relay = OutboxRelay(queue, database.engine)
    with pytest.raises(QueueUnavailable):
        await relay.move()
    assert await relay.move() == 1
    assert calls == [5, 1], "who has to wait is not asked for again"


async def test_what_can_never_be_put_in_is_set_aside_with_the_reason(queue: TaskQueue, database: Database):
    outbox = Outbox(queue)
    await queue.enqueue(note(), user_id="acme", task_id="lives")
    await database.put(outbox, note(1), user_id="acme")
    await database.put(outbox, note(2), user_id="acme", task_id="lives", on_conflict="error")
    await database.put(outbox, note(3), user_id="acme", depends_on=["nobody"])
    await database.put(outbox, note(4), user_id="acme")
    await database.put(outbox, note(5), user_id="zoe")
    await database.put(outbox, note(6), user_id="odd")
    await database.run(lambda s: s.execute(update(OutboxRow).where(OutboxRow.user_id == "odd").values(content=b"?")))
    assert await OutboxRelay(queue, database.engine).drain() == 3

    def reasons(session: Session) -> list[tuple[bool, str]]:
        return [(row.is_refused, str(row.error)) for row in session.scalars(select(OutboxRow).order_by(OutboxRow.id))]

    (is_refused, exists), (_, unknown), (_, broken) = await database.run(reasons)
    assert is_refused
    assert "lives" in exists
    assert "'nobody'" in unknown
    assert "no task" in broken


async def test_a_row_that_was_set_aside_is_tried_again_when_it_is_told_to(queue: TaskQueue, database: Database):
    await database.put(Outbox(queue), note(3), user_id="acme", depends_on=["first"])
    relay = OutboxRelay(queue, database.engine)
    assert await relay.drain() == 0
    await queue.enqueue(note(), user_id="acme", task_id="first")
    await database.run(lambda session: session.execute(update(OutboxRow).values(is_refused=False)))
    assert await relay.drain() == 1


async def test_conditions_hold_when_a_row_is_moved(queue: TaskQueue, database: Database):
    await database.put(Outbox(queue), *map(note, range(5)), user_id="acme", unique=True)
    assert await OutboxRelay(queue, database.engine).drain() == 5
    assert (await queue.user("acme")).normal == 1


# Sealed


@pytest.fixture
async def sealed(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, codec=Encrypt({"1": KEY})) as queue:
        yield queue


async def test_contents_of_a_row_are_sealed_and_opened_by_the_worker(
    server: Server, sealed: TaskQueue, database: Database
):
    outbox = Outbox(sealed)
    made = write(SECRET).options(on_success=write(SECRET), limits=["customer:{text}"])
    ids = await database.put(outbox, made, user_id="acme")
    ids += await database.put(outbox, write(SECRET), user_id="acme", unique="customer {text}", task_id="alone")
    ids += await database.put(outbox, write(SECRET), write(SECRET), user_id="acme", debounce=0.1)
    kept = await database.run(lambda session: list(session.scalars(select(OutboxRow.content))))
    assert not any(SECRET.encode() in content for content in kept)
    async with TaskQueue(server.url, name=sealed.name) as plain:  # a relay needs no key
        assert await OutboxRelay(plain, database.engine).drain() == 4
    assert SECRET.encode() not in contents(server, sealed.name)
    async with Worker(sealed):
        assert await ended(sealed, "acme", ids[:2]) == [len(SECRET)] * 2
        assert await ended(sealed, "acme", [f"{ids[0]}.on_success"]) == [len(SECRET)]
        await eventually(lambda: has_finished(sealed, 4))
    stats = await sealed.stats()
    assert (stats.finished, stats.failed) == (4, 0)


async def test_a_row_that_was_moved_to_another_user_is_a_dead_letter(sealed: TaskQueue, database: Database):
    await database.put(Outbox(sealed), note(1), note(2), user_id="acme")

    def move(session: Session) -> None:
        one, other = session.scalars(select(OutboxRow).order_by(OutboxRow.id))
        new = msgspec.msgpack.decode(one.content, type=NewTask)
        one.user_id = "zoe"
        one.content = msgspec.msgpack.encode(new._replace(user_id="zoe"))
        other.content = other.content.replace(other.task_id.encode(), b"x" * len(other.task_id))

    await database.run(move)
    assert await OutboxRelay(sealed, database.engine).drain() == 2
    async with Worker(sealed):
        await eventually(lambda: has_failed(sealed, 2))
    assert {letter.type_name for letter in await sealed.dead_letters()} == {"BrokenSeal"}


async def has_failed(queue: TaskQueue, least: int) -> bool:
    return (await queue.stats()).failed >= least


async def test_a_queue_that_was_never_open_seals_as_well(server: Server, queue_name: str, database: Database):
    away = TaskQueue("redis://127.0.0.1:1", name=queue_name, codec=Encrypt({"1": KEY}))
    [name] = await database.put(Outbox(away), write(SECRET), user_id="acme")
    async with TaskQueue(server.url, name=queue_name, codec=Encrypt({"1": KEY})) as queue:
        await OutboxRelay(queue, database.engine).drain()
        async with Worker(queue):
            assert await ended(queue, "acme", [name]) == [len(SECRET)]


async def test_without_a_key_nothing_is_added(queue_name: str):
    away = TaskQueue("redis://127.0.0.1:1", name=queue_name, codec=Encrypt(key_for=lambda _: {}))
    with pytest.raises(UnknownKey):
        await Outbox(away).row(note(), user_id="acme")


# While it runs


async def test_a_relay_moves_what_is_committed_while_it_runs(queue: TaskQueue, database: Database):
    async with OutboxRelay(queue, database.engine, interval=0.01):
        for number in range(3):
            [name] = await database.put(Outbox(queue), note(number), user_id="acme")
            await eventually(lambda name=name: is_known(queue, name))
        await eventually(lambda: is_empty(database))


async def is_known(queue: TaskQueue, name: str) -> bool:
    return name in [each.task_id for each in await queue.tasks("acme")]


async def is_empty(database: Database) -> bool:
    return await database.left() == 0


# Crashes


class Killed(BaseException):
    """In place of the end of the process."""


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool) -> None:
    """The relay ends there, the first time it comes by with something to do."""
    whole: Callable[..., Any] = getattr(owner, name)
    done: list[bool] = []

    def fatal(*args: Any, **kwargs: Any) -> Any:
        has_work = not (name == "confirm" and not args[0])
        if done or not has_work:
            return whole(*args, **kwargs)
        done.append(True)
        if not after:
            raise Killed
        returned = whole(*args, **kwargs)
        if not asyncio.iscoroutine(returned):
            raise Killed
        return dying(returned)

    async def dying(call: Awaitable[Any]) -> None:
        await call
        raise Killed

    monkeypatch.setattr(owner, name, fatal)


@pytest.mark.parametrize(
    ("where", "after"),
    [
        ("_take", True),
        ("enqueue", False),
        ("enqueue", True),
        ("_put_down", False),
        ("_put_down", True),
        ("confirm", False),
        ("confirm", True),
    ],
)
async def test_a_crash_at_any_step_makes_neither_a_loss_nor_a_double(
    queue: TaskQueue, database: Database, where: str, after: bool, monkeypatch: pytest.MonkeyPatch
):
    ids = await database.put(Outbox(queue), *map(note, range(5)), user_id="acme")
    with monkeypatch.context() as patch:
        kill_at(patch, relays if where.startswith("_") else queue.reader, where, after=after)
        with pytest.raises(Killed):
            await OutboxRelay(queue, database.engine).drain()
    await run_all(queue)  # what ends is forgotten: the id alone would count as new
    await OutboxRelay(queue, database.engine).drain()
    await run_all(queue)
    assert await ended(queue, "acme", ids) == [0, 1, 2, 3, 4]
    assert (await queue.stats()).finished == 5
    assert await database.left() == 0


async def test_a_relay_that_was_held_up_after_it_read_comes_too_late(
    queue: TaskQueue, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(table, "can_lock", lambda _: False)  # as where its connection is lost, and the lock with it
    await database.put(Outbox(queue), note(), user_id="acme")
    first, second = OutboxRelay(queue, database.engine), OutboxRelay(queue, database.engine)
    read, go_on = asyncio.Event(), asyncio.Event()
    sends = relays.Sending.send

    class Slow(relays.Sending):
        async def send(self, rows: Any) -> None:
            read.set()
            await go_on.wait()
            await sends(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relays, "Sending", Slow)
        patch.setattr(relays, "WINDOW_MS", 1)
        held_up = asyncio.create_task(first.move())
        await read.wait()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relays, "KEEP_MS", 1)  # the receipt is gone
        assert await second.drain() == 1
    await run_all(queue)
    go_on.set()
    with pytest.raises(QueueUnavailable, match="too late"):
        await held_up
    assert (await queue.stats()).finished == 1
    assert (await queue.stats()).queued == 0


async def test_a_receipt_lives_for_a_week_while_its_row_is_there_and_for_seconds_after(
    server: Server, queue: TaskQueue, database: Database
):
    [name] = await database.put(Outbox(queue), note(), user_id="acme")

    def life() -> float:
        with RespClient(server.url) as client:
            return int(client.execute("PTTL", f"{queue.keys.prefix}answer:{name}")) / 1000

    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, relays, "_put_down", after=False)
        with pytest.raises(Killed):
            await OutboxRelay(queue, database.engine).drain()
    assert 86_400 * 6.9 < life() < 86_400 * 7.1
    await OutboxRelay(queue, database.engine).drain()
    assert relays.WINDOW_MS / 1000 < life() <= relays.KEEP_MS / 1000


# Migrations


async def test_alembic_makes_the_table_and_finds_nothing_to_change_then(database: Database):
    def differences(session: Session) -> list[Any]:
        context = MigrationContext.configure(session.connection())
        return list(compare_metadata(context, metadata))

    assert await database.run(differences) == []
    await database.run(lambda session: metadata.drop_all(session.connection()))
    assert [each[0] for each in await database.run(differences)] == ["add_table", "add_index"]


# On PostgreSQL, with processes that are killed


async def test_two_relays_never_have_the_same_user_at_a_time(queue: TaskQueue, postgres: Postgres, postgres_name: str):
    async with opened(postgres.url("postgresql+psycopg_async", postgres_name)) as database:
        await database.put(Outbox(queue), note(), user_id="acme")
        await database.put(Outbox(queue), note(), user_id="zoe")
        async with database.engine.connect() as other:
            taken = await other.run_sync(table.lock, queue.name, ["acme", "nobody"])
            assert taken == ["acme", "nobody"]
            assert await OutboxRelay(queue, database.engine).drain() == 1, "zoe's"
            assert (await queue.user("acme")).normal == 0
        assert await OutboxRelay(queue, database.engine).drain() == 1


async def test_a_look_reads_few_rows_however_many_a_user_has(postgres: Postgres, postgres_name: str):
    """Also where the database knows nothing of what is in the table."""
    many = """
        INSERT INTO fairque_outbox (queue, user_id, task_id, receipt, content)
        SELECT 'q', CASE WHEN n % 10000 = 0 THEN 'zoe ' || n ELSE 'acme' END, n, n, '' FROM generate_series(1, 200000) n
    """
    read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'fairque_outbox'"
    engine = create_engine(postgres.url("postgresql+psycopg", postgres_name))
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text(many))
    with engine.begin() as connection:
        users = table.users_after(connection, "q", "", 200)
        taken = table.read_rows(connection, "q", users, 500)
        assert (len(users), len(taken.rows)) == (21, 500 // 21 + 20)
        table.forget(connection, taken.rows)
        assert connection.scalar(text(read)) < 1000
    engine.dispose()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["_take", "enqueue", "_put_down", "confirm"])
async def test_a_killed_relay_makes_neither_a_loss_nor_a_double(
    queue: TaskQueue, postgres: Postgres, postgres_name: str, step: str, when: str
):
    url = postgres.url("postgresql+psycopg_async", postgres_name)
    async with opened(url) as database:
        ids = await database.put(Outbox(queue), *map(note, range(20)), user_id="acme")
        process = WorkerProcess("tests/workers/relay.py", queue.connector.url, queue.name, url, step, when)
        async with process:
            assert await process.wait() == -signal.SIGKILL, process.output
        await run_all(queue)
        await OutboxRelay(queue, database.engine).drain()
        await run_all(queue)
        assert await ended(queue, "acme", ids) == list(range(20))
        assert (await queue.stats()).finished == 20
        assert await database.left() == 0


@pytest.mark.timeout(300)
async def test_ten_thousand_rows_become_as_many_tasks_while_two_relays_are_killed_again_and_again(
    queue: TaskQueue, postgres: Postgres, postgres_name: str
):
    url, chance = postgres.url("postgresql+psycopg_async", postgres_name), random.Random(7)
    async with opened(url) as database, Worker(queue, concurrency=100), AsyncExitStack() as stack:
        rows = [await Outbox(queue).row(note(n), user_id=f"user {n % 7}", result_ttl=0) for n in range(10_000)]
        await database.run(lambda session: session.add_all(rows))

        async def start() -> WorkerProcess:
            made = WorkerProcess("tests/workers/relay.py", queue.connector.url, queue.name, url)
            process = await stack.enter_async_context(made)
            await process.line("moves")
            return process

        running = [await start(), await start()]
        for _ in range(6):
            before = await database.left()
            await eventually(lambda before=before: has_moved(database, before))
            await asyncio.sleep(chance.uniform(0, 0.05))
            running.pop(0).send(signal.SIGKILL)
            running.append(await start())
        await eventually(lambda: is_empty(database), 60)
        await eventually(lambda: has_finished(queue, 10_000), 60)
    stats = await queue.stats()
    assert (stats.finished, stats.queued, stats.failed) == (10_000, 0, 0)


async def has_moved(database: Database, before: int) -> bool:
    now = await database.left()
    return now < before or now == 0


async def has_finished(queue: TaskQueue, least: int) -> bool:
    return (await queue.stats()).finished >= least


# The command


@pytest.fixture
def outbox_command(
    server: Server, queue_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """What ``fairque outbox tests.apps.outbox:relay`` moves."""
    url = f"sqlite:///{tmp_path / 'app.db'}"
    for name, value in {"SERVED_URL": server.url, "SERVED_QUEUE": queue_name, "OUTBOX_URL": url}.items():
        monkeypatch.setenv(name, value)
    engine = create_engine(url)
    metadata.create_all(engine)
    yield Database(engine)
    engine.dispose()


async def test_the_command_moves_what_is_there_and_says_how_many_tasks_that_were(
    queue: TaskQueue, outbox_command: Database
):
    await outbox_command.put(Outbox(queue), *map(note, range(3)), user_id="acme")
    told = await run_command("outbox", "tests.apps.outbox:relay", "--once")
    assert (told.code, told.out) == (0, "3\n"), told.err
    assert (await queue.user("acme")).normal == 3


async def test_the_command_moves_until_it_is_told_to_stop(queue: TaskQueue, outbox_command: Database):
    async with WorkerProcess("fairque", "outbox", "tests.apps.outbox:relay") as process:
        await process.line("moves the outbox")
        await outbox_command.put(Outbox(queue), note(), user_id="acme")
        await eventually(lambda: is_empty(outbox_command))
        process.send(signal.SIGTERM)
        assert await process.wait() == 0, process.output
    assert "stopped" in process.lines[-1]


async def test_the_command_says_what_is_no_relay():
    told = await call_command("outbox", "tests.apps.outbox:nothing")
    assert (told.code, told.out) == (2, "")
    assert "is None, not the relay of an outbox" in told.error[0]
    assert "name an OutboxRelay, such as myapp.tasks:relay" in told.error[1]


async def test_without_sqlalchemy_the_command_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    for name in [each for each in sys.modules if each.startswith("fairque.contrib.sqlalchemy")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    told = await call_command("outbox", "tests.apps.outbox:relay")
    assert told.code == 2
    assert "pip install 'fairque[sqlalchemy]'" in told.error[1]
