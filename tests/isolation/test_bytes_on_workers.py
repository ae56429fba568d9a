"""A user that keeps all it can in Redis: it gets what `max_bytes` says, and others get their work done."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from fairque import (
    EVERYBODY,
    FailureKind,
    InvalidInput,
    QueueFull,
    QuotaExceeded,
    TaskFailed,
    TaskQueue,
    TaskScheduler,
    Worker,
    current_task,
    task,
)
from fairque.tasks.registry import unregister
from tests.support.eventually import eventually
from tests.support.resp import RespClient
from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()
LARGE = 200_000
LIMIT = 10 * LARGE
SMALL = 1_000
"""More than what is kept of a task that has no room."""


@pytest.fixture
def tasks() -> Iterator[SimpleNamespace]:
    @task(name="keeps")
    async def keeps(data: str = "") -> int:
        return len(data)

    @task(name="returns")
    async def returns(size: int) -> str:
        return "x" * size

    @task(name="raises")
    async def fails(size: int) -> None:
        raise ValueError("x" * size)

    @task(name="shares")
    async def shares(count: int) -> list[int]:
        pushed = []
        for number in range(count):
            try:
                await current_task().xcom.push(f"value {number}", "x" * LARGE)
            except QuotaExceeded as exc:
                pushed.append(exc.limit)
                break
            pushed.append(number)
        return pushed

    @task(name="tells")
    async def tells(message: str) -> None:
        current_task().progress(0.5, message)

    functions = [keeps, returns, fails, shares, tells]
    yield SimpleNamespace(keeps=keeps, returns=returns, fails=fails, shares=shares, tells=tells)
    for function in functions:
        unregister(function.name)


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    client = RespClient(server.url)
    async with TaskQueue(server.url, name=queue_name, max_message_bytes=4 * LARGE) as queue:
        await queue.set_policy(EVERYBODY, max_bytes=LIMIT)
        async with Worker(queue, concurrency=10, scheduler=False):
            # What was there before the limit came has been counted.
            await eventually(lambda: not client.execute("HEXISTS", queue.reader.keys_of("attacker").state, "weighing"))
            yield queue
    client.close()


async def quiet_user_works(queue: TaskQueue, tasks: SimpleNamespace) -> None:
    handle = await queue.enqueue(tasks.keeps("y" * LARGE), user_id="quiet")
    assert await handle.result(timeout=10) == LARGE


async def test_a_thousand_large_bodies(queue: TaskQueue, tasks: SimpleNamespace) -> None:
    await queue.pause("attacker")
    refused = 0
    for _ in range(1_000):
        try:
            await queue.enqueue(tasks.keeps("x" * LARGE), user_id="attacker")
        except QuotaExceeded:
            refused += 1
    assert refused == 991
    user = await queue.user("attacker")
    assert user.queued == 9
    assert user.bytes is not None
    assert 9 * LARGE < user.bytes <= LIMIT
    assert f"of at most {LIMIT:,} bytes" in str(await queue.explain("attacker"))
    await quiet_user_works(queue, tasks)
    await queue.resume("attacker")
    await eventually(lambda: has_ended(queue, "attacker", 9))
    assert await queue.enqueue(tasks.keeps("x" * LARGE), user_id="attacker"), "what has run makes room"


async def has_ended(queue: TaskQueue, user_id: str, tasks: int) -> bool:
    user = await queue.user(user_id)
    return user.finished + user.failed == tasks


async def test_a_thousand_large_results(queue: TaskQueue, tasks: SimpleNamespace) -> None:
    handles = await queue.enqueue_many([tasks.returns(LARGE) for _ in range(1_000)], user_id="attacker")
    await quiet_user_works(queue, tasks)
    kept, kinds = 0, set()
    for handle in handles:
        try:
            kept += len(await handle.result(timeout=60)) == LARGE
        except TaskFailed as exc:
            kinds.add(exc.kind)
    assert kinds == {FailureKind.QUOTA}, "each has an outcome, and it says why"
    assert 5 <= kept <= 9
    user = await queue.user("attacker")
    assert user.bytes is not None
    assert user.bytes <= LIMIT + 1_000 * SMALL
    assert user.dead_letters == 1_000 - kept


async def test_long_errors_of_many_tasks(queue: TaskQueue, tasks: SimpleNamespace) -> None:
    await queue.set_policy("attacker", max_bytes=LIMIT)
    handles = await queue.enqueue_many([tasks.fails(16_000) for _ in range(500)], user_id="attacker")
    for handle in handles:
        with pytest.raises(TaskFailed, match="ValueError"):
            await handle.result(timeout=60)
    user = await queue.user("attacker")
    assert user.bytes is not None
    assert user.bytes <= LIMIT + 500 * SMALL
    await quiet_user_works(queue, tasks)


async def test_values_that_are_shared(queue: TaskQueue, tasks: SimpleNamespace) -> None:
    handle = await queue.enqueue(tasks.shares(1_000), user_id="attacker")
    pushed = await handle.result(timeout=30)
    assert pushed[-1] == LIMIT, "the task is told"
    assert 8 <= len(pushed) - 1 <= 9
    await quiet_user_works(queue, tasks)


async def test_schedules(queue: TaskQueue, tasks: SimpleNamespace) -> None:
    scheduler, at = TaskScheduler(queue), datetime.now(UTC) + timedelta(hours=1)
    names = []
    with contextlib.suppress(QuotaExceeded):
        for number in range(100):
            names.append(await scheduler.add_schedule(task=tasks.keeps("x" * LARGE), at=at, user_id="attacker"))
            assert number < 10, "it was refused"
    assert len(names) == 9
    with pytest.raises(QueueFull):
        await queue.enqueue(tasks.keeps("x" * LARGE), user_id="attacker")
    await scheduler.remove_schedule(names[0])
    await queue.enqueue(tasks.keeps("x" * LARGE), user_id="attacker")
    await quiet_user_works(queue, tasks)


async def test_texts_that_are_kept_beside_a_task_are_short(queue: TaskQueue, tasks: SimpleNamespace) -> None:
    await queue.pause("attacker")
    handle = await queue.enqueue(tasks.keeps(), user_id="attacker")
    with pytest.raises(InvalidInput, match="the reason has 200000 characters, the limit is 2000"):
        await handle.cancel("x" * LARGE)
    await queue.resume("attacker")
    told = await queue.enqueue(tasks.tells("x" * LARGE), user_id="attacker")
    with pytest.raises(TaskFailed, match="the message has 200000 characters, the limit is 2000"):
        await told.result(timeout=10)


async def test_a_declared_schedule_of_a_full_user_keeps_no_other_from_being_declared(
    queue: TaskQueue, tasks: SimpleNamespace
) -> None:
    await queue.set_policy("attacker", max_bytes=1)
    functions = [
        task(name=f"declared by {user_id}", every=3600, user_id=user_id)(tasks.keeps.__wrapped__)
        for user_id in ("attacker", "quiet")
    ]
    try:
        async with Worker(queue):
            await eventually(lambda: TaskScheduler(queue).list_schedules("quiet"))
        assert await TaskScheduler(queue).list_schedules("attacker") == []
    finally:
        for function in functions:
            unregister(function.name)


async def test_workflows(queue: TaskQueue, tasks: SimpleNamespace) -> None:
    await queue.pause("attacker")
    first, *others = [tasks.keeps("x" * (LARGE * 3 // 4)) for _ in range(4)]
    await queue.enqueue(first >> others, user_id="attacker")
    await queue.enqueue(first >> others, user_id="attacker")
    before = (await queue.user("attacker")).bytes
    with pytest.raises(QuotaExceeded):
        await queue.enqueue(first >> others >> tasks.keeps("x" * 3 * LARGE), user_id="attacker")
    assert (await queue.user("attacker")).bytes == before
    await quiet_user_works(queue, tasks)


async def test_purging_forgets_what_was_counted(queue: TaskQueue, tasks: SimpleNamespace) -> None:
    handle = await queue.enqueue(tasks.returns(LARGE), user_id="attacker")
    await handle.result(timeout=10)
    used = (await queue.user("attacker")).bytes
    assert used is not None
    assert used > LARGE
    await queue.purge("attacker")
    assert (await queue.user("attacker")).bytes == 0
