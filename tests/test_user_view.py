"""A user at one glance, from what is its own: others, whatever they do, show nowhere in it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from fairque import EVERYBODY, InvalidInput, Reason, TaskQueue, UserStatus, UserView, Waits, task
from fairque.embedded.server import EmbeddedServer
from tests.support.commands import commands_of
from tests.support.core import outcome

pytestmark = pytest.mark.leaves_keys()


async def _nothing() -> None: ...


idle = task(name="user-view.idle")(_nothing)


@pytest.fixture
async def own_queue(own_server: Callable[..., EmbeddedServer], queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(own_server().url, name=queue_name) as queue:
        yield queue


async def serve(queue: TaskQueue, user_id: str, tasks: int, ended: int, kind: str = "finished") -> None:
    await queue.enqueue_many([idle()] * tasks, user_id=user_id)
    store = queue.store()
    taken = (await store.claim("w", ended + 1, groups=[[user_id]])).deliveries
    for of in taken[:ended]:
        assert await store.settle("w", [msgspec.structs.replace(outcome(of, kind), run_ms=1000.0)]) == [True]
    await store.close()


async def test_a_user_is_told_with_what_runs_and_what_it_used(queue: TaskQueue) -> None:
    await serve(queue, "acme", 5, 2)
    view = await queue.user_view("acme")
    assert (view.user.queued, view.user.started, view.user.finished) == (2, 1, 2)
    assert [each.name for each in view.running] == ["user-view.idle"]
    [hour] = view.usage
    assert (hour.tasks, hour.busy_seconds) == (2, 2.0)
    assert view.dead.total == 0
    assert sum(bucket.tasks for bucket in view.user.metrics.waits.buckets) == 2
    assert not view.status.holds


async def test_one_never_heard_of_has_zeros(queue: TaskQueue) -> None:
    await queue.change_settings(lease=10)
    view = await queue.user_view("nobody")
    assert (view.user.queued, view.running, view.usage, view.dead.total) == (0, (), (), 0)


def own(view: UserView) -> dict[str, Any]:
    """Without what goes on by time alone, and the tag."""
    user = msgspec.structs.asdict(view.user)
    for name in ("metrics", "at", "wait_seconds", "seen_at", "tag"):
        del user[name]
    told = msgspec.structs.asdict(view) | {"user": user}
    return told | {"waits": view.user.metrics.waits, "cost": view.user.metrics.cost}


async def test_nothing_that_others_do_shows_in_it(queue: TaskQueue) -> None:
    await serve(queue, "acme", 5, 2)
    before = own(await queue.user_view("acme"))
    for user_id in ("acme2", "acm", "zoe"):
        await serve(queue, user_id, 50, 20, "failed")
        await queue.set_policy(user_id, weight=5, max_running=1)
    assert own(await queue.user_view("acme")) == before


async def test_what_holds_it_back_is_told_with_its_end(queue: TaskQueue) -> None:
    await serve(queue, "acme", 5, 0)
    until = datetime.now(UTC) + timedelta(hours=1)
    await queue.set_policy("acme", max_running=1)
    await queue.pause(EVERYBODY, until=until)
    paused, limited = (await queue.user_view("acme")).status.holds
    assert (paused.reason, limited.reason) == (Reason.PAUSED, Reason.USER_LIMIT)
    assert paused.until == pytest.approx(until.timestamp())
    assert limited.text == "1 task runs, at most 1 may"


async def test_a_part_of_the_slots_holds_back_where_these_are_known(queue: TaskQueue) -> None:
    await serve(queue, "acme", 5, 0)
    await queue.set_policy("acme", max_share=0.1)
    user = await queue.user("acme")
    assert UserStatus.of(user, None, user.at, slots=10).flags == ("limit",)
    assert UserStatus.of(user, None, user.at, slots=100).flags == ()


async def test_it_costs_the_same_however_much_the_user_has(own_queue: TaskQueue) -> None:
    await serve(own_queue, "acme", 60, 50, "failed")
    few = await commands_of(own_queue, lambda: own_queue.user_view("acme"))
    await own_queue.enqueue_many([idle()] * 5000, user_id="acme")
    assert await commands_of(own_queue, lambda: own_queue.user_view("acme")) == few


@pytest.mark.parametrize("wrong", [{"user_id": ""}, {"user_id": "*"}, {"hours": 0}, {"limit": 1001}])
async def test_what_breaks_a_rule_is_refused(queue: TaskQueue, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        await queue.user_view(**({"user_id": "acme"} | wrong))


def test_a_histogram_tells_its_buckets_and_what_came_since() -> None:
    before, now = Waits((0, 2, *[0] * 20)), Waits((0, 3, 0, 1, *[0] * 17, 1))
    assert not Waits().buckets
    assert now.buckets[0] == (0.001, 0.002, 3)
    assert now.buckets[-1].high == math.inf
    assert now.since(before).counts == (0, 1, 0, 1, *[0] * 17, 1)
    assert before.since(now) == before, "it was forgotten, and began anew"
