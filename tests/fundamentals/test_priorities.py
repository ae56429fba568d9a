"""3. Priorities: five levels that are worth a head start, and a lane for what is critical."""

import itertools

import pytest

from fairque import Priority, Retry, TaskQueue, Worker, current_task, task
from fairque.tasks.registry import registry
from tests.support.eventually import eventually

LEVELS = [priority for priority in Priority if priority is not Priority.CRITICAL]
STEP = 0.2
ran: list[object] = []


@task
async def note(what: object) -> None:
    ran.append(what)


@pytest.fixture(autouse=True)
def _fresh():
    ran.clear()
    registry[note.name] = note


async def serve(queue: TaskQueue) -> list[object]:
    """What ran, in order."""
    await Worker(queue, concurrency=1).run_until_idle()
    return ran


async def seconds_later(server, seconds: float) -> None:
    """The clock of the server decides, so that is the one to watch."""

    def now() -> float:
        whole, micros = server.execute("TIME")
        return int(whole) + int(micros) / 1e6

    began = now()
    await eventually(lambda: now() > began + seconds)


async def test_within_a_head_start_the_higher_level_goes_first(queue: TaskQueue):
    for priority in LEVELS:
        await queue.enqueue(note(priority.name), user_id="anna", priority=priority)
    assert await serve(queue) == ["VERY_HIGH", "HIGH", "NORMAL", "LOW", "VERY_LOW"]


async def test_normal_is_what_says_nothing(queue: TaskQueue):
    await queue.enqueue(note("low"), user_id="anna", priority=2)
    await queue.enqueue(note("unsaid"), user_id="anna")
    await queue.enqueue(note("normal"), user_id="anna", priority=3)
    await queue.enqueue(note("high"), user_id="anna", priority=4)
    assert await serve(queue) == ["high", "unsaid", "normal", "low"]


async def test_one_level_is_served_in_the_order_of_arrival(queue: TaskQueue):
    await queue.enqueue_many([note(at) for at in range(700)], user_id="anna", priority=Priority.LOW)
    for at in range(700, 710):
        await queue.enqueue(note(at), user_id="anna", priority=Priority.LOW)
    assert await serve(queue) == list(range(710))


async def test_what_is_critical_goes_before_everything_and_in_the_order_of_arrival(queue: TaskQueue):
    await queue.enqueue(note("high"), user_id="anna", priority=Priority.VERY_HIGH)
    for at in range(5):
        await queue.enqueue(note(at), user_id="anna", priority=Priority.CRITICAL)
    await queue.enqueue_many([note(at) for at in range(5, 10)], user_id="anna", priority=Priority.CRITICAL)
    user = await queue.user("anna")
    assert (user.critical, user.normal) == (10, 1)
    assert await serve(queue) == [*range(10), "high"]


async def test_a_level_is_worth_a_head_start_of_five_minutes(server, queue: TaskQueue, queue_name: str):
    for priority in LEVELS:
        await queue.enqueue(note(None), user_id="anna", priority=priority)
    lane = server.execute("ZRANGE", f"fairque:{{{queue_name}}}:normal:anna", 0, -1, "WITHSCORES")
    scores = sorted(int(score) for score in lane[1::2])
    gaps = [round((later - earlier) / 60e6, 2) for earlier, later in itertools.pairwise(scores)]
    assert gaps == [5, 5, 5, 5]
    await serve(queue)


async def test_who_waited_longer_than_the_head_start_goes_first(server, queue_name: str):
    async with TaskQueue(server.url, name=queue_name, priority_step=STEP) as queue:
        await queue.enqueue(note("old normal"), user_id="anna")
        await queue.enqueue(note("old low"), user_id="anna", priority=Priority.LOW)
        await seconds_later(server, STEP)
        await queue.enqueue(note("new high"), user_id="anna", priority=Priority.HIGH)
        assert await serve(queue) == ["old normal", "new high", "old low"]


async def test_without_head_starts_levels_mean_nothing(server, queue_name: str):
    async with TaskQueue(server.url, name=queue_name, priority_step=0) as queue:
        for priority in LEVELS:
            await queue.enqueue(note(priority), user_id="anna", priority=priority)
        await queue.enqueue(note(6), user_id="anna", priority=Priority.CRITICAL)
        assert await serve(queue) == [6, 1, 2, 3, 4, 5]


async def test_a_retry_keeps_its_place_in_front(server, queue: TaskQueue):
    @task(max_retries=1)
    async def twice() -> None:
        ran.append(f"try {current_task().attempt}")
        if current_task().attempt == 1:
            raise Retry(delay=0.05)

    await queue.enqueue(twice(), user_id="anna")
    await serve(queue)
    await queue.enqueue_many([note("next"), note("last")], user_id="anna")
    await seconds_later(server, 0.1)
    assert await serve(queue) == ["try 1", "try 2", "next", "last"]


async def test_a_scheduled_task_takes_its_place_when_it_is_due(queue: TaskQueue):
    scheduled = await queue.enqueue(note("scheduled"), user_id="anna", delay=3600, priority=Priority.HIGH)
    await queue.enqueue(note("waiting"), user_id="anna")
    assert await serve(queue) == ["waiting"]
    await queue.enqueue(note("critical"), user_id="anna", priority=Priority.CRITICAL, delay=0.1)
    assert await scheduled.reschedule(0.1)
    async with Worker(queue):
        await scheduled.result(20)
        await eventually(lambda: len(ran) == 3)
    assert set(ran) == {"waiting", "scheduled", "critical"}


async def test_a_priority_orders_the_tasks_of_its_user_only(queue: TaskQueue):
    await queue.enqueue_many([note("anna")] * 3, user_id="anna", priority=Priority.VERY_LOW)
    await queue.enqueue_many([note("ben")] * 3, user_id="ben", priority=Priority.CRITICAL)
    order = await serve(queue)
    assert order[:2] == order[2:4] == order[4:], "turn by turn, whatever the priorities"
