"""What a queue knows of its workers: told when they come, and then as far as it has changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest

from fairque import TaskQueue, Worker
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import WORKER_TTL_MS, Signed, renew, sign
from fairque.worker import renewal
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.servers import Server

ENTRY = ":worker:w"
ALL = {"host": "h", "pid": 1, "concurrency": 3, "serves": "*", "memory": 10, "started_at": 5.0}


@pytest.fixture
async def core(server: Server, begun: TaskQueue) -> AsyncIterator[Core]:
    async with Core(server.url, begun.name) as core:
        yield core
        core.execute("DEL", ENTRY, ":workers", ":worker:other")


def tell(queue: TaskQueue, fields: dict[str, Any], worker: str = "w") -> None:
    with closing(BlockingRequester(queue.connector)) as requester:
        renew(requester, queue.keys, worker, fields, [])


def tell_changes(queue: TaskQueue, fields: dict[str, Any], scheduler: str = "") -> Signed:
    with closing(BlockingRequester(queue.connector)) as requester:
        return sign(requester, queue.keys, "w", fields, scheduler=scheduler)


def entry_in(core: Core) -> dict[bytes, bytes]:
    flat = core.execute("HGETALL", ENTRY)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def contents(core: Core) -> dict[str, Any]:
    return {name: key.content for name, key in core.dump().items()}


async def test_a_sign_leaves_what_was_told_before_and_is_one_of_life(core: Core, queue: TaskQueue) -> None:
    tell(queue, ALL)
    core.execute("ZINCRBY", ":workers", -1000, "w")
    core.execute("ZADD", ":assignments", 1, "*")
    core.execute("PEXPIRE", ENTRY, 5000)
    assert tell_changes(queue, {"memory": 20}) == (False, False)
    entry = entry_in(core)
    assert (entry[b"host"], entry[b"memory"], entry[b"concurrency"]) == (b"h", b"20", b"3")
    assert core.execute("PTTL", ENTRY) > 5000
    assert core.execute("ZSCORE", ":workers", "w") == entry[b"seen"]
    assert core.execute("ZSCORE", ":assignments", "*") == entry[b"seen"]
    core.execute("DEL", ":assignments")


async def test_a_sign_tells_whose_scheduler_is_to_look(core: Core, queue: TaskQueue) -> None:
    tell(queue, ALL)
    assert not core.execute("EXISTS", ":schedule-keepers")
    assert tell_changes(queue, {}, scheduler="s") == (True, False)


@pytest.mark.parametrize(
    "damage",
    [
        ("DEL", ENTRY),
        ("ZREM", ":workers", "w"),
        ("HSET", ENTRY, "idle", 0),
        ("ZADD", ":workers", 1, "another, to be dropped"),
    ],
    ids=str,
)
async def test_a_worker_is_to_renew_where_a_sign_does_not_do_and_nothing_is_written(
    damage: tuple[str, ...], core: Core, queue: TaskQueue
) -> None:
    tell(queue, ALL)
    core.execute(*damage)
    before = contents(core)
    assert tell_changes(queue, {"memory": 20}) == (False, True)
    assert contents(core) == before


async def test_slots_count_again_when_a_worker_that_was_dropped_renews(core: Core, queue: TaskQueue) -> None:
    tell(queue, ALL)
    seen = int(core.execute("ZSCORE", ":workers", "w"))
    core.execute("ZADD", ":workers", seen - WORKER_TTL_MS - 1, "w")
    tell(queue, {"concurrency": 4}, "other")
    assert core.state()["slots"] == "4"
    tell(queue, ALL)
    assert core.state()["slots"] == "7"


async def test_an_idle_worker_tells_all_of_itself_once_and_again_where_its_entry_was_lost(
    core: Core, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed, signed = [], []

    def noting(told: list[Any], act: Any) -> Any:
        def noted(*given: Any) -> Any:
            told.append(given[3])
            return act(*given)

        return noted

    monkeypatch.setattr(renewal, "IDLE_HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(renewal, "renew", noting(renewed, renew))
    monkeypatch.setattr(renewal, "sign", noting(signed, sign))
    async with Worker(queue, worker_id="w", scheduler=False):
        await eventually(lambda: len(signed) >= 3)
        assert len(renewed) == 1
        assert all("host" not in fields for fields in signed)
        core.execute("DEL", ENTRY)
        await eventually(lambda: b"host" in entry_in(core))
        assert len(renewed) == 2
