"""Tests of the shop. Run them with: pytest examples/testing"""

import pytest
import shop

from fairque import TaskQueue
from fairque.testing import advance, assert_enqueued, run_all

pytestmark = pytest.mark.anyio  # or pytest.mark.asyncio, with pytest-asyncio


async def test_an_order_is_shipped_by_road(fairque_queue: TaskQueue):
    await shop.sell(fairque_queue, "acme", 42)
    await assert_enqueued(fairque_queue, shop.ship(42), user_id="acme", count=1)
    await assert_enqueued(fairque_queue, shop.ship, kwargs={"express": True}, count=0)


async def test_a_reminder_comes_after_two_weeks(fairque_queue: TaskQueue):
    await shop.sell(fairque_queue, "acme", 42)
    assert [ran.name for ran in await run_all(fairque_queue)] == ["shop.ship"]

    await advance(fairque_queue, 14 * 86_400)
    assert [ran.name for ran in await run_all(fairque_queue)] == ["shop.remind"]


@pytest.mark.usefixtures("fairque_worker")
async def test_a_worker_ships_it(fairque_queue: TaskQueue):
    handle = await fairque_queue.enqueue(shop.ship(7, express=True), user_id="zoe")
    assert await handle.result(timeout=10) == "order 7 goes by air"
