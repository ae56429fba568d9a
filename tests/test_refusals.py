"""Why a worker has a delivery no longer: "another worker has it" is said only where another worker has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from fairque import TaskQueue, Worker
from fairque.redis.delivery import Delivery, Refusal
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import renew
from tests.support.core import Core, outcome
from tests.support.eventually import eventually
from tests.support.gate import new_gate, work

if TYPE_CHECKING:
    from tests.support.servers import Server

SHORT = 20  # ms

pytestmark = pytest.mark.leaves_keys()

Change = Callable[[Core, Delivery], Awaitable[object]]


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core


async def taken_by(core: Core, worker: str, lease_ms: int = SHORT) -> Delivery:
    await asyncio.sleep(2 * lease_ms / 1000)
    [taken] = await core.take(1, worker=worker, lease_ms=lease_ms)
    return taken


async def another_takes_it(core: Core, _: Delivery) -> None:
    await taken_by(core, "other")


async def it_is_handed_out_anew(core: Core, _: Delivery) -> None:
    await taken_by(core, "other")
    await taken_by(core, "w")


async def another_puts_it_back(core: Core, _: Delivery) -> None:
    await core.settle([await taken_by(core, "other")], "released", worker="other")


async def another_ends_it(core: Core, _: Delivery) -> None:
    await core.settle([await taken_by(core, "other")], worker="other")


async def another_cancels_it(core: Core, of: Delivery) -> None:
    taken = await taken_by(core, "other")
    await core.store.cancel(of.user_id, of.id, "why")
    await core.settle([taken], "canceled", worker="other")


async def its_result_is_purged(core: Core, of: Delivery) -> None:
    await another_ends_it(core, of)
    await core.store.erase_results(of.user_id)


async def its_id_is_used_again(core: Core, of: Delivery) -> None:
    await another_ends_it(core, of)
    await core.enqueue(of.user_id, of.id)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (another_takes_it, Refusal.ELSEWHERE),
        (it_is_handed_out_anew, Refusal.ANEW),
        (another_puts_it_back, Refusal.WAITS),
        (its_id_is_used_again, Refusal.WAITS),
        (another_ends_it, Refusal.ENDED),
        (another_cancels_it, Refusal.ENDED),
        (its_result_is_purged, Refusal.GONE),
    ],
)
async def test_a_worker_is_told_why_it_has_a_delivery_no_longer(core: Core, change: Change, why: Refusal) -> None:
    await core.enqueue("anna", "t")
    [delivery] = await core.take(1, worker="w", lease_ms=SHORT)
    await change(core, delivery)
    requester = BlockingRequester(core.backend.connector)
    lost, *_ = renew(requester, core.keys, "w", {"pid": 1}, [delivery])
    requester.close()
    assert [told for _, told in lost] == [why]
    assert await core.store.receive("w", delivery) is why
    assert await core.store.settle("w", [outcome(delivery, "finished")]) == [why]


@pytest.mark.damages
async def test_of_a_task_that_was_lost_while_it_ran_nobody_says_that_another_worker_has_it(
    server: Server, queue_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    gate = new_gate()
    async with TaskQueue(server.url, name=queue_name) as queue, Worker(queue):
        handle = await queue.enqueue(work(1), user_id="acme")
        await eventually(lambda: gate.started)
        server.execute("DEL", *(f"{queue.keys.prefix}{kind}:acme:{handle.task_id}" for kind in ("task", "body")))
        gate.open()
        await eventually(lambda: "has its outcome refused: it is gone" in caplog.text)
        assert "another worker" not in caplog.text
