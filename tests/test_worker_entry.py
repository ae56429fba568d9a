"""What a queue knows of its workers: told when they come, and then as far as it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from fairque import TaskQueue, Worker
from fairque.redis.connector import Connector
from fairque.redis.keys import Keys
from fairque.redis.requester import BlockingRequester, pack
from fairque.redis.shared_blocking import BlockingConnections
from fairque.redis.signs import Sign, Signed, sign, sign_together
from fairque.redis.store import WORKER_TTL_MS, renew
from fairque.worker import renewal
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.proxy import CuttingProxy
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
        return sign(requester, queue.keys, Sign("w", WORKER_TTL_MS, fields, scheduler))


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
    renewed: list[dict[str, Any]] = []
    signed: list[dict[str, Any]] = []

    def renewing(*given: Any) -> Any:
        renewed.append(given[3])
        return renew(*given)

    def signing(connections: BlockingConnections, signs: Sequence[tuple[Connector, Keys, Sign]]) -> Any:
        signed.extend(dict(each.fields) for _, _, each in signs)
        return sign_together(connections, signs)

    monkeypatch.setattr(renewal, "IDLE_HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(renewal, "renew", renewing)
    monkeypatch.setattr(renewal, "sign_together", signing)
    async with Worker(queue, worker_id="w", scheduler=False):
        await eventually(lambda: len(signed) >= 3)
        assert len(renewed) == 1
        assert all("host" not in fields for fields in signed)
        core.execute("DEL", ENTRY)
        await eventually(lambda: b"host" in entry_in(core))
        assert len(renewed) == 2


# Together


def together(
    connections: BlockingConnections, queue: TaskQueue, fields: Sequence[dict[str, Any]]
) -> list[Signed | None]:
    signs = [(queue.connector, queue.keys, Sign("w", WORKER_TTL_MS, each)) for each in fields]
    return sign_together(connections, signs)


async def test_signs_of_one_message_are_answered_each_by_itself(core: Core, queue: TaskQueue) -> None:
    tell(queue, ALL)
    tell_changes(queue, {})  # which makes the script known
    with closing(BlockingConnections()) as connections:
        assert together(connections, queue, [{"memory": 1}]) == [None], "it takes the first request to connect"
        connections.requester(queue.connector).request(pack(("PING",)))
        told = together(connections, queue, [{"memory": 20}, {"memory": 30, "pid": 2}, {"memory": 40}])
        assert told == [(False, False)] * 3
        assert entry_in(core)[b"memory"] == b"40"
        core.execute("DEL", ENTRY)
        assert together(connections, queue, [{}, {}]) == [(False, True)] * 2
        core.execute("SET", ENTRY, "junk")
        assert together(connections, queue, [{}, {}]) == [None] * 2
        core.execute("DEL", ENTRY)
        assert together(connections, queue, [{}]) == [(False, True)], "errors leave the connection as it is"


async def test_what_was_not_answered_is_not_certain_to_be_told(
    proxy: CuttingProxy, begun: TaskQueue, core: Core
) -> None:
    tell(begun, ALL)
    tell_changes(begun, {})
    async with TaskQueue(proxy.url, name=begun.name) as queue:
        await queue.stats()
        with closing(BlockingConnections()) as connections:
            await asyncio.to_thread(connections.requester(queue.connector).request, pack(("PING",)))
            cut = proxy.cut_reply(b"third")
            told = await asyncio.to_thread(
                together, connections, queue, [{"host": f"{n}"} for n in ("a", "b", "third")]
            )
            assert cut.done.is_set()
            assert told == [(False, False), (False, False), None]
            assert entry_in(core)[b"host"] == b"third"


@pytest.mark.partitions(16)
@pytest.mark.leaves_keys
async def test_signs_to_the_partitions_of_one_server_come_in_one_message(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "SPREAD_HEARTBEAT_SECONDS", 0.2)
    messages: list[int] = []
    alone: list[Keys] = []

    def signing(connections: BlockingConnections, signs: Sequence[tuple[Connector, Keys, Sign]]) -> Any:
        messages.append(len(signs))
        return sign_together(connections, signs)

    def signing_alone(requester: BlockingRequester, keys: Keys, told: Sign) -> Signed:
        alone.append(keys)
        return sign(requester, keys, told)

    monkeypatch.setattr(renewal, "sign_together", signing)
    monkeypatch.setattr(renewal, "sign", signing_alone)
    await queue.stats()
    async with Worker(queue, scheduler=False):
        await eventually(lambda: messages.count(16) >= 5)
    assert len(alone) <= 16, "but for the first ones, where the server may not know the script"


async def test_what_came_back_to_what_it_was_is_told_again_where_it_is_not_certain_what_is_known(
    core: Core, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, unheard, loop = [1], asyncio.Event(), asyncio.get_running_loop()

    def signing(connections: BlockingConnections, signs: Sequence[tuple[Connector, Keys, Sign]]) -> Any:
        told = sign_together(connections, signs)
        if memory[0] == 1:
            return told
        memory[0] = 1
        loop.call_soon_threadsafe(unheard.set)
        return [None] * len(signs)

    monkeypatch.setattr(renewal, "IDLE_HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(renewal, "memory_used", lambda: memory[0])
    monkeypatch.setattr(renewal, "sign_together", signing)
    async with Worker(queue, worker_id="w", scheduler=False):
        await eventually(lambda: entry_in(core).get(b"memory") == b"1")
        memory[0] = 2
        await asyncio.wait_for(unheard.wait(), 10)
        await eventually(lambda: entry_in(core)[b"memory"] == b"1")
