"""17. Policies: what a team runs its customers with, each of them a line of code that holds from the next claim on."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from fairque import (
    EVERYBODY,
    Breaker,
    Everybody,
    FairQueueConfig,
    Policy,
    QueueFull,
    Rate,
    Reason,
    TaskQueue,
    TaskState,
    Worker,
    current_task,
    task,
)
from fairque.tasks.registry import registry
from tests.support.eventually import eventually

pytestmark = pytest.mark.leaves_keys
served: list[str] = []


@task
async def serve(what: str = "") -> None:
    served.append(what or current_task().user_id)


@task
async def fail() -> None:
    raise ValueError


@task
async def hold() -> None:
    await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def _fresh():
    served.clear()
    registry.update({made.name: made for made in (serve, fail, hold)})


async def in_turn(queue: TaskQueue, tasks: int) -> Counter[str]:
    """Who was served, among the first so many."""
    await Worker(queue, concurrency=1).run_until_idle()
    return Counter(served[:tasks])


async def running(queue: TaskQueue, user_id: str) -> int:
    return (await queue.user(user_id)).started


@pytest.mark.smoke
async def test_a_weight_is_a_share_in_relation_to_others(queue: TaskQueue):
    await queue.set_policy("anna", weight=3)
    for user in ("anna", "ben"):
        await queue.enqueue_many([serve()] * 60, user_id=user)
    shares = await in_turn(queue, 40)
    assert shares["anna"] == pytest.approx(30, abs=1)


async def test_what_is_not_named_stays_and_none_forgets(queue: TaskQueue):
    await queue.set_policy("anna", weight=3, max_running=5)
    await queue.set_policy("anna", rate="100/m")
    assert await queue.set_policy("anna", max_running=None) == Policy(weight=3, rate=Rate(100, per=60))
    await queue.clear_policy("anna")
    assert await queue.get_policy("anna") == Policy()


async def test_a_star_is_everybody_who_does_not_say_otherwise(queue: TaskQueue):
    await queue.set_policy(EVERYBODY, max_running=5, max_queued=100)
    await queue.set_policy("anna", max_running=50)
    assert await queue.get_policy("anna") == Policy(max_running=50, max_queued=100)
    assert await queue.get_policy("anna", defaults=False) == Policy(max_running=50)
    assert await queue.policies() == {"anna": Policy(max_running=50)}


@pytest.mark.smoke
async def test_max_running_holds_on_all_workers_together(queue: TaskQueue):
    await queue.set_policy("anna", max_running=3)
    await queue.enqueue_many([hold()] * 10, user_id="anna")
    await queue.enqueue_many([hold()] * 3, user_id="ben")
    options = {"concurrency": 5, "shutdown_timeout": 0}
    async with Worker(queue, **options), Worker(queue, **options):
        await eventually(lambda: both_run(queue, 3, 3))


async def both_run(queue: TaskQueue, annas: int, bens: int) -> bool:
    found = await running(queue, "anna"), await running(queue, "ben")
    assert found[0] <= annas
    return found == (annas, bens)


async def test_min_running_goes_first(queue: TaskQueue):
    await queue.enqueue_many([hold()] * 10, user_id="anna")
    await queue.set_policy("ben", min_running=3, weight=0.001)
    await queue.enqueue_many([hold()] * 10, user_id="ben")
    async with Worker(queue, concurrency=4, shutdown_timeout=0):
        await eventually(lambda: both_run(queue, 1, 3))


@pytest.mark.smoke
async def test_a_rate_spreads_starts_and_a_burst_lets_some_go_at_once(queue: TaskQueue):
    await queue.set_policy("anna", rate="1/h burst 3")
    await queue.enqueue_many([serve()] * 10, user_id="anna")
    await queue.enqueue_many([serve()] * 10, user_id="ben")
    await Worker(queue).run_until_idle()
    assert Counter(served) == {"anna": 3, "ben": 10}
    user = await queue.user("anna")
    assert user.parked_until is not None, "it costs nothing until then"


async def test_a_backlog_that_is_full_refuses_the_whole_batch(queue: TaskQueue):
    await queue.set_policy("anna", max_queued=5)
    await queue.enqueue_many([serve()] * 4, user_id="anna")
    with pytest.raises(QueueFull) as caught:
        await queue.enqueue_many([serve()] * 2, user_id="anna")
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 0
    assert (await queue.user("anna")).queued == 4


@pytest.mark.parametrize("who", ["anna", EVERYBODY])
async def test_room_in_the_backlog_of_a_paused_user_comes_with_the_end_of_its_pause(
    queue: TaskQueue, who: str | Everybody
):
    await queue.set_policy("anna", max_queued=1)
    await queue.enqueue(serve(), user_id="anna")
    await queue.pause(who)
    with pytest.raises(QueueFull) as caught:
        await queue.enqueue(serve(), user_id="anna")
    assert caught.value.retry_after is None
    await queue.pause(who, until=datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(QueueFull) as caught:
        await queue.enqueue(serve(), user_id="anna")
    assert caught.value.retry_after == pytest.approx(3600, abs=30)


async def test_or_drops_the_first_in_line(queue: TaskQueue):
    await queue.set_policy("anna", max_queued=2, overflow="drop_oldest")
    handles = [await queue.enqueue(serve(str(at)), user_id="anna") for at in range(4)]
    assert await handles[0].state() == TaskState.CANCELED
    await Worker(queue).run_until_idle()
    assert served == ["2", "3"]


async def test_a_pause_loses_nothing(queue: TaskQueue):
    await queue.pause("anna")
    await queue.enqueue(serve(), user_id="anna")
    await Worker(queue).run_until_idle()
    assert served == []
    await queue.resume("anna")
    await Worker(queue).run_until_idle()
    assert served == ["anna"]


async def test_a_pause_may_have_an_end(queue: TaskQueue):
    await queue.pause("anna", until=datetime.now(UTC) + timedelta(seconds=0.2))
    handle = await queue.enqueue(serve(), user_id="anna")
    async with Worker(queue):
        await handle.result(timeout=20)
    info = await handle.info()
    assert info.wait_seconds is not None
    assert info.wait_seconds > 0.1


async def test_splitting_up_into_many_users_of_a_group_gains_nothing(queue: TaskQueue):
    for at in range(10):
        await queue.set_policy(f"anna-{at}", group="anna")
        await queue.enqueue_many([serve("anna")] * 10, user_id=f"anna-{at}")
    await queue.enqueue_many([serve()] * 100, user_id="ben")
    shares = await in_turn(queue, 40)
    assert shares["ben"] == pytest.approx(20, abs=2)


async def test_groups_have_weights(queue: TaskQueue):
    await queue.set_group("gold", weight=4)
    for user in ("anna", "ben"):
        await queue.set_policy(user, group="gold")
    for user in ("anna", "ben", "carl"):
        await queue.enqueue_many([serve()] * 60, user_id=user)
    shares = await in_turn(queue, 50)
    assert shares["carl"] == pytest.approx(10, abs=2)
    assert shares["anna"] == pytest.approx(20, abs=2)
    assert await queue.groups() == {"gold": 4}


async def test_a_name_may_be_limited_over_all_users(queue: TaskQueue):
    await queue.set_limit(serve.name, rate="1/h")
    for user in ("anna", "ben"):
        await queue.enqueue(serve(), user_id=user)
        await queue.enqueue(fail(), user_id=user)
    await Worker(queue).run_until_idle()
    assert len(served) == 1
    assert (await queue.stats()).failed == 2, "tasks of other names pass"


async def test_a_breaker_parks_a_user_whose_tasks_keep_failing(queue: TaskQueue):
    await queue.set_policy("anna", breaker=Breaker(failures=2, cooldown=600))
    await queue.enqueue_many([fail()] * 200, user_id="anna")
    await queue.enqueue(serve(), user_id="ben")
    await Worker(queue, concurrency=1).run_until_idle()
    user = await queue.user("anna")
    assert 2 <= user.failed < 100, "and those that were under way when it opened"
    assert (user.queued, served) == (200 - user.failed, ["ben"])
    assert user.breaker_open_until is not None


async def test_shares_follow_what_is_charged(queue: TaskQueue):
    await queue.enqueue_many([serve().options(cost=4)] * 40, user_id="anna")
    await queue.enqueue_many([serve()] * 40, user_id="ben")
    shares = await in_turn(queue, 40)
    assert shares["ben"] == pytest.approx(4 * shares["anna"], abs=4)
    [hour] = await queue.usage("anna")
    assert (hour.tasks, hour.cost) == (40, 160)


async def test_why_a_task_waits_can_be_asked(queue: TaskQueue):
    await queue.pause("anna")
    await queue.enqueue_many([serve()] * 3, user_id="anna")
    last = await queue.enqueue(serve(), user_id="anna", task_id="last")
    found = await queue.explain("anna", last.task_id)
    assert {held.reason for held in found.waiting} == {Reason.PAUSED, Reason.NO_WORKER}
    assert found.ahead_own == 3
    assert "its user is paused" in str(found)


async def test_who_gets_more_than_its_share_is_known(queue: TaskQueue):
    await queue.enqueue_many([serve()] * 20, user_id="anna")
    await Worker(queue).run_until_idle()
    await queue.enqueue(serve(), user_id="ben")
    verdicts = {share.user_id: share.verdict for share in (await queue.shares()).users}
    assert verdicts == {"anna": "noisy", "ben": "starved"}


async def test_demand_says_how_many_slots_it_takes(queue: TaskQueue):
    await queue.enqueue(serve(), user_id="anna")
    await Worker(queue).run_until_idle()
    await queue.enqueue_many([serve()] * 1000, user_id="anna")
    found = await queue.demand(target_wait=0.001)
    assert found.backlog == 1000
    in_one_slot = int(0.001 / found.run_seconds) + 1  # so many start within the wait
    assert found.slots_needed == pytest.approx(1000 / in_one_slot, abs=1)


async def test_a_file_may_say_all_this(queue: TaskQueue):
    config = FairQueueConfig.from_dict(
        {
            "policies": [{"user": "*", "max_running": 20}, {"user": "anna", "rate": "100/m", "group": "gold"}],
            "groups": [{"name": "gold", "weight": 3}],
        }
    )
    await queue.set_policy("anna", weight=2)
    await queue.apply_policies(config)
    assert await queue.get_policy("anna") == Policy(weight=2, max_running=20, rate=Rate(100, per=60), group="gold")
