"""Limit keys as one meets them: declared with a task, filled from its arguments, changed while the queue runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from enum import Enum
from typing import Any
from uuid import UUID

import pytest

from fairque import (
    InvalidInput,
    Limit,
    LimitInfo,
    Rate,
    Reason,
    Task,
    TaskFunction,
    TaskQueue,
    TaskScheduler,
    Worker,
    sync,
    task,
)
from fairque.tasks.registry import unregister
from tests.support.eventually import eventually
from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys("limit*")
Declare = Callable[..., TaskFunction[..., Any]]


class Plan(Enum):
    GOLD = "gold"


@pytest.fixture
def declare() -> Iterator[Declare]:
    """A task of this test only: its worker declares what it says."""
    names: list[str] = []

    def make(fn: Callable[..., Any], name: str = "enrich", **options: Any) -> TaskFunction[..., Any]:
        made: TaskFunction[..., Any] = task(name=name, **options)(fn)
        names.append(name)
        return made

    yield make
    for name in names:
        unregister(name)


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name) as queue:
        yield queue


class Meter:
    """Counts how many of its calls run at once."""

    def __init__(self) -> None:
        self.now = self.most = self.calls = 0

    async def run(self) -> None:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1


# What a task says of itself


async def test_no_more_tasks_of_a_key_run_than_its_limit_allows(queue: TaskQueue, declare: Declare) -> None:
    meters: dict[str, Meter] = {"all": Meter(), "x": Meter(), "y": Meter()}

    async def enrich(customer: str) -> None:
        await asyncio.gather(meters["all"].run(), meters[customer].run())

    enrich_task = declare(enrich, limits=[Limit("openai", max_running=5), Limit("crm:{customer}", max_running=2)])
    await queue.enqueue_many([enrich_task(customer) for customer in ("x", "y") * 15], user_id="acme")
    await Worker(queue, concurrency=20).run_until_idle()
    assert {name: meter.most for name, meter in meters.items()} == {"all": 4, "x": 2, "y": 2}
    assert meters["all"].calls == 30


async def test_a_limit_holds_for_the_tasks_of_several_functions(queue: TaskQueue, declare: Declare) -> None:
    meter = Meter()
    one = declare(meter.run, "one", limits=[Limit("openai", max_running=3)])
    two = declare(meter.run, "two", limits=["openai"])
    await queue.enqueue_many([made for _ in range(10) for made in (one(), two())], user_id="acme")
    await Worker(queue, concurrency=20).run_until_idle()
    assert (meter.calls, meter.most) == (20, 3)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("acme inc", "crm:acme inc"),
        ("a:b%{c}", "crm:a%3Ab%25{c}"),
        (42, "crm:42"),
        (True, "crm:True"),
        (Plan.GOLD, "crm:gold"),
        (UUID(int=7), f"crm:{UUID(int=7)}"),
        ("", "crm:"),
    ],
)
async def test_braces_are_filled_from_the_arguments(queue: TaskQueue, declare: Declare, value: Any, key: str) -> None:
    async def enrich(customer: Any, of: Any = Plan.GOLD) -> None: ...

    made = declare(enrich, limits=["crm:{customer}", "plan:{of}"])
    for call in (made(value), made(customer=value)):
        handle = await queue.enqueue(call, user_id="acme")
        info = await handle.info()
        assert info.limits == (key, "plan:gold")
        await handle.cancel()


async def test_defaults_and_named_arguments_fill_braces(declare: Declare) -> None:
    async def enrich(*parts: str, region: str = "eu", **more: str) -> None: ...

    made = declare(enrich, limits=["{region}:{tier}"])
    assert made("a", "b", tier="gold").message().limits[0].text == "eu:gold"
    payload = Task.create(payload={"customer": "x"}, limits=["crm:{customer}"])
    assert payload.message().limits[0].text == "crm:x"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is None"),
        (["x"], "must be a text or a number, not a list"),
        ({"a": 1}, "not a dict"),
        (b"x", "not a bytes"),
        ("x" * 200, "has 204 bytes, the limit is 200"),
    ],
)
async def test_what_cannot_fill_a_key_is_refused_before_anything_is_written(
    server: Server, queue: TaskQueue, queue_name: str, declare: Declare, value: Any, problem: str
) -> None:
    async def enrich(customer: Any) -> None: ...

    made = declare(enrich, limits=["crm:{customer}"])
    before = server.keys(queue_name)
    with pytest.raises(InvalidInput, match=problem):
        await queue.enqueue_many([made("fine"), made(value)], user_id="acme")
    assert server.keys(queue_name) == before


async def test_a_key_cannot_be_filled_from_what_is_not_given_or_not_known_yet(
    queue: TaskQueue, declare: Declare
) -> None:
    async def load() -> str:
        return "x"

    async def enrich(customer: str) -> None: ...

    source, made = declare(load, "load"), declare(enrich, limits=["crm:{customer}"])
    with pytest.raises(InvalidInput, match="'customer' is the output of another task"):
        await queue.enqueue(source() >> made(source().output), user_id="acme")
    with pytest.raises(InvalidInput, match="'customer' is missing"):
        await queue.enqueue(Task.create(payload={}, limits=["crm:{customer}"]), user_id="acme")


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (["a", "b", "c"], "at most 2 limits beside that of its name, not 3"),
        (["a", Limit("a", 5)], "has the key 'a' twice"),
        (["{unknown}"], "'enrich' has no parameter 'unknown'"),
        (["{customer.id}"], "braces of a limit key name a parameter"),
        (["{customer"], "braces of a limit key name a parameter"),
        ([""], "a limit key must not be empty"),
        (["x" * 201], "has 201 bytes, the limit is 200"),
        ("openai", "limits must be a list of keys"),
        ([5], "an entry of limits is a key or a Limit, not 5"),
    ],
)
async def test_limits_that_cannot_be_are_refused_where_they_are_declared(
    declare: Declare, limits: Any, problem: str
) -> None:
    async def enrich(customer: str) -> None: ...

    with pytest.raises(InvalidInput, match=problem):
        declare(enrich, limits=limits)


@pytest.mark.parametrize("values", [{"max_running": 0}, {"rate": "often"}, {"shared": 5}, {"key": 5}])
def test_a_limit_says_what_is_wrong_with_it(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"max_running must|a rate is|shared must|a limit key must"):
        Limit(**{"key": "a", **values})


async def test_functions_have_to_agree_on_what_a_key_allows(declare: Declare) -> None:
    async def enrich() -> None: ...

    declare(enrich, "one", limits=[Limit("openai", max_running=5)])
    declare(enrich, "two", limits=[Limit("openai", max_running=5)])
    with pytest.raises(InvalidInput, match="'three' and 'one' do not agree on what the limit 'openai' allows"):
        declare(enrich, "three", limits=[Limit("openai", max_running=6)])


async def test_a_call_may_have_other_keys_than_its_function(declare: Declare) -> None:
    async def enrich(customer: str) -> None: ...

    made = declare(enrich, limits=[Limit("openai", max_running=5)])
    assert made("x").options(limits=[]).message().limits == ()
    other = made.options(limits=["crm:{customer}", Limit("each", shared=False)])("x")
    assert [(key.text, key.each_user) for key in other.message().limits] == [("crm:x", True), ("each", True)]
    with pytest.raises(InvalidInput, match="give its key alone"):
        made.options(limits=[Limit("openai", max_running=6)])


# Every way of putting tasks in


async def test_keys_go_with_pipelines_schedules_retries_and_blocking_code(
    server: Server, queue: TaskQueue, queue_name: str, declare: Declare
) -> None:
    meter, failed = Meter(), set[str]()

    async def enrich(customer: str) -> None:
        await meter.run()
        if customer not in failed:
            failed.add(customer)
            raise ValueError(customer)

    made = declare(enrich, limits=[Limit("crm:{customer}", max_running=1, shared=True)], retry=None, max_retries=3)
    made = made.options(max_retries=3)
    await queue.enqueue(made("x") >> [made("x"), made("x")], user_id="acme")
    scheduler = TaskScheduler(queue)
    schedule = await scheduler.add_schedule(task=made("x"), user_id="zoe", every=3600)
    await scheduler.run_now(schedule)
    await scheduler.remove_schedule(schedule)

    def block() -> tuple[str, ...]:
        with sync.TaskQueue(server.url, name=queue_name) as blocking:
            blocking.set_limit("other", max_running=1)
            blocking.clear_limit("other")
            assert blocking.limits() == []
            return blocking.enqueue(made("x"), user_id="eve").info().limits

    assert await asyncio.to_thread(block) == ("crm:x",)
    async with Worker(queue, concurrency=10, scheduler=False):
        await eventually(lambda: _is_done(queue, meter, 6))
    assert meter.most == 1


async def _is_done(queue: TaskQueue, meter: Meter, calls: int) -> bool:
    stats = await queue.stats()
    return meter.calls == calls and stats.queued + stats.started + stats.scheduled + stats.deferred == 0


async def test_limits_of_a_module_that_is_imported_later_hold_as_well(queue: TaskQueue, declare: Declare) -> None:
    """Also for those that were claimed before it was."""
    meter = Meter()
    late = [declare(meter.run, "late", max_running=1)()] * 8
    unregister("late")

    async def import_it() -> None:
        declare(meter.run, "late", max_running=1)

    opens = declare(import_it, "import it")
    async with Worker(queue, concurrency=10, unknown_task_patience=60):
        await queue.enqueue_many([opens(), *late], user_id="acme")
        await queue.enqueue_many(late, user_id="ben")
        await eventually(lambda: meter.calls == 16)
    assert meter.most == 1
    assert [limit.key for limit in await queue.limits()] == ["late"]


async def test_a_limit_that_is_declared_anew_holds_from_then_on(queue: TaskQueue, declare: Declare) -> None:
    meter = Meter()
    made = declare(meter.run, "late")
    async with Worker(queue, concurrency=10):
        await (await queue.enqueue(made(), user_id="acme")).result(timeout=20)
        unregister("late")
        made = declare(meter.run, "late", max_running=2)
        await queue.enqueue_many([made() for _ in range(10)], user_id="acme")
        await eventually(lambda: meter.calls == 11)
    assert meter.most == 2


# Looking, and changing


async def test_a_limit_is_changed_while_the_queue_runs_and_goes_before_the_code(
    queue: TaskQueue, declare: Declare
) -> None:
    meter = Meter()
    made = declare(meter.run, limits=[Limit("openai", max_running=1)])
    await queue.set_limit("openai", max_running=4, rate="10000/s burst 100")
    await queue.enqueue_many([made() for _ in range(30)], user_id="acme")
    await Worker(queue, concurrency=10).run_until_idle()
    assert meter.most == 4
    assert await queue.limits() == [
        LimitInfo(key="openai", max_running=4, rate=Rate(10_000, burst=100), running=0),
    ]
    await queue.clear_limit("openai")
    assert await queue.limits() == [LimitInfo(key="openai", max_running=1, declared=True, running=0)]
    await queue.clear_limit("openai", declared=True)
    assert await queue.limits() == []


async def test_who_waits_for_a_limit_is_told_so(queue: TaskQueue, declare: Declare) -> None:
    opened = asyncio.Event()

    async def enrich(customer: str) -> str:
        await opened.wait()
        return customer

    made = declare(enrich, limits=[Limit("openai", max_running=5), Limit("crm:{customer}", max_running=1)])
    async with Worker(queue):
        await queue.enqueue(made("x"), user_id="acme")
        handle = await queue.enqueue(made("x"), user_id="acme")

        async def is_held() -> bool:
            return (await handle.info()).held_by == "crm:x"

        await eventually(is_held)
        found = await queue.explain("acme", handle.task_id)
        assert [held.reason for held in found.waiting] == [Reason.LIMIT]
        assert "as many 'crm:x' run as may, 1 of 1" in str(found)
        opened.set()
        await handle.result(timeout=10)
        assert (await handle.info()).held_by is None


async def test_limits_are_listed_page_by_page_with_whose_they_are(queue: TaskQueue) -> None:
    await queue.set_limit("crm:{customer}", max_running=1)
    await queue.set_limit("crm:{customer}", max_running=2, user_id="a:b")
    await queue.set_limit("crm:x", max_running=3, user_id="a:b")
    await queue.set_limit("crm", max_running=4, shared=False)
    await queue.set_limit("a=b:c", max_running=5)
    found: list[LimitInfo] = []
    while page := await queue.limits(limit=2, after=found[-1] if found else None):
        found += page
    assert {(each.key, each.user_id, each.shared, each.max_running, each.running) for each in found} == {
        ("crm:{customer}", None, True, 1, None),
        ("crm:{customer}", "a:b", True, 2, None),
        ("crm:x", "a:b", True, 3, 0),
        ("crm", None, False, 4, None),
        ("a=b:c", None, True, 5, 0),
    }
    with pytest.raises(InvalidInput, match="max_running must"):
        await queue.set_limit("a", max_running=0)
    with pytest.raises(InvalidInput, match="user_id must not be empty"):
        await queue.set_limit("a", max_running=1, user_id="")
