"""Schedules that the code declares: deploys that change, add and drop them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from fairque import InvalidInput, ScheduleState, TaskQueue, TaskScheduler, Worker, task
from fairque.redis.store_schedules import ScheduleStore
from fairque.scheduler.declarations import Declarations
from fairque.scheduler.firing import Template
from fairque.tasks.registry import registry
from tests.support.core import Core
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()


@pytest.fixture(autouse=True)
def _tasks_of_one_test() -> Iterator[None]:
    before = dict(registry)
    registry.clear()
    yield
    registry.clear()
    registry.update(before)


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core


@pytest.fixture
def scheduler(queue: TaskQueue) -> TaskScheduler:
    return TaskScheduler(queue)


class Release:
    """The code of a process: `minutes` between two runs of its one task; None: it declares nothing."""

    def __init__(self, queue: TaskQueue, minutes: int | None, **options: Any) -> None:
        self._declarations = Declarations(
            ScheduleStore(queue.reader), lambda name, task, user_id: Template.of(name, task, user_id, 100_000)
        )
        self._minutes = minutes
        self._options = {"user_id": "system", **options}

    async def declare(self) -> None:
        """What a worker does at its start, and each minute."""
        registry.clear()
        if self._minutes is not None:
            task(name="sweep", every=60 * self._minutes, **self._options)(sweep)
        await self._declarations.declare()


async def sweep() -> None: ...


def forget_declarations(core: Core) -> None:
    """As if everybody who declared something had been gone for long."""
    core.execute("DEL", ":declarers")
    for name in core.execute("ZRANGE", ":declared", 0, -1):
        core.execute("ZADD", ":declared", 1, name)


async def interval(scheduler: TaskScheduler) -> float | None:
    every = (await scheduler.get_schedule("sweep")).every
    return every and every / 60


async def test_a_worker_registers_what_its_code_declares(queue: TaskQueue, scheduler: TaskScheduler):
    ran = asyncio.Event()

    @task(name="sweep", cron="* * * * * *", user_id="system", timezone="Europe/Berlin")
    async def sweep() -> None:
        ran.set()

    async with Worker(queue):
        await asyncio.wait_for(ran.wait(), 10)
    found = await scheduler.get_schedule("sweep")
    assert (found.user_id, found.cron, found.timezone) == ("system", "* * * * * *", "Europe/Berlin")
    assert found.declared
    assert not found.orphaned


async def test_the_code_declares_by_which_rules_it_fires(queue: TaskQueue, scheduler: TaskScheduler):
    rules = {"jitter": 7.0, "misfire": "all", "misfire_limit": 9, "misfire_grace": 30.0, "overlap": "skip"}
    await Release(queue, 5, **rules).declare()
    await scheduler.fire_due(307)
    before = await scheduler.get_schedule("sweep")
    assert {name: getattr(before, name) for name in rules} == rules
    await Release(queue, 5, **{**rules, "overlap": "cancel_running"}).declare()
    after = await scheduler.get_schedule("sweep")
    assert (after.overlap, after.next_run, after.runs) == ("cancel_running", before.next_run, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 60, "overlap": "no"}, "overlap must be"),
        ({"every": 60, "misfire": "never"}, "misfire must be"),
        ({"every": 60, "jitter": -1}, "jitter"),
        ({"every": 60, "timezone": "Berlin"}, "Berlin"),
        ({"overlap": "skip"}, "overlap is about a schedule"),
        ({"timezone": "Europe/Berlin"}, "timezone is about a schedule"),
    ],
)
def test_a_rule_that_is_wrong_is_refused_where_it_is_declared(options: dict[str, Any], said: str):
    with pytest.raises(InvalidInput, match=said):
        task(name="sweep", user_id="system", **options)(sweep)
    assert "sweep" not in registry


async def test_a_worker_may_leave_schedules_to_others(queue: TaskQueue, scheduler: TaskScheduler):
    @task(name="sweep", cron="* * * * * *", user_id="system")
    async def sweep() -> None: ...

    async with Worker(queue, scheduler=False):
        await asyncio.sleep(1.5)
    assert await scheduler.list_schedules() == []


async def test_declaring_again_changes_nothing(queue: TaskQueue, scheduler: TaskScheduler):
    release = Release(queue, 5)
    await release.declare()
    before = await scheduler.get_schedule("sweep")
    await asyncio.gather(*(Release(queue, 5).declare() for _ in range(5)))
    await release.declare()
    assert await scheduler.get_schedule("sweep") == before


async def test_many_first_workers_register_one_schedule(queue: TaskQueue, scheduler: TaskScheduler):
    releases = [Release(queue, 5) for _ in range(5)]
    await asyncio.gather(*(release.declare() for release in releases))
    [found] = await scheduler.list_schedules()
    assert found.every == 300


async def test_a_new_definition_replaces_the_one_before(queue: TaskQueue, scheduler: TaskScheduler):
    await Release(queue, 5).declare()
    await scheduler.fire_due(300)
    await Release(queue, 10).declare()
    found = await scheduler.get_schedule("sweep")
    assert (found.every, found.runs) == (600, 1)


async def test_a_new_option_of_the_task_keeps_the_next_firing(queue: TaskQueue, scheduler: TaskScheduler):
    await Release(queue, 5).declare()
    before = await scheduler.get_schedule("sweep")
    await Release(queue, 5, timeout=7).declare()
    assert (await scheduler.get_schedule("sweep")).next_run == before.next_run


async def test_a_new_rule_lets_the_interval_go_on(queue: TaskQueue, scheduler: TaskScheduler):
    await Release(queue, 5).declare()
    before = await scheduler.next_runs("sweep", 2)
    await Release(queue, 5, jitter=1, timezone="Europe/Berlin").declare()
    assert await scheduler.next_runs("sweep", 2) == before


async def test_a_new_definition_of_one_that_has_ended_begins_anew(queue: TaskQueue, scheduler: TaskScheduler):
    await Release(queue, 5).declare()
    await scheduler.update_schedule("sweep", max_runs=1)
    assert await scheduler.fire_due(600) == 1
    assert not (await scheduler.get_schedule("sweep")).active
    await Release(queue, 5).declare()
    assert not (await scheduler.get_schedule("sweep")).active
    await Release(queue, 10).declare()
    found = await scheduler.get_schedule("sweep")
    assert (found.active, found.runs, found.max_runs) == (True, 0, None)


async def test_another_user_takes_the_schedule_over(queue: TaskQueue, scheduler: TaskScheduler):
    await Release(queue, 5).declare()
    await Release(queue, 5, user_id="other").declare()
    assert [schedule.user_id for schedule in await scheduler.list_schedules()] == ["other"]
    assert await scheduler.list_schedules("system") == []


async def test_old_processes_do_not_bring_an_old_definition_back(
    queue: TaskQueue, scheduler: TaskScheduler, caplog: pytest.LogCaptureFixture
):
    old, new = Release(queue, 5), Release(queue, 10)
    await old.declare()
    await new.declare()
    await old.declare()
    restarted = Release(queue, 5)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        await restarted.declare()
        await restarted.declare()
    assert caplog.text.count("an older definition") == 1
    assert await interval(scheduler) == 10


async def test_a_release_that_was_taken_back_counts_again_when_nobody_with_the_newer_one_is_left(
    queue: TaskQueue, scheduler: TaskScheduler, core: Core
):
    old, new = Release(queue, 5), Release(queue, 10)
    await old.declare()
    await new.declare()
    forget_declarations(core)
    await old.declare()
    assert await interval(scheduler) == 5
    await new.declare()  # it is the older one now
    assert await interval(scheduler) == 5


async def test_a_deploy_loses_no_firing_and_doubles_none(queue: TaskQueue, scheduler: TaskScheduler):
    await Release(queue, 5).declare()
    other = TaskScheduler(queue)
    for release in (Release(queue, 5, timeout=1), Release(queue, 5), Release(queue, 5, timeout=2), Release(queue, 5)):
        before = len(await queue.tasks("system"))
        await asyncio.gather(release.declare(), scheduler.fire_due(0), other.fire_due(0))
        assert len(await queue.tasks("system")) == before
    made = await asyncio.gather(
        scheduler.fire_due(3001),
        other.fire_due(3001),
        Release(queue, 5, timeout=3).declare(),
        Release(queue, 5).declare(),
    )
    assert made[0] + made[1] == 10
    ids = [info.task_id for info in await queue.tasks("system")]
    assert len(ids) == len(set(ids)) == 10


async def test_a_schedule_that_vanished_from_the_code_is_reported_and_still_fires(
    queue: TaskQueue, scheduler: TaskScheduler, core: Core, caplog: pytest.LogCaptureFixture
):
    await Release(queue, 5).declare()
    later = Release(queue, None)
    await later.declare()
    assert not (await scheduler.get_schedule("sweep")).orphaned  # the old code may still run somewhere
    forget_declarations(core)
    with caplog.at_level(logging.WARNING):
        await later.declare()
        await later.declare()
    assert caplog.text.count("no code declares it any more") == 1
    assert (await scheduler.get_schedule("sweep")).orphaned
    assert await scheduler.fire_due(300) == 1
    await Release(queue, 5).declare()
    assert not (await scheduler.get_schedule("sweep")).orphaned


async def test_a_removed_schedule_is_no_orphan(queue: TaskQueue, scheduler: TaskScheduler, core: Core):
    await Release(queue, 5).declare()
    await scheduler.remove_schedule("sweep")
    forget_declarations(core)
    await Release(queue, None).declare()
    assert await scheduler.list_schedules() == []
    assert not [name for name in core.dump() if name.startswith("schedule")]


async def test_a_paused_schedule_stays_paused_when_its_definition_changes(queue: TaskQueue, scheduler: TaskScheduler):
    await Release(queue, 5).declare()
    await scheduler.pause_schedule("sweep")
    await Release(queue, 10).declare()
    found = await scheduler.get_schedule("sweep")
    assert (found.state, found.every) == (ScheduleState.PAUSED, 600)
    assert (await scheduler.resume_schedule("sweep")).next_run is not None


async def test_an_id_that_somebody_else_took_is_left_alone(
    queue: TaskQueue, scheduler: TaskScheduler, caplog: pytest.LogCaptureFixture
):
    task(name="other")(sweep)
    await scheduler.add_schedule(task=registry["other"](), every=60, user_id="anna", schedule_id="sweep")
    with caplog.at_level(logging.WARNING):
        await Release(queue, 5).declare()
    assert "its id is that of another schedule" in caplog.text
    assert (await scheduler.get_schedule("sweep")).user_id == "anna"


async def test_what_is_declared_is_told_in_the_task(queue: TaskQueue):
    from fairque import Firing, current_task

    told: list[Firing | None] = []

    @task(name="sweep", cron="* * * * * *", user_id="system")
    def sweep() -> None:
        told.append(current_task().schedule)

    async with Worker(queue):
        await eventually(lambda: len(told) >= 2)
    first, second = told[:2]
    assert first is not None
    assert second is not None
    assert (first.schedule_id, first.cron) == ("sweep", "* * * * * *")
    assert (second.planned_at - first.planned_at).total_seconds() == 1
