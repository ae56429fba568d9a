"""Schedules in Redis: how they are managed, and how they fire exactly once."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import pytest

from fairque import (
    BadArguments,
    Codec,
    Encrypt,
    Fail,
    FiredTask,
    InvalidInput,
    MessageTooLarge,
    Priority,
    QueueFull,
    QuotaExceeded,
    Schedule,
    ScheduleState,
    Task,
    TaskQueue,
    TaskScheduler,
    TaskState,
    UnknownSchedule,
    Worker,
    WrongType,
    current_task,
    task,
)
from fairque.redis.store_schedules import ScheduleStore, Write
from fairque.schedule.spec import moment_of
from fairque.scheduler.loop import ScheduleLoop
from fairque.tasks.registry import registry, unregister
from fairque.worker import renewal
from tests.support.calls import call_of
from tests.support.core import Core, outcome
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.support.proxy import CuttingProxy
    from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()
ran: list[int] = []


@pytest.fixture(autouse=True)
def _tasks():
    ran.clear()
    task(name="report")(report)
    yield
    unregister("report")


async def report(number: int = 0) -> int:
    ran.append(number)
    return number


def make(number: int = 0) -> Task[int]:
    return registry["report"](number)


@pytest.fixture
def scheduler(queue: TaskQueue) -> TaskScheduler:
    return TaskScheduler(queue)


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core


async def add(scheduler: TaskScheduler, **options: Any) -> str:
    """An hourly schedule of anna's called s, unless told otherwise. An hour is longer than any test."""
    times = {} if {"cron_expr", "every", "at"} & options.keys() else {"every": 3600}
    defaults = {"task": make(), "user_id": "anna", "schedule_id": "s"}
    return await scheduler.add_schedule(**(defaults | times | options))


def plan(core: Core, schedule_id: str, moment: int) -> None:
    """It fires then."""
    user = core.execute("HGET", f":schedule:{schedule_id}", "user").decode()
    core.execute("ZADD", f":schedules:{user}", moment, schedule_id)
    core.execute("ZADD", ":schedules", moment, user)


def rewind(core: Core, hours: float, schedule_id: str = "s") -> datetime:
    """As if an hourly schedule that is new had been added so long ago, and never fired. Returns its next slot."""
    key, back = f":schedule:{schedule_id}", round(hours * 3_600_000)
    slot = int(core.execute("HINCRBY", key, "slot", -back))
    core.execute("HINCRBY", key, "anchor", -back)
    plan(core, schedule_id, slot)
    return datetime.fromtimestamp(slot / 1000, UTC)


async def waiting(queue: TaskQueue, user_id: str = "anna") -> list[str]:
    return [info.task_id for info in await queue.tasks(user_id)]


def slots(task_ids: list[str]) -> list[datetime]:
    return [datetime.fromisoformat(task_id.partition("@")[2]) for task_id in task_ids]


# Managing


async def test_a_schedule_is_known_by_what_it_was_told(scheduler: TaskScheduler):
    start, end = datetime(2030, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)
    given = {"start": start, "end": end, "jitter": 5.0, "max_runs": 9, "misfire": "all", "overlap": "skip"}
    found = await scheduler.get_schedule(
        await add(scheduler, cron_expr="0 9 * * *", timezone="Europe/Berlin", misfire_limit=7, misfire_grace=3, **given)
    )
    assert {name: getattr(found, name) for name in given} == given
    assert (found.user_id, found.name, found.cron, found.timezone) == ("anna", "report", "0 9 * * *", "Europe/Berlin")
    assert (found.misfire_limit, found.misfire_grace, found.every, found.at) == (7, 3.0, None, None)
    assert (found.runs, found.skipped, found.misfired, found.last_run, found.last_task_id) == (0, 0, 0, None, None)
    assert found.active
    assert not found.declared
    assert not found.orphaned
    nine = datetime(2030, 1, 1, 8, tzinfo=UTC)
    assert nine <= (found.next_run or start) <= nine + timedelta(seconds=5)


async def test_without_an_id_each_schedule_gets_its_own(scheduler: TaskScheduler):
    ids = {await add(scheduler, schedule_id=None) for _ in range(3)}
    assert len(ids) == 3


async def test_a_cron_expression_and_a_task_may_be_given_by_position(scheduler: TaskScheduler):
    name = await scheduler.add_schedule("0 12 * * *", make(3), user_id="anna")
    found = await scheduler.get_schedule(name)
    assert (found.cron, found.name) == ("0 12 * * *", "report")
    with pytest.raises(InvalidInput, match="task"):
        await scheduler.add_schedule("0 12 * * *", user_id="anna")


async def test_adding_the_same_again_changes_nothing(scheduler: TaskScheduler):
    await add(scheduler)
    before = await scheduler.get_schedule("s")
    assert await add(scheduler) == "s"
    assert await scheduler.get_schedule("s") == before


async def test_adding_another_one_with_the_same_id_changes_it_and_keeps_its_state_and_counts(scheduler: TaskScheduler):
    await add(scheduler, cron_expr="0 * * * *")
    await scheduler.fire_due(3600)
    before = await scheduler.get_schedule("s")
    kept = ("state", "runs", "created_at", "last_run", "last_task_id", "next_run")
    for other in ({"overlap": "skip"}, {"task": make(1)}, {"task": make().options(delay=1)}):
        await add(scheduler, cron_expr="0 * * * *", **other)
        after = await scheduler.get_schedule("s")
        assert all(getattr(after, name) == getattr(before, name) for name in kept)
    await add(scheduler, cron_expr="30 * * * *")
    moved = await scheduler.get_schedule("s")
    assert (moved.cron, moved.runs, moved.overlap) == ("30 * * * *", 1, "allow")
    assert moved.next_run is not None
    assert moved.next_run.minute == 30
    await scheduler.pause_schedule("s")
    await add(scheduler, cron_expr="15 * * * *")
    assert (await scheduler.get_schedule("s")).state is ScheduleState.PAUSED
    assert await scheduler.fire_due(10 * 3600) == 0


def hourly(name: str, user_id: str = "anna", **options: Any) -> Schedule:
    return Schedule("0 * * * *", make(), user_id=user_id, schedule_id=name, **options)


async def test_many_are_added_in_two_round_trips(scheduler: TaskScheduler, server: Server):
    await add(scheduler, schedule_id="000")  # the server knows the scripts
    before = scripts_run(server)
    ids = await scheduler.add_schedules([hourly(f"{number:03}") for number in range(400)])
    assert scripts_run(server) - before == 2
    assert ids == [each.schedule_id for each in await scheduler.list_schedules()]
    assert await scheduler.add_schedules([]) == []
    [name] = await scheduler.add_schedules([Schedule(task=make(), every=60, user_id="zoe")])
    assert (await scheduler.get_schedule(name)).every == 60


async def test_many_that_are_added_again_are_changed_where_they_are_others(scheduler: TaskScheduler):
    await scheduler.add_schedules([hourly("a"), hourly("b")])
    await scheduler.fire_due(3600)
    await scheduler.add_schedules([hourly("b", overlap="skip"), hourly("c"), hourly("a")])
    found = {each.schedule_id: (each.overlap, each.runs) for each in await scheduler.list_schedules()}
    assert found == {"a": ("allow", 1), "b": ("skip", 1), "c": ("allow", 0)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule_id": "taken"},
        {"schedule_id": "a"},
        {"start": datetime(2030, 1, 1, tzinfo=UTC), "end": datetime(2020, 1, 1, tzinfo=UTC)},
        {"end": datetime(2020, 1, 1, tzinfo=UTC)},
        {"user_id": ""},
        {"task": None},
        {"cron_expr": "0 99 * * *"},
        None,
    ],
)
async def test_where_one_of_many_cannot_be_added_none_is(scheduler: TaskScheduler, wrong: dict[str, Any] | None):
    bad: Any = "@daily" if wrong is None else replace(hourly("b"), **wrong)
    await add(scheduler, schedule_id="taken", user_id="zoe")
    with pytest.raises(InvalidInput):
        await scheduler.add_schedules([hourly("a"), bad, hourly("z")])
    assert [each.schedule_id for each in await scheduler.list_schedules()] == ["taken"]


async def test_where_the_bytes_of_one_user_are_used_up_none_of_many_is_added(
    scheduler: TaskScheduler, queue: TaskQueue
):
    await queue.set_policy("full", max_bytes=1000)
    heavy = Task.create(payload={"text": "x" * 600})
    many = [Schedule("@daily", heavy, user_id="full", schedule_id=name) for name in "ab"]
    with pytest.raises(QuotaExceeded, match="full"):
        await scheduler.add_schedules([hourly("s"), *many])
    assert await scheduler.list_schedules() == []
    await scheduler.add_schedules([hourly("s"), many[0]])
    await scheduler.add_schedules([hourly("s", jitter=1), many[0]])


async def test_many_beyond_a_batch_are_added_batch_by_batch(scheduler: TaskScheduler, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fairque.scheduler.scheduler.BATCH", 2)
    await add(scheduler, schedule_id="3", user_id="zoe")
    with pytest.raises(InvalidInput, match="'3' is taken"):
        await scheduler.add_schedules([hourly(str(number)) for number in range(5)])
    assert [each.schedule_id for each in await scheduler.list_schedules("anna")] == ["0", "1"]


async def test_many_that_are_added_by_many_at_once_are_there_once(scheduler: TaskScheduler):
    names = [str(number) for number in range(20)]
    await asyncio.gather(*(scheduler.add_schedules([hourly(name, jitter=n) for name in names]) for n in range(5)))
    found = await scheduler.list_schedules()
    assert len(found) == 20
    assert len({each.jitter for each in found}) == 1, "all of one call"


async def test_an_interval_goes_on_when_it_is_added_again(scheduler: TaskScheduler):
    await add(scheduler)
    before = await scheduler.next_runs("s", 3)
    await add(scheduler, task=make(1), jitter=1)
    assert await scheduler.next_runs("s", 3) == before


async def test_an_id_of_another_user_is_taken_also_when_that_schedule_has_ended(scheduler: TaskScheduler):
    await add(scheduler, max_runs=1)
    for _ in range(2):
        before = await scheduler.get_schedule("s")
        with pytest.raises(InvalidInput, match="'s' is taken"):
            await add(scheduler, user_id="zoe", max_runs=1)
        assert await scheduler.get_schedule("s") == before
        await scheduler.fire_due(3600)


async def test_what_has_ended_does_not_begin_again_when_it_is_added_at_the_next_start(
    scheduler: TaskScheduler, queue: TaskQueue
):
    at = datetime.now(UTC) + timedelta(milliseconds=200)
    for _ in range(3):
        await add(scheduler, schedule_id="moment", at=at)
        await add(scheduler, schedule_id="once", max_runs=1)
        await eventually(lambda: datetime.now(UTC) > at)
        await scheduler.fire_due(3600)
    await add(scheduler, schedule_id="once", max_runs=1, task=make(1))
    assert len(await waiting(queue)) == 2
    assert {each.state for each in await scheduler.list_schedules()} == {ScheduleState.ENDED}


async def test_each_start_has_what_has_ended_kept_for_longer(scheduler: TaskScheduler, core: Core):
    await add(scheduler, max_runs=1)
    await scheduler.fire_due(3600)
    before = float(core.execute("ZSCORE", ":schedules-ended", "s"))
    core.wait_until_ms(core.now_us() // 1000 + 1)
    await add(scheduler, max_runs=1)
    assert float(core.execute("ZSCORE", ":schedules-ended", "s")) > before


async def test_what_has_ended_begins_anew_with_other_times(scheduler: TaskScheduler):
    for hours in (1, 2):
        at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=hours)
        await add(scheduler, at=at)
        assert await scheduler.fire_due(hours * 3600) == 1
    found = await scheduler.get_schedule("s")
    assert (found.runs, found.state) == (1, ScheduleState.ENDED)
    assert found.last_task_id is not None
    await add(scheduler, at=at, max_runs=2)
    assert (await scheduler.get_schedule("s")).active


async def test_a_schedule_that_is_added_with_fewer_runs_than_it_had_has_ended(scheduler: TaskScheduler, core: Core):
    await add(scheduler)
    await scheduler.fire_due(2.5 * 3600)
    await add(scheduler, max_runs=2)
    found = await scheduler.get_schedule("s")
    assert (found.state, found.runs, found.next_run) == (ScheduleState.ENDED, 2, None)
    assert core.execute("ZCARD", ":schedules-ended") == 1


async def test_many_processes_that_add_at_once_make_one_schedule(scheduler: TaskScheduler):
    await asyncio.gather(*(add(scheduler, every=60 + number % 2) for number in range(8)))
    [found] = await scheduler.list_schedules()
    assert found.every in (60, 61)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"task": "report"}, InvalidInput),
        ({"user_id": None}, InvalidInput),
        ({"user_id": ""}, InvalidInput),
        ({"schedule_id": "x" * 481}, InvalidInput),
        ({"schedule_id": ""}, InvalidInput),
        ({"every": 3600, "at": datetime(2030, 1, 1, tzinfo=UTC)}, InvalidInput),
        ({"at": datetime(2020, 1, 1, tzinfo=UTC)}, InvalidInput),
        ({"end": datetime(2020, 1, 1, tzinfo=UTC)}, InvalidInput),
        ({"cron_expr": "0 9 * * *", "timezone": "Berlin"}, InvalidInput),
        ({"cron_expr": "0 99 * * *"}, InvalidInput),
        ({"overlap": "no"}, InvalidInput),
    ],
)
async def test_what_breaks_a_rule_is_refused_and_nothing_is_written(
    scheduler: TaskScheduler, server: Server, queue_name: str, options: dict, error: type[Exception]
):
    with pytest.raises(error):
        await add(scheduler, **options)
    assert server.lasting_keys(queue_name) in ([], begun(queue_name))


def begun(queue_name: str) -> list[str]:
    """The keys of a queue that was opened."""
    return [f"fairque:{{{queue_name}}}:{name}" for name in ("settings", "state")]


async def test_a_task_that_cannot_be_repeated_is_refused(scheduler: TaskScheduler):
    for options in (
        {"task_id": "t"},
        {"depends_on": ["t"]},
        {"execute_after": datetime(2030, 1, 1, tzinfo=UTC)},
        {"batch": "b"},
    ):
        with pytest.raises(InvalidInput, match=min(options)):
            await add(scheduler, task=make().options(**options))
    with pytest.raises(InvalidInput, match="outputs"):
        await add(scheduler, task=make(make().output))
    with pytest.raises(MessageTooLarge):
        await add(scheduler, task=Task.create(payload={"text": "x" * 300_000}))


async def test_what_is_not_there_is_unknown(scheduler: TaskScheduler):
    calls = (
        scheduler.get_schedule,
        scheduler.update_schedule,
        scheduler.pause_schedule,
        scheduler.resume_schedule,
        scheduler.run_now,
        scheduler.next_runs,
    )
    for call in calls:
        with pytest.raises(UnknownSchedule, match="'nothing'"):
            await call("nothing")
    assert not await scheduler.remove_schedule("nothing")


async def test_a_removed_schedule_leaves_nothing_but_its_answer(
    scheduler: TaskScheduler, server: Server, queue_name: str
):
    await add(scheduler)
    assert await scheduler.remove_schedule("s")
    assert [key for key in server.keys(queue_name) if ":answer:" not in key] == begun(queue_name)
    assert await scheduler.list_schedules() == []


async def test_schedules_are_listed_by_user_and_state(scheduler: TaskScheduler):
    for user_id in ("anna", "ann", "anna:x", "zoe"):
        for name in "ba":
            await add(scheduler, user_id=user_id, schedule_id=f"{user_id}/{name}")
    await scheduler.pause_schedule("anna/a")

    async def ids(*args: Any, **options: Any) -> list[str]:
        return [schedule.schedule_id for schedule in await scheduler.list_schedules(*args, **options)]

    assert await ids("anna") == ["anna/a", "anna/b"]
    assert await ids("anna", True) == ["anna/b"]
    assert await ids("anna", active=False) == ["anna/a"]
    assert await ids("anna:x") == ["anna:x/a", "anna:x/b"]
    assert await ids("nobody") == []
    assert len(await ids()) == 8
    assert len(await ids(limit=3)) == 3


async def test_a_long_list_is_read_in_pages(scheduler: TaskScheduler, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fairque.scheduler.scheduler.PAGE", 2)
    for number in range(5):
        await add(scheduler, schedule_id=str(number))
    assert [schedule.schedule_id for schedule in await scheduler.list_schedules()] == list("01234")


async def test_an_update_of_rules_keeps_the_next_firing_and_one_of_times_moves_it(scheduler: TaskScheduler):
    await add(scheduler)
    before = await scheduler.get_schedule("s")
    kept = await scheduler.update_schedule("s", overlap="skip", max_runs=5, task=make(7))
    assert (kept.next_run, kept.overlap, kept.max_runs, kept.every) == (before.next_run, "skip", 5, 3600.0)
    moved = await scheduler.update_schedule("s", every=7200)
    assert moved.next_run is not None
    assert before.next_run is not None
    assert moved.next_run > before.next_run
    assert moved.overlap == "skip"
    changed = await scheduler.update_schedule("s", cron_expr="@yearly", max_runs=None)
    assert (changed.cron, changed.every, changed.max_runs) == ("@yearly", None, None)


async def test_a_schedule_that_comes_more_often_now_comes_sooner(scheduler: TaskScheduler):
    await add(scheduler, cron_expr="@yearly")
    soon = datetime.now(UTC) + timedelta(hours=25)
    daily = await scheduler.update_schedule("s", cron_expr="@daily")
    assert daily.next_run is not None
    assert daily.next_run < soon


async def test_an_interval_goes_on_whatever_else_is_updated(scheduler: TaskScheduler):
    await add(scheduler, every=7)
    before = await scheduler.next_runs("s", 3)
    end = datetime.now(UTC) + timedelta(days=1)
    for changes in ({"end": end}, {"jitter": 1}, {"jitter": 0}, {"every": 7}, {"timezone": "Europe/Berlin"}):
        await scheduler.update_schedule("s", **changes)
        assert await scheduler.next_runs("s", 3) == before


async def test_an_update_lets_no_slot_look_missed_that_waits_for_the_jitter_of_the_one_before(
    scheduler: TaskScheduler, core: Core
):
    await add(scheduler, every=60, jitter=3600, misfire="skip", misfire_grace=1)
    now_ms = round(datetime.now(UTC).timestamp() * 1000)
    slot = now_ms - now_ms % 60_000 - 2 * 3_600_000
    core.execute("HSET", ":schedule:s", "slot", slot, "anchor", slot - 60_000)
    plan(core, "s", now_ms + 30_000)
    found = await scheduler.update_schedule("s", end=datetime.now(UTC) + timedelta(days=1))
    assert found.next_run is not None
    assert found.next_run >= moment_of(now_ms - 1000)


def owned(number: int, user_id: str | None) -> Task[int]:
    return make(number) if user_id is None else make(number).options(user_id=user_id)


@pytest.mark.parametrize(
    ("said", "own", "whose"), [("anna", None, "anna"), (None, "anna", "anna"), ("anna", "zoe", "anna")]
)
async def test_a_schedule_is_its_users_who_is_said_else_the_tasks_own(
    scheduler: TaskScheduler, queue: TaskQueue, said: str | None, own: str | None, whose: str
):
    await add(scheduler, task=owned(1, own), user_id=said)
    await scheduler.update_schedule("s", task=owned(2, own), user_id=said)
    await add(scheduler, task=owned(3, own), user_id=said)
    await scheduler.update_schedule("s", task=make(4))  # nobody is named
    assert (await scheduler.get_schedule("s")).user_id == whose
    await scheduler.fire_due(3600)
    assert len(await waiting(queue, whose)) == 1
    await Worker(queue, scheduler=False).run_until_idle()
    assert ran == [4]


@pytest.mark.parametrize(("said", "own"), [("zoe", None), (None, "zoe"), ("zoe", "anna")])
async def test_a_schedule_is_given_to_no_other_user(scheduler: TaskScheduler, said: str | None, own: str | None):
    await add(scheduler)
    before = await scheduler.get_schedule("s")
    with pytest.raises(InvalidInput, match="'zoe'"):
        await scheduler.update_schedule("s", task=owned(1, own), user_id=said)
    with pytest.raises(InvalidInput, match="'zoe'"):
        await scheduler.update_schedule("s", user_id="zoe")
    with pytest.raises(InvalidInput, match="taken"):
        await add(scheduler, task=owned(1, own), user_id=said)
    assert await scheduler.get_schedule("s") == before


async def test_an_update_that_breaks_a_rule_changes_nothing(scheduler: TaskScheduler):
    await add(scheduler)
    before = await scheduler.get_schedule("s")
    for changes in ({"cron_expr": "x"}, {"every": None}, {"colour": "red"}, {"end": datetime(2020, 1, 1, tzinfo=UTC)}):
        with pytest.raises(InvalidInput):
            await scheduler.update_schedule("s", **changes)
    assert await scheduler.get_schedule("s") == before


async def test_concurrent_changes_are_all_made(scheduler: TaskScheduler):
    await add(scheduler)
    changes = [{"jitter": 1}, {"overlap": "skip"}, {"max_runs": 9}, {"misfire": "all"}, {"misfire_limit": 3}]
    await asyncio.gather(*(scheduler.update_schedule("s", **change) for change in changes))
    found = await scheduler.get_schedule("s")
    assert (found.jitter, found.overlap, found.max_runs, found.misfire, found.misfire_limit) == (1, "skip", 9, "all", 3)


async def test_next_runs_are_those_to_come(scheduler: TaskScheduler):
    await add(scheduler, cron_expr="0 9 * * *", timezone="Europe/Berlin", start=datetime(2030, 6, 1, tzinfo=UTC))
    assert await scheduler.next_runs("s", 2) == [datetime(2030, 6, day, 7, tzinfo=UTC) for day in (1, 2)]
    await scheduler.update_schedule("s", max_runs=1)
    assert len(await scheduler.next_runs("s", 2)) == 1
    await scheduler.pause_schedule("s")
    assert await scheduler.next_runs("s", 2) == []


# Firing


async def test_nothing_fires_before_its_time(scheduler: TaskScheduler, queue: TaskQueue):
    await add(scheduler)
    assert await scheduler.fire_due() == 0
    assert await scheduler.fire_due(3590) == 0
    assert await waiting(queue) == []


async def test_a_due_slot_makes_a_task_with_its_time_in_its_id(scheduler: TaskScheduler, queue: TaskQueue, core: Core):
    await add(scheduler, task=make(5).options(priority=Priority.HIGH))
    planned = rewind(core, 1)
    assert (await scheduler.get_schedule("s")).next_run == planned
    assert await scheduler.fire_due() == 1
    [task_id] = await waiting(queue)
    assert slots([task_id]) == [planned]
    found = await scheduler.get_schedule("s")
    assert (found.runs, found.last_task_id, found.next_run) == (1, task_id, planned + timedelta(hours=1))
    assert (await queue.handle("anna", task_id).info()).priority == Priority.HIGH
    await Worker(queue, scheduler=False).run_until_idle()
    assert ran == [5]


async def test_looking_ahead_fires_slot_after_slot(scheduler: TaskScheduler, queue: TaskQueue):
    await add(scheduler)
    await add(scheduler, schedule_id="t", every=7200)
    assert await scheduler.fire_due(4 * 3600) == 6
    found = slots([each for each in await waiting(queue) if each.startswith("s@")])
    assert [later - earlier for earlier, later in pairwise(found)] == [timedelta(hours=1)] * 3
    assert await scheduler.fire_due(4 * 3600) == 0
    with pytest.raises(InvalidInput):
        await scheduler.fire_due(-1)


async def test_looking_too_far_ahead_is_refused(scheduler: TaskScheduler, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fairque.scheduler.loop.MOST_FIRED", 3)
    await add(scheduler)
    with pytest.raises(InvalidInput, match="3 firings"):
        await scheduler.fire_due(10 * 3600)


@pytest.mark.parametrize("delay", [None, 60.0])
@pytest.mark.parametrize("priority", [None, Priority.CRITICAL])
async def test_a_firing_leaves_exactly_what_an_enqueue_leaves(
    scheduler: TaskScheduler, queue: TaskQueue, core: Core, delay: float | None, priority: Priority | None
):
    def traces(user_id: str) -> dict[str, Any]:
        """What lies in Redis for a user, without moments, and without what differs by design."""
        keys = {
            name: key
            for name, key in core.dump().items()
            if not name.startswith(("schedules", "schedule:", "schedule-", "state", "answer:"))
        }
        found: dict[str, Any] = {}
        for name, key in keys.items():
            if name.startswith("body:"):
                continue
            members = [each.decode() for each in key.content]
            if key.kind == "hash":
                members = [field for field, _ in key.pairs]
            elif key.kind == "zset":
                members = [member for member, _ in key.pairs]
            found[name.replace(user_id, "U")] = sorted(member.replace(user_id, "U") for member in members)
        return found

    made = make().options(delay=delay, priority=priority)
    await add(scheduler, task=made)
    await scheduler.fire_due(3600)
    [task_id] = await waiting(queue)
    counts = {name: value for name, value in core.state().items() if name not in ("clock", "arrival")}
    fired = traces("anna")
    core.forget()
    await queue.enqueue(made, user_id="anna", task_id=task_id)
    assert {name: value for name, value in core.state().items() if name not in ("clock", "arrival")} == counts
    assert traces("anna") == fired
    assert any(name.startswith(("normal:", "critical:", "scheduled:")) for name in fired)


async def test_a_firing_wakes_an_idle_worker(scheduler: TaskScheduler, queue: TaskQueue, core: Core):
    await add(scheduler, task=make(3))
    async with Worker(queue, poll_interval=60, scheduler=False):
        await eventually(lambda: core.execute("SCARD", ":waiting") == 1)
        await scheduler.fire_due(3600)
        await eventually(lambda: ran == [3])


async def test_a_firing_with_a_delay_tells_an_idle_worker_when_to_look(
    scheduler: TaskScheduler, queue: TaskQueue, core: Core
):
    await add(scheduler, task=make(4).options(delay=0.5))
    async with Worker(queue, poll_interval=60, scheduler=False):
        await eventually(lambda: core.execute("SCARD", ":waiting") == 1)
        await scheduler.fire_due(3600)
        await eventually(lambda: ran == [4])


@pytest.mark.parametrize("schedulers", [2, 5])
async def test_concurrent_schedulers_fire_each_slot_once(server: Server, queue_name: str, schedulers: int):
    """Each has a connection of its own, and all look at the same moment, again and again."""
    queues = [TaskQueue(server.url, name=queue_name) for _ in range(schedulers)]
    for queue in queues:
        await queue.open()
    try:
        for name in ("s", "t", "u"):
            await add(TaskScheduler(queues[0]), schedule_id=name)
        made = await asyncio.gather(*(TaskScheduler(queue).fire_due(10.5 * 3600) for queue in queues))
        assert sum(made) == 30
        found = await waiting(queues[0])
        assert len(found) == len(set(found)) == 30
        for name in ("s", "t", "u"):
            planned = slots([each for each in found if each.startswith(name)])
            assert [b - a for a, b in pairwise(planned)] == [timedelta(hours=1)] * 9
    finally:
        for queue in queues:
            await queue.close()


async def test_a_running_scheduler_fires_on_time_and_hears_of_new_schedules(scheduler: TaskScheduler, queue: TaskQueue):
    running = asyncio.create_task(scheduler.run())
    await add(scheduler, cron_expr="* * * * * *")
    await eventually(lambda: runs_of(scheduler, "s", 2))
    await scheduler.stop()
    await running
    planned = slots(await waiting(queue))
    assert len(planned) >= 2
    assert all(b - a == timedelta(seconds=1) for a, b in pairwise(planned))


async def runs_of(scheduler: TaskScheduler, schedule_id: str, least: int) -> bool:
    return (await scheduler.get_schedule(schedule_id)).runs >= least


def scripts_run(server: Server) -> int:
    stats = server.execute("INFO", "commandstats").decode()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in stats.splitlines() if "fcall" in line)


async def test_a_scheduler_without_schedules_asks_for_nothing(
    server: Server, scheduler: TaskScheduler, queue: TaskQueue
):
    running = asyncio.create_task(scheduler.run())
    channel = queue.keys.schedules_channel
    await eventually(lambda: server.execute("PUBSUB", "SHARDNUMSUB", channel)[1])
    await asyncio.sleep(0.5)  # what it does at its start
    before = scripts_run(server)
    await asyncio.sleep(3)
    assert scripts_run(server) - before <= 1
    await scheduler.stop()
    await running


# Many of them


async def asks_nothing(server: Server) -> bool:
    before = scripts_run(server)
    await asyncio.sleep(0.5)
    return scripts_run(server) == before


@asynccontextmanager
async def fleet(server: Server, queue: TaskQueue, size: int) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """Schedulers that run, by name, once each has found its part."""
    schedulers = [TaskScheduler(queue) for _ in range(size)]
    running = {each.name: asyncio.create_task(each.run()) for each in schedulers}
    await eventually(lambda: asks_nothing(server))
    try:
        yield running
    finally:
        for each in running.values():
            each.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)


def parts(core: Core) -> tuple[str, str]:
    """The keeper and the deputy."""
    keeper, _, _, deputy, _ = (core.execute("GET", ":schedule-keepers") or b"- 0 0 - 0").decode().split()
    return keeper, deputy


async def test_each_slot_costs_a_hundred_schedulers_a_look_or_two(
    server: Server, scheduler: TaskScheduler, queue: TaskQueue
):
    async with fleet(server, queue, 100):
        await add(scheduler, cron_expr="* * * * * *")
        await eventually(lambda: runs_of(scheduler, "s", 2))
        runs, before = (await scheduler.get_schedule("s")).runs, scripts_run(server)
        await asyncio.sleep(5)
        calls, more = scripts_run(server) - before, (await scheduler.get_schedule("s")).runs - runs
    assert more >= 4
    assert calls <= 3 * (more + 1) + 1  # the keeper looks and fires, the deputy looks
    planned = slots(await waiting(queue))
    assert all(b - a == timedelta(seconds=1) for a, b in pairwise(planned))


async def test_a_change_wakes_only_who_must_know_of_it(server: Server, scheduler: TaskScheduler, queue: TaskQueue):
    async with fleet(server, queue, 100):
        await add(scheduler, at=datetime.now(UTC) + timedelta(seconds=20))
        await asyncio.sleep(0.3)
        before = scripts_run(server)
        for number in range(5):
            await add(scheduler, schedule_id=str(number))  # two calls
        await asyncio.sleep(0.5)
        assert scripts_run(server) - before <= 20, "not one for each scheduler"
        await add(scheduler, schedule_id="soon", at=datetime.now(UTC) + timedelta(seconds=0.5))
        await eventually(lambda: runs_of(scheduler, "soon", 1))
        found = await scheduler.get_schedule("soon")
    assert found.last_run is not None
    assert found.at is not None
    assert found.last_run - found.at < timedelta(seconds=3)


async def test_the_deputy_takes_over_from_a_keeper_that_is_gone(
    server: Server, scheduler: TaskScheduler, queue: TaskQueue, core: Core, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ScheduleLoop, "_leave", AsyncMock())  # as if it were killed
    async with fleet(server, queue, 5) as running:
        await add(scheduler, cron_expr="* * * * * *")
        await eventually(lambda: runs_of(scheduler, "s", 1))
        keeper, deputy = parts(core)
        at = datetime.now(UTC) + timedelta(seconds=1.2)
        running[keeper].cancel()
        await add(scheduler, schedule_id="soon", at=at)
        await eventually(lambda: runs_of(scheduler, "soon", 1))
        found = await scheduler.get_schedule("soon")
        assert parts(core)[0] == deputy
        assert found.last_run is not None
        assert found.last_run - at < timedelta(seconds=3)  # the others look after 22 s at the soonest
        await eventually(lambda: runs_of(scheduler, "s", 5))
    planned = slots([each for each in await waiting(queue) if each.startswith("s@")])
    assert all(b - a == timedelta(seconds=1) for a, b in pairwise(planned)), "no slot was lost"


async def test_a_keeper_that_stops_hands_its_part_on(
    server: Server, scheduler: TaskScheduler, queue: TaskQueue, core: Core
):
    await add(scheduler)
    async with fleet(server, queue, 3) as running:
        keeper, deputy = parts(core)
        running[keeper].cancel()
        await eventually(lambda: parts(core) == (deputy, "-"))
        running[deputy].cancel()
        await eventually(lambda: parts(core)[0] not in ("-", keeper, deputy))
    assert core.execute("EXISTS", ":schedule-keepers") == 0


async def test_who_has_no_part_looks_when_it_is_told_to(queue: TaskQueue):
    store = ScheduleStore(queue.reader)
    looks = [(await store.ripe(1, scheduler=name)).next_look_ms for name in ("keeper", "deputy", "other", "other")]
    assert [at < math.inf for at in looks] == [True, True, False, False]


async def test_a_sign_of_life_tells_of_a_part_that_is_free(queue: TaskQueue, core: Core):
    store = ScheduleStore(queue.reader)
    assert core.is_to_fire("a"), "nobody looks at schedules"
    await store.ripe(1, scheduler="a")
    assert not core.is_to_fire("a"), "it has a part already"
    assert core.is_to_fire("b"), "there is no deputy"
    await store.ripe(1, scheduler="b")
    assert not any(core.is_to_fire(name) for name in ("a", "b", "c"))
    await store.leave("b")
    assert core.is_to_fire("c")
    assert not core.is_to_fire(""), "its process fires none"


@pytest.mark.parametrize("partitions", [1, 4])
async def test_the_scheduler_of_a_worker_takes_over_where_keeper_and_deputy_were_killed(
    server: Server, queue_name: str, monkeypatch: pytest.MonkeyPatch, partitions: int
):
    monkeypatch.setattr(ScheduleLoop, "_leave", AsyncMock())  # as if they were killed
    for seconds in ("IDLE_HEARTBEAT_SECONDS", "SPREAD_HEARTBEAT_SECONDS"):
        monkeypatch.setattr(renewal, seconds, 0.5)
    async with TaskQueue(server.url, name=queue_name, partitions=partitions) as queue:
        near = TaskScheduler(queue)
        await add(near, cron_expr="* * * * * *")
        async with fleet(server, queue, 2) as running, Worker(queue):
            await eventually(lambda: runs_of(near, "s", 1))
            for each in running.values():
                each.cancel()
            runs = (await near.get_schedule("s")).runs
            await eventually(lambda: runs_of(near, "s", runs + 3))


@pytest.mark.damages
async def test_who_looks_is_found_anew_where_that_was_lost(
    server: Server, scheduler: TaskScheduler, queue: TaskQueue, core: Core
):
    async with fleet(server, queue, 3):
        await add(scheduler, cron_expr="* * * * * *")
        for command in (("DEL",), ("RPUSH", "junk"), ("SET", "junk"), ("SET", "- 1 x - 0")):
            runs = (await scheduler.get_schedule("s")).runs
            core.execute("DEL", ":schedule-keepers")
            core.execute(command[0], ":schedule-keepers", *command[1:])
            await eventually(lambda: runs_of(scheduler, "s", runs + 2))  # noqa: B023


async def test_a_scheduler_goes_on_after_an_outage(proxy: CuttingProxy, queue: TaskQueue, queue_name: str):
    near = TaskScheduler(queue)
    async with TaskQueue(proxy.url, name=queue_name, timeout=1) as far:
        scheduler = TaskScheduler(far)
        running = asyncio.create_task(scheduler.run())
        await add(near, cron_expr="* * * * * *")
        await eventually(lambda: runs_of(near, "s", 1))
        await proxy.refuse()
        proxy.cut_all()
        before = (await near.get_schedule("s")).runs
        await asyncio.sleep(2)  # slots that nobody fires
        assert (await near.get_schedule("s")).runs <= before + 1
        await proxy.accept()
        await eventually(lambda: runs_of(near, "s", before + 4))
        await scheduler.stop()
        await running
    planned = slots(await waiting(queue))
    assert len(planned) >= 5
    assert all(b - a == timedelta(seconds=1) for a, b in pairwise(planned))


@pytest.mark.parametrize("script", ["fire", "ripe"])
async def test_a_cut_reply_fires_nothing_twice_and_loses_nothing(
    queue: TaskQueue, proxy: CuttingProxy, queue_name: str, script: str
):
    async with TaskQueue(proxy.url, name=queue_name) as far:
        await add(TaskScheduler(far))
        cuts = [proxy.cut_reply(call_of(script), nth=2)]
        await TaskScheduler(far).fire_due(5.5 * 3600)
        assert all(cut.done.is_set() for cut in cuts)
    planned = slots(await waiting(queue))
    assert [b - a for a, b in pairwise(planned)] == [timedelta(hours=1)] * 4
    assert (await TaskScheduler(queue).get_schedule("s")).runs == 5


@pytest.mark.parametrize("call", ["add", "update", "pause", "run_now"])
async def test_a_change_whose_reply_was_cut_is_made_once(
    queue: TaskQueue, proxy: CuttingProxy, queue_name: str, call: str
):
    script = "fire" if call == "run_now" else "schedule"
    async with TaskQueue(proxy.url, name=queue_name) as far:
        scheduler = TaskScheduler(far)
        if call != "add":
            await add(scheduler)
        cut = proxy.cut_reply(call_of(script))
        if call == "add":
            await add(scheduler)
        elif call == "update":
            assert (await scheduler.update_schedule("s", every=60)).every == 60
        elif call == "pause":
            assert not (await scheduler.pause_schedule("s")).active
        else:
            assert await scheduler.run_now("s") in await waiting(queue)
        assert cut.done.is_set()
    assert len(await TaskScheduler(queue).list_schedules()) == 1
    assert len(await waiting(queue)) == (1 if call == "run_now" else 0)


async def test_what_was_changed_since_it_was_read_is_not_written(scheduler: TaskScheduler, queue: TaskQueue):
    await add(scheduler)
    store = ScheduleStore(queue.reader)
    known = await store.get("s")
    assert known is not None
    assert await store.write(Write("s", "anna", known.revision, None, {"state": "paused"})) == "done"
    assert await store.write(Write("s", "anna", known.revision, None, {"state": "active"})) == "changed"
    assert await store.write(Write("t", "anna", known.revision, None, {"state": "active"})) == "missing"
    assert await store.write(Write("s", "anna", "", None, {"state": "active"})) == "exists"
    assert not (await scheduler.get_schedule("s")).active


# Rules


async def test_a_paused_schedule_fires_nothing_and_makes_up_for_nothing(scheduler: TaskScheduler, core: Core):
    await add(scheduler)
    assert (await scheduler.pause_schedule("s")).state is ScheduleState.PAUSED
    assert (await scheduler.get_schedule("s")).next_run is None
    core.execute("HINCRBY", ":schedule:s", "slot", -10 * 3_600_000)
    assert await scheduler.fire_due(24 * 3600) == 0
    resumed = await scheduler.resume_schedule("s")
    assert resumed.next_run is not None
    assert resumed.next_run > datetime.now(UTC)
    assert await scheduler.resume_schedule("s") == resumed
    assert await scheduler.fire_due(3600) == 1


async def test_after_a_downtime_one_task_stands_for_all_slots(scheduler: TaskScheduler, queue: TaskQueue, core: Core):
    await add(scheduler)
    first = rewind(core, 10.5)
    assert await scheduler.fire_due() == 1
    found = await scheduler.get_schedule("s")
    assert (found.runs, found.misfired) == (1, 9)
    assert slots(await waiting(queue)) == [first + timedelta(hours=9)]


async def test_after_a_downtime_slots_may_be_skipped(scheduler: TaskScheduler, core: Core):
    await add(scheduler, misfire="skip")
    first = rewind(core, 10.5)
    assert await scheduler.fire_due() == 0
    found = await scheduler.get_schedule("s")
    assert (found.runs, found.misfired, found.next_run) == (0, 10, first + timedelta(hours=10))


@pytest.mark.parametrize(("limit", "made"), [(100, 10), (4, 4)])
async def test_after_a_downtime_all_slots_may_be_fired_up_to_a_limit(
    scheduler: TaskScheduler, queue: TaskQueue, core: Core, limit: int, made: int
):
    await add(scheduler, misfire="all", misfire_limit=limit)
    first = rewind(core, 10.5)
    assert await scheduler.fire_due() == made
    found = await scheduler.get_schedule("s")
    assert (found.runs, found.misfired) == (made, 10 - made)
    last = first + timedelta(hours=9)
    assert slots(await waiting(queue)) == [last - timedelta(hours=back) for back in reversed(range(made))]


async def test_a_schedule_ends_after_its_runs(scheduler: TaskScheduler):
    await add(scheduler, max_runs=3)
    assert await scheduler.fire_due(100 * 3600) == 3
    found = await scheduler.get_schedule("s")
    assert (found.state, found.runs, found.next_run) == (ScheduleState.ENDED, 3, None)
    assert await scheduler.next_runs("s") == []
    for change in (scheduler.pause_schedule, scheduler.resume_schedule, scheduler.update_schedule):
        with pytest.raises(InvalidInput, match="has ended"):
            await change("s")


async def test_a_schedule_ends_with_its_last_slot(scheduler: TaskScheduler):
    await add(scheduler, end=datetime.now(UTC) + timedelta(hours=2.5))
    assert await scheduler.fire_due(100 * 3600) == 2
    assert (await scheduler.get_schedule("s")).state is ScheduleState.ENDED


async def test_a_single_moment_fires_once(scheduler: TaskScheduler, queue: TaskQueue):
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    await add(scheduler, at=at)
    assert await scheduler.fire_due(100 * 3600) == 1
    assert slots(await waiting(queue)) == [at]
    assert (await scheduler.get_schedule("s")).state is ScheduleState.ENDED


async def test_an_ended_schedule_makes_room_for_a_new_one_and_is_forgotten_in_the_end(
    scheduler: TaskScheduler, core: Core
):
    await add(scheduler, max_runs=1)
    await scheduler.fire_due(3600)
    await add(scheduler, every=60, max_runs=1)
    assert (await scheduler.get_schedule("s")).runs == 0
    await scheduler.fire_due(60)
    core.execute("ZADD", ":schedules-ended", 1, "s")
    await scheduler.fire_due()
    assert await scheduler.list_schedules() == []
    assert not [name for name in core.dump() if name.startswith("schedule")]


async def test_jitter_delays_a_firing_but_not_its_slot(scheduler: TaskScheduler, queue: TaskQueue):
    await add(scheduler, cron_expr="0 * * * *", jitter=timedelta(minutes=10))
    [planned] = await scheduler.next_runs("s", 1)
    delay = ((await scheduler.get_schedule("s")).next_run or planned) - planned
    assert timedelta(0) <= delay <= timedelta(minutes=10)
    await scheduler.fire_due(2 * 3600)
    assert slots(await waiting(queue))[0] == planned


async def test_a_slot_is_skipped_while_the_task_before_lives(scheduler: TaskScheduler, queue: TaskQueue):
    await add(scheduler, overlap="skip")
    assert await scheduler.fire_due(3.5 * 3600) == 1
    assert ((await scheduler.get_schedule("s")).runs, (await scheduler.get_schedule("s")).skipped) == (1, 2)
    store = queue.store()
    taken = await store.claim("w", 1)
    assert await scheduler.fire_due(4.5 * 3600) == 0, "it runs"
    assert all(await store.settle("w", [outcome(each, "released") for each in taken.deliveries]))
    await store.close()
    await Worker(queue, scheduler=False).run_until_idle()
    assert await scheduler.fire_due(5.5 * 3600) == 1


async def test_a_run_by_hand_that_ended_lets_no_slot_start_beside_a_task_that_lives(
    scheduler: TaskScheduler, queue: TaskQueue
):
    await add(scheduler, overlap="skip")
    await scheduler.fire_due(1.5 * 3600)
    by_hand = queue.handle("anna", await scheduler.run_now("s"))
    await by_hand.cancel()
    assert await scheduler.fire_due(2.5 * 3600) == 0
    [first] = await waiting(queue)
    await queue.handle("anna", first).cancel()
    await scheduler.run_now("s")
    assert await scheduler.fire_due(3.5 * 3600) == 0
    await Worker(queue, scheduler=False).run_until_idle()
    assert await scheduler.fire_due(4.5 * 3600) == 1
    assert (await scheduler.get_schedule("s")).skipped == 2


async def test_tasks_from_before_the_rule_was_changed_count(scheduler: TaskScheduler, queue: TaskQueue):
    await add(scheduler)
    assert await scheduler.fire_due(2.5 * 3600) == 2
    await scheduler.update_schedule("s", overlap="skip")
    _, last = await waiting(queue)
    await queue.handle("anna", last).cancel()
    assert await scheduler.fire_due(3.5 * 3600) == 0
    await scheduler.update_schedule("s", overlap="cancel_running")
    await scheduler.run_now("s")
    await scheduler.update_schedule("s", overlap="skip")
    assert len(await waiting(queue)) == 1, "a run by hand cancels as a slot does"


async def test_a_failed_task_that_is_requeued_holds_slots_back_again(scheduler: TaskScheduler, queue: TaskQueue):
    @task(name="fail")
    async def fail() -> None:
        raise Fail("no")

    try:
        await add(scheduler, overlap="skip", task=fail())
        await scheduler.fire_due(1.5 * 3600)
        await Worker(queue, scheduler=False).run_until_idle()
        [letter] = await queue.dead_letters("anna")
        assert await scheduler.fire_due(2.5 * 3600) == 1, "one that failed has ended"
        await Worker(queue, scheduler=False).run_until_idle()
        await queue.requeue(letter)
        assert await scheduler.fire_due(3.5 * 3600) == 0
    finally:
        unregister("fail")


async def test_a_task_is_not_forgotten_for_many_that_ended(scheduler: TaskScheduler, queue: TaskQueue, core: Core):
    await add(scheduler, overlap="skip")
    await scheduler.fire_due(1.5 * 3600)
    for _ in range(120):
        await queue.handle("anna", await scheduler.run_now("s")).cancel()
    assert await scheduler.fire_due(2.5 * 3600) == 0
    for _ in range(60):
        await scheduler.run_now("s")
    assert len(core.execute("HGET", ":schedule:s", "unended").split()) <= 100, "no more, however many live"
    await scheduler.update_schedule("s", overlap="cancel_running")
    assert await scheduler.fire_due(3.5 * 3600) == 1
    assert len(await waiting(queue)) == 12, "the oldest are not known any more"


async def test_a_slot_that_has_no_room_cancels_nothing(scheduler: TaskScheduler, queue: TaskQueue, server: Server):
    def is_told() -> bool:
        return bool(server.execute("HEXISTS", f"{queue.keys.prefix}task:anna:{first}", "canceling"))

    await add(scheduler, overlap="cancel_running")
    await scheduler.fire_due(1.5 * 3600)
    [first] = await waiting(queue)
    store = queue.store()
    assert [each.id for each in (await store.claim("w", 1)).deliveries] == [first]
    await store.close()
    await queue.set_policy("anna", max_queued=1)
    other = await queue.enqueue(make(), user_id="anna")
    assert await scheduler.fire_due(2.5 * 3600) == 0
    assert not is_told()
    await other.cancel()
    assert await scheduler.fire_due(3.5 * 3600) == 1
    assert is_told()
    [second] = await queue.tasks("anna", state=TaskState.QUEUED)
    assert await scheduler.fire_due(4.5 * 3600) == 1, "the one that is canceled makes room"
    assert await is_canceled(queue, second.task_id)


async def test_many_schedules_that_cancel_their_tasks_do_so_in_several_calls(
    scheduler: TaskScheduler, queue: TaskQueue, core: Core, server: Server
):
    await scheduler.add_schedules([hourly(str(number), overlap="cancel_running") for number in range(25)])
    for _ in range(2):
        for number in range(25):
            plan(core, str(number), core.now_us() // 1000)
        before = scripts_run(server)
        await scheduler._loop._tick()
    assert scripts_run(server) - before == 4, "a look, and ten at a time"
    assert (await queue.stats()).queued == 25


async def test_those_whose_tasks_call_back_do_so_in_more_calls(
    scheduler: TaskScheduler, queue: TaskQueue, core: Core, server: Server
):
    made = make().options(on_end=[make()] * 4)
    for number in range(6):
        await add(scheduler, schedule_id=str(number), task=made, overlap="cancel_running")
    for _ in range(2):
        for number in range(6):
            plan(core, str(number), core.now_us() // 1000)
        before = scripts_run(server)
        await scheduler._loop._tick()
    assert scripts_run(server) - before == 4, "a look, and two at a time"
    assert (await queue.stats()).queued == 6 + 6 * 4


async def test_a_slot_that_has_no_bytes_cancels_nothing(scheduler: TaskScheduler, queue: TaskQueue):
    await queue.set_policy("anna", max_bytes=3000)
    await add(scheduler, overlap="cancel_running", task=Task.create(payload={"text": "x" * 1000}))
    await scheduler.fire_due(1.5 * 3600)
    [first] = await waiting(queue)
    assert await scheduler.fire_due(2.5 * 3600) == 0
    assert await waiting(queue) == [first]


async def test_the_task_before_is_canceled_while_it_waits(scheduler: TaskScheduler, queue: TaskQueue):
    await add(scheduler, overlap="cancel_running")
    await scheduler.fire_due(1.5 * 3600)
    [first] = await waiting(queue)
    await scheduler.fire_due(2.5 * 3600)
    assert (await queue.handle("anna", first).state()) is TaskState.CANCELED
    [second] = await waiting(queue)
    assert second != first
    assert (await queue.stats()).queued == 1


async def test_the_task_before_is_canceled_while_it_runs(scheduler: TaskScheduler, queue: TaskQueue):
    hung = asyncio.Event()

    @task(name="hang")
    async def hang() -> None:
        hung.set()
        await asyncio.Event().wait()

    try:
        await add(scheduler, overlap="cancel_running", task=hang())
        async with Worker(queue, scheduler=False, shutdown_timeout=0):
            await scheduler.fire_due(3600)
            await asyncio.wait_for(hung.wait(), 10)
            first = (await scheduler.get_schedule("s")).last_task_id
            assert first is not None
            await scheduler.fire_due(2 * 3600)
            await eventually(lambda: is_canceled(queue, first))
    finally:
        unregister("hang")


async def is_canceled(queue: TaskQueue, task_id: str) -> bool:
    return await queue.handle("anna", task_id).state() is TaskState.CANCELED


async def test_a_run_by_hand_moves_nothing(scheduler: TaskScheduler, queue: TaskQueue):
    await add(scheduler, overlap="skip")
    before = await scheduler.get_schedule("s")
    ids = [await scheduler.run_now("s"), await scheduler.run_now("s")]
    assert await waiting(queue) == ids
    found = await scheduler.get_schedule("s")
    assert (found.next_run, found.runs, found.last_task_id) == (before.next_run, 0, ids[1])
    await scheduler.pause_schedule("s")
    assert await scheduler.run_now("s") in await waiting(queue)


async def test_a_full_backlog_takes_no_firing(
    scheduler: TaskScheduler, queue: TaskQueue, caplog: pytest.LogCaptureFixture
):
    await queue.set_policy("anna", max_queued=1)
    await add(scheduler)
    with caplog.at_level(logging.WARNING):
        assert await scheduler.fire_due(2.5 * 3600) == 1
    assert "the backlog of its user is full" in caplog.text
    assert {(vars(record)["user_id"], vars(record)["schedule_id"]) for record in caplog.records} == {("anna", "s")}
    assert (await scheduler.get_schedule("s")).skipped == 1
    with pytest.raises(QueueFull):
        await queue.enqueue(make(), user_id="anna")
    with pytest.raises(InvalidInput, match="full"):
        await scheduler.run_now("s")
    await queue.set_policy("anna", overflow="drop_oldest")
    assert await scheduler.fire_due(3.5 * 3600) == 1
    [left] = await waiting(queue)
    assert left == (await scheduler.get_schedule("s")).last_task_id


async def test_a_purge_removes_the_schedules_of_the_user(scheduler: TaskScheduler, queue: TaskQueue, core: Core):
    for name in "ab":
        await add(scheduler, schedule_id=name)
    await add(scheduler, schedule_id="c", max_runs=1)
    await scheduler.fire_due(3600)
    await add(scheduler, schedule_id="of zoe", user_id="zoe")
    purged = await queue.purge("anna")
    assert (purged.schedules, purged.complete) == (3, True)
    assert [schedule.schedule_id for schedule in await scheduler.list_schedules()] == ["of zoe"]
    assert await scheduler.fire_due(3600) == 1
    assert not [name for name in core.dump() if "anna" in name]


async def test_one_that_cannot_be_read_is_paused_and_keeps_nobody_waiting(
    scheduler: TaskScheduler, core: Core, caplog: pytest.LogCaptureFixture
):
    await add(scheduler, schedule_id="broken")
    await add(scheduler)
    core.execute("HSET", ":schedule:broken", "body", b"\x07junk")
    rewind(core, 2, "broken")
    rewind(core, 2)
    with caplog.at_level(logging.ERROR):
        assert await scheduler.fire_due() == 1
    assert "'broken' is paused" in caplog.text
    assert (await scheduler.get_schedule("broken")).state is ScheduleState.PAUSED


async def test_arguments_are_in_no_repr(scheduler: TaskScheduler, queue: TaskQueue):
    await add(scheduler, task=Task.create(payload={"secret": "hunter2"}))
    store = ScheduleStore(queue.reader)
    known = await store.get("s")
    ripe = await store.ripe(1, 3_600_000)
    assert ripe.due
    assert known is not None
    shown = [repr(known), repr(ripe), str(await scheduler.get_schedule("s"))]
    assert not any("hunter2" in text for text in shown)


async def test_a_function_that_needs_arguments_cannot_be_declared():
    with pytest.raises(BadArguments):

        @task(name="needy", cron="@daily", user_id="system")
        async def needy(number: int) -> None: ...

    unregister("needy")
    with pytest.raises(InvalidInput, match="user"):

        @task(name="nobodys", cron="@daily")
        async def nobodys() -> None: ...

    with pytest.raises(InvalidInput, match="hours"):

        @task(name="wrong", cron="0 99 * * *", user_id="system")
        async def wrong() -> None: ...


async def test_a_schedule_of_a_user_with_a_broken_key_fires_when_that_is_mended_and_keeps_no_other(
    scheduler: TaskScheduler, core: Core, caplog: pytest.LogCaptureFixture
):
    for name, user_id in (("a", "quiet"), ("hurt", "hurt"), ("z", "quiet")):
        await add(scheduler, user_id=user_id, schedule_id=name)
        rewind(core, 2, name)
    core.execute("RPUSH", ":normal:hurt", "x")
    with caplog.at_level(logging.ERROR):
        assert await scheduler.fire_due() == 2
    assert "'hurt' does not fire, trying again: WRONGTYPE" in caplog.text
    assert core.execute("KEYS", ":body:hurt:*") == []
    assert await scheduler.fire_due() == 0, "it is not tried again at once"
    core.execute("DEL", ":normal:hurt")
    plan(core, "hurt", 1)
    assert await scheduler.fire_due() == 1
    assert core.execute("ZCARD", ":normal:hurt") == 1


@pytest.mark.parametrize("ahead", [0, 60])
async def test_a_list_of_schedules_that_is_broken_keeps_no_other_user_waiting_and_fires_when_it_is_mended(
    scheduler: TaskScheduler, queue: TaskQueue, core: Core, ahead: float
):
    for name, user_id in (("hurt", "hurt"), ("a", "quiet")):  # the one that is hurt comes first
        await add(scheduler, user_id=user_id, schedule_id=name)
        rewind(core, 2, name)
    kept = core.execute("DUMP", ":schedules:hurt")
    core.execute("DEL", ":schedules:hurt")
    core.execute("SET", ":schedules:hurt", "x")
    assert await scheduler.fire_due(ahead) == 1
    assert f"{core.keys.prefix}schedules:hurt" in core.execute("HGET", ":damage", "hurt").decode()
    core.execute("DEL", ":schedules:hurt")
    core.execute("RESTORE", ":schedules:hurt", 0, kept)
    core.execute("ZADD", ":damaged", 1, "hurt")
    await Worker(queue, scheduler=False).run_until_idle()
    assert await scheduler.fire_due() == 1


@pytest.mark.parametrize("damage", ["gone", "another type", "no user", "no number"])
async def test_a_damaged_schedule_is_set_aside_and_named_and_the_others_fire(
    scheduler: TaskScheduler, core: Core, caplog: pytest.LogCaptureFixture, damage: str
):
    for name in ("a", "broken", "z"):
        await add(scheduler, schedule_id=name)
        rewind(core, 2, name)
    harm(core, damage)
    with caplog.at_level(logging.ERROR):
        assert await scheduler.fire_due() == 2
    assert "'broken' fires no more" in caplog.text
    assert [each.schedule_id for each in await scheduler.list_schedules() if each.schedule_id != "broken"] == ["a", "z"]
    assert core.execute("ZRANGE", ":schedules-broken", 0, -1) == [b"broken"]
    await scheduler.remove_schedule("broken")
    await add(scheduler, schedule_id="broken")
    assert (await scheduler.get_schedule("broken")).active
    assert core.execute("EXISTS", ":schedules-broken") == 0


async def test_a_purge_forgets_a_schedule_whose_hash_is_gone(scheduler: TaskScheduler, queue: TaskQueue, core: Core):
    await add(scheduler, schedule_id="broken")
    harm(core, "gone")
    assert (await queue.purge("anna")).complete
    assert not core.execute("EXISTS", ":schedule-index")


@pytest.mark.damages
@pytest.mark.parametrize("damage", ["gone", "another type", "no user", "no number"])
async def test_a_long_list_goes_on_behind_a_damaged_schedule(
    scheduler: TaskScheduler, core: Core, monkeypatch: pytest.MonkeyPatch, damage: str
):
    monkeypatch.setattr("fairque.scheduler.scheduler.PAGE", 2)
    for name in ("a", "b", "broken", "c", "d"):
        await add(scheduler, schedule_id=name)
    harm(core, damage)
    listed = [schedule.schedule_id for schedule in await scheduler.list_schedules()]
    assert listed == ["a", "b", "c", "d"]


# The headers of what is made


async def test_the_headers_of_each_task_may_be_decided_when_it_is_made(server: Server, queue_name: str):
    made: list[FiredTask] = []

    def decide(each: FiredTask) -> dict[str, str]:
        made.append(each)
        return {**each.headers, "run": str(len(made))}

    async with TaskQueue(server.url, name=queue_name, firing_headers=decide) as queue:
        scheduler = TaskScheduler(queue)
        await add(scheduler, schedule_id="s", task=make(1).options(headers={"kept": "yes"}))
        await scheduler.fire_due(7200)
        by_hand = await scheduler.run_now("s")
        found = {each.task_id: (await queue.handle("anna", each.task_id).info()).headers for each in made}
        await queue.purge("anna")
    assert list(found.values()) == [{"kept": "yes", "run": str(n + 1)} for n in range(len(made))]
    assert len(made) >= 2
    first, last = made[0], made[-1]
    assert (first.queue_name, first.user_id, first.name, last.task_id) == (queue_name, "anna", "report", by_hand)
    assert (first.firing.schedule_id, first.headers) == ("s", {"kept": "yes"})


def test_what_cannot_decide_is_refused_at_once():
    with pytest.raises(WrongType, match="firing_headers must be a function"):
        TaskQueue("redis://localhost:1", firing_headers={"a": "b"})  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", [None, Encrypt({"k": bytes(32)})], ids=["plain", "sealed"])
async def test_callbacks_of_what_is_made_get_the_same_change(server: Server, queue_name: str, codec: Codec | None):
    heard: list[tuple[str, dict[str, str]]] = []

    @task(name="note")
    async def note(who: str) -> None:
        heard.append((who, dict(current_task().headers)))

    def decide(each: FiredTask) -> dict[str, str]:
        return {"kept": each.headers["kept"], "run": each.task_id}

    async with TaskQueue(server.url, name=queue_name, codec=codec, firing_headers=decide) as queue:
        last = note("last").options(headers={"gone": "yes", "own": "1"})
        first = note("first").options(headers={"gone": "yes"}, on_end=last)
        full = note("full").options(headers={"full": "x" * 4090})
        made = note("task").options(headers={"kept": "yes", "gone": "yes"}, on_success=[first, full])
        scheduler = TaskScheduler(queue)
        await add(scheduler, schedule_id="s", task=made)
        async with Worker(queue, scheduler=False):
            task_id = await scheduler.run_now("s")
            await eventually(lambda: len(heard) == 4)
        await queue.purge("anna")
    unregister("note")
    assert dict(heard) == {
        "task": {"kept": "yes", "run": task_id},
        "first": {"run": task_id},
        "last": {"own": "1", "run": task_id},
        "full": {"full": "x" * 4090},
    }


@pytest.mark.parametrize("wrong", [{"n": 7}, {"n": "x" * 5000}, None, LookupError("no")], ids=range(4))
async def test_a_decision_that_cannot_be_had_leaves_the_headers_as_they_were(
    server: Server, queue_name: str, wrong: Any, caplog: pytest.LogCaptureFixture
):
    """Also of whatever is due beside it."""

    def decide(each: FiredTask) -> Any:
        if each.user_id != "anna":
            return each.headers
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    async with TaskQueue(server.url, name=queue_name, firing_headers=decide) as queue:
        scheduler = TaskScheduler(queue)
        for user in ("anna", "bob"):
            await add(scheduler, schedule_id=user, user_id=user, task=make(1).options(headers={"of": user}))
        assert await scheduler.fire_due(3600) == 2
        for user in ("anna", "bob"):
            [task_id] = await waiting(queue, user)
            assert (await queue.handle(user, task_id).info()).headers == {"of": user}
            await queue.purge(user)
    assert [each.__dict__.get("schedule_id") for each in caplog.records] == ["anna"]


def harm(core: Core, damage: str) -> None:
    key = ":schedule:broken"
    if damage in ("gone", "another type"):
        core.execute("DEL", key)
    if damage == "another type":
        core.execute("RPUSH", key, "junk")
    if damage == "no user":
        core.execute("HDEL", key, "user")
    if damage == "no number":
        core.execute("HSET", key, "anchor", "junk")
