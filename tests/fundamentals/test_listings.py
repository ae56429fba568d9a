"""12. Listings: the tasks of a user, page by page, and the numbers that tell whether a queue is well."""

import asyncio
import time
from collections import Counter

import pytest

from fairque import InvalidInput, Priority, TaskInfo, TaskQueue, TaskState, Worker, task
from fairque.settings import QueueSettings
from fairque.tasks.registry import registry
from tests.support.eventually import eventually
from tests.support.resp import RespClient

ODD_IDS = ["b:c", "{}", "**", "[red]", "a\nb\x1b", "ü 火", "%41"]


@task
async def echo(value: object = None) -> object:
    return value


@task
async def fail(text: str = "no") -> None:
    raise ValueError(text)


@pytest.fixture(autouse=True)
def _registered():
    registry.update({made.name: made for made in (echo, fail)})


async def all_pages(queue: TaskQueue, user_id: str, limit: int, state: TaskState | None = None) -> list[TaskInfo]:
    found: list[TaskInfo] = []
    after = None
    while page := await queue.tasks(user_id, state=state, limit=limit, after=after):
        assert len(page) <= limit
        found += page
        assert len(found) < 1000, "pages without an end"
        after = page[-1]
    return found


def ids(tasks: list[TaskInfo]) -> list[str]:
    return [each.task_id for each in tasks]


@pytest.fixture
def held():
    """A task that runs until it may end, and the event for that."""
    go_on = asyncio.Event()

    @task
    async def hold() -> None:
        await go_on.wait()

    return hold, go_on


async def test_a_user_never_heard_of_has_no_tasks(queue: TaskQueue, server, queue_name: str):
    for state in (None, *TaskState):
        assert await queue.tasks("nobody", state=state) == []
    assert server.keys(queue_name) == [], "looking writes nothing"


async def test_queued_tasks_are_listed_in_the_order_in_which_they_are_served(queue: TaskQueue):
    served: list[str] = []

    @task
    async def note(name: str) -> None:
        served.append(name)

    for name, priority in [("n1", 3), ("low", 1), ("c1", 6), ("n2", 3), ("high", 5), ("c2", 6)]:
        await queue.enqueue(note(name), user_id="anna", priority=priority, task_id=name)
    await queue.enqueue(echo(), user_id="ben")
    listed = await queue.tasks("anna", state=TaskState.QUEUED)
    assert {each.state for each in listed} == {TaskState.QUEUED}
    assert {each.name for each in listed} == {note.name}
    assert [each.priority for each in listed] == [6, 6, 5, 3, 3, 1]
    assert all(abs(each.queued_at - time.time()) < 60 for each in listed)
    await Worker(queue, concurrency=1).run_until_idle()
    assert served == ids(listed)


async def test_tasks_of_all_states_come_by_state(queue: TaskQueue, held):
    hold, go_on = held
    await queue.enqueue(fail(), user_id="anna", task_id="bad")
    await (await queue.enqueue(echo(), user_id="anna", task_id="done", delay=60)).cancel("why not")
    await Worker(queue).run_until_idle()
    await queue.enqueue(hold(), user_id="anna", task_id="runs")
    async with Worker(queue, concurrency=1, worker_id="w"):
        await eventually(lambda: has(queue, TaskState.STARTED))
        await queue.enqueue(echo(), user_id="anna", task_id="waits")
        later = await queue.enqueue(echo(), user_id="anna", task_id="later", delay=60)
        soon = await queue.enqueue(echo(), user_id="anna", task_id="soon", delay=30)
        await queue.enqueue(echo(), user_id="anna", task_id="kept", depends_on=[later, soon])
        wanted = ["runs", "waits", "soon", "later", "kept", "bad"]
        listed = await queue.tasks("anna")
        assert ids(listed) == wanted
        assert [each.state for each in listed] == ["started", "queued", "scheduled", "scheduled", "deferred", "failed"]
        for limit in range(1, 8):
            assert ids(await all_pages(queue, "anna", limit)) == wanted
        started, _, first_due, *_, bad = listed
        assert started.worker == "w"
        assert started.wait_seconds >= 0
        assert abs(first_due.due_at - (time.time() + 30)) < 25
        assert (bad.error.type_name, bad.error.message, bad.attempt) == ("ValueError", "no", 1)
        assert bad.ended_at >= bad.started_at
        for handle in (later, soon):
            await handle.cancel()
        await queue.handle("anna", "kept").cancel()
        go_on.set()
    await Worker(queue).run_until_idle()
    assert [each.state for each in await queue.tasks("anna")] == ["failed"]


async def test_a_listing_agrees_with_what_a_handle_tells(queue: TaskQueue):
    await queue.enqueue(fail("x"), user_id="anna", task_id="bad")
    await queue.enqueue(echo("y" * 10_000), user_id="anna", task_id="big")
    stopped = await queue.enqueue(echo(), user_id="anna", task_id="stopped", priority=Priority.LOW)
    await stopped.cancel("enough")
    await Worker(queue).run_until_idle()
    waiting = await queue.enqueue(echo("z" * 10_000), user_id="anna", task_id="waits", delay=60)
    for state in (TaskState.FAILED, TaskState.FINISHED, TaskState.CANCELED, TaskState.SCHEDULED):
        [listed] = await queue.tasks("anna", state=state)
        known = await queue.handle("anna", listed.task_id).info()
        assert listed.state is state
        # A listing has the time to the microsecond that it ran, a handle all digits.
        assert abs((listed.run_seconds or 0) - (known.run_seconds or 0)) < 1e-5
        for field in (
            "name",
            "priority",
            "attempt",
            "queued_at",
            "started_at",
            "worker",
            "errors",
            "message",
            "due_at",
        ):
            assert getattr(listed, field) == getattr(known, field), field
    assert (await stopped.info()).message == "enough"
    await waiting.cancel()


@pytest.mark.parametrize("state", [TaskState.FINISHED, TaskState.CANCELED])
async def test_ended_tasks_are_found_by_id_without_an_index(queue: TaskQueue, state: TaskState):
    for user in ("anna", "anna:x", "ann*"):
        handles = await asyncio.gather(*(queue.enqueue(echo(), user_id=user, task_id=task_id) for task_id in ODD_IDS))
        if state is TaskState.CANCELED:
            for handle in handles:
                await handle.cancel()
    await queue.enqueue(fail(), user_id="anna")
    await Worker(queue).run_until_idle()
    for user in ("anna", "anna:x", "ann*"):
        assert ids(await all_pages(queue, user, 3, state)) == sorted(ODD_IDS)


async def test_odd_ids_are_listed_as_they_are(queue: TaskQueue):
    for user in ODD_IDS:
        for task_id in ODD_IDS:
            await queue.enqueue(echo(), user_id=user, task_id=task_id)
        assert ids(await queue.tasks(user)) == ODD_IDS
        assert {each.user_id for each in await queue.tasks(user)} == {user}
    await Worker(queue).run_until_idle()


async def test_a_page_after_a_task_that_has_moved_on_leaves_nothing_out(queue: TaskQueue):
    names = [f"t{at}" for at in range(6)]
    for name in names:
        await queue.enqueue(echo(), user_id="anna", task_id=name)
    first = await queue.tasks("anna", limit=3)
    await queue.handle("anna", first[-1].task_id).cancel()
    rest = ids(await queue.tasks("anna", after=first[-1]))
    assert set(ids(first)) | set(rest) == set(names)
    await Worker(queue).run_until_idle()


async def test_a_dead_letter_that_lost_its_result_is_still_listed(queue: TaskQueue, server):
    await queue.enqueue(fail(), user_id="anna", task_id="bad")
    await Worker(queue, worker_id="w").run_until_idle()
    with RespClient(server.url) as client:
        client.execute("DEL", f"{queue.keys.prefix}result:anna:bad")
    [listed] = await queue.tasks("anna")
    assert (listed.state, listed.name, listed.worker) == (TaskState.FAILED, fail.name, "w")
    assert listed.ended_at >= listed.started_at
    assert (await queue.handle("anna", "bad").info()).ended_at == listed.ended_at


@pytest.mark.damages
async def test_letters_that_expired_in_front_do_not_hide_those_behind(queue: TaskQueue, server):
    for at in range(4):
        await queue.enqueue(fail(), user_id="anna", task_id=f"bad{at}")
        await Worker(queue).run_until_idle()
    with RespClient(server.url) as client:
        for at in range(3):
            for kind in ("body", "task", "errors", "result"):
                client.execute("DEL", f"{queue.keys.prefix}{kind}:anna:bad{at}")
    assert ids(await queue.tasks("anna", state=TaskState.FAILED, limit=1)) == ["bad3"]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"limit": 0}, "limit must be a whole number from 1 to 1000, not 0"),
        ({"limit": 1001}, "limit must be a whole number from 1 to 1000, not 1001"),
        ({"state": "waiting"}, "there is no state 'waiting', only deferred, scheduled, queued"),
        ({"after": TaskInfo(user_id="ben", task_id="t", name="", state=TaskState.QUEUED)}, "not one of 'ben'"),
        (
            {"after": TaskInfo(user_id="anna", task_id="t", name="", state=TaskState.QUEUED), "state": "failed"},
            "that is failed, not one of 'anna' that is queued",
        ),
    ],
)
async def test_what_cannot_be_listed_is_refused(queue: TaskQueue, options: dict, rule: str):
    with pytest.raises(InvalidInput, match=rule):
        await queue.tasks("anna", **options)


@pytest.mark.leaves_keys
async def test_a_page_costs_what_it_returns_however_much_there_is(queue: TaskQueue, server):
    costs = []

    async def look() -> None:
        first = await queue.tasks("anna", limit=10)
        await queue.tasks("anna", limit=10, after=first[4])
        await queue.tasks("anna", limit=10, state=TaskState.SCHEDULED)
        await queue.active_users()
        await queue.health()

    with RespClient(server.url) as client:
        for _ in range(3):
            await queue.enqueue_many([echo()] * 700, user_id="anna")
            await queue.enqueue_many([echo()] * 700, user_id="anna", delay=60)
            await look()
            before = commands(client)
            await look()
            costs.append(commands(client) - before)
    assert costs[0] == costs[1] == costs[2]
    assert not costs[0].keys() & {"keys", "scan", "hscan", "sscan", "zscan"}


# Users with work


async def test_active_users_have_something_to_serve_or_running(queue: TaskQueue, held):
    hold, go_on = held
    await queue.enqueue(echo(), user_id="gone")
    await Worker(queue).run_until_idle()
    await queue.enqueue(hold(), user_id="runs")
    async with Worker(queue, concurrency=1):
        await eventually(lambda: has(queue, TaskState.STARTED, "runs"))
        for user in ("waits", "[b]"):
            await queue.enqueue(echo(), user_id=user)
        assert {user.user_id for user in await queue.active_users()} == {"runs", "waits", "[b]"}
        assert len(await queue.active_users(limit=2)) == 2
        go_on.set()
        await eventually(lambda: none_active(queue))
    with pytest.raises(InvalidInput, match="limit must be a whole number from 1 to 1000"):
        await queue.active_users(limit=0)


@pytest.mark.leaves_keys
async def test_of_many_users_both_ends_are_looked_at(queue: TaskQueue):
    await queue.enqueue_many([echo().options(user_id=f"u{at}") for at in range(20)])
    await queue.enqueue_many([echo().options(cost=50)] * 2, user_id="flood", priority=Priority.CRITICAL)
    store = queue.store()
    claim = await store.claim("w", 1, settings=QueueSettings(lease_ms=60_000), groups=[["flood"]], wait=False)
    assert [delivery.user_id for delivery in claim.deliveries] == ["flood"]
    found = {user.user_id: user for user in await queue.active_users(limit=4)}
    assert len(found) == 4
    assert "flood" in found, "it was served last, so that it has the highest tag"
    assert found["flood"].started == 1
    await store.leave("w", [])
    await store.close()


async def test_the_wait_of_a_user_is_that_of_its_next_task(queue: TaskQueue):
    assert (await queue.user("anna")).wait_seconds is None
    await queue.enqueue(echo(), user_id="anna", priority=Priority.VERY_HIGH)
    await eventually(lambda: waits(queue, 0.2))
    await queue.enqueue(echo(), user_id="anna", priority=Priority.CRITICAL)
    assert 0.2 <= (await queue.user("anna")).wait_seconds < 60
    [listed] = await queue.users()
    assert 0.2 <= listed.wait_seconds < 60
    assert 0.2 <= (await queue.health()).longest_wait < 60
    await Worker(queue).run_until_idle()
    assert (await queue.health()).longest_wait == 0


# Health


async def test_health_counts_dead_letters_and_what_is_late(queue: TaskQueue):
    health = await queue.health()
    assert (health.dead_letters, health.late, health.schedule_late, health.longest_wait) == (0, 0, 0, 0)
    assert health.memory_policy == "noeviction"
    assert health.memory_used > 0
    await queue.enqueue(fail(), user_id="anna")
    await Worker(queue).run_until_idle()
    await queue.enqueue(echo(), user_id="ben", delay=0.01)
    await eventually(lambda: is_late(queue, 0.1))
    assert (await queue.health()).dead_letters == 1
    await Worker(queue).run_until_idle()
    assert (await queue.health()).late == 0


async def has(queue: TaskQueue, state: TaskState, user_id: str = "anna") -> bool:
    return bool(await queue.tasks(user_id, state=state))


async def none_active(queue: TaskQueue) -> bool:
    return await queue.active_users() == []


async def waits(queue: TaskQueue, seconds: float) -> bool:
    return ((await queue.user("anna")).wait_seconds or 0) >= seconds


async def is_late(queue: TaskQueue, seconds: float) -> bool:
    return (await queue.health()).late >= seconds


def commands(client: RespClient) -> Counter[str]:
    """How often each ran so far, those inside scripts included."""
    info = client.execute("INFO", "commandstats").decode()
    lines = [line.split(":calls=") for line in info.splitlines() if line.startswith("cmdstat_")]
    return Counter({name.removeprefix("cmdstat_"): int(rest.split(",")[0]) for name, rest in lines})
