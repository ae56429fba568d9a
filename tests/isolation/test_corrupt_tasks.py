"""A task whose message or record is damaged in Redis ends as a dead letter, and harms nobody else."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from fairque import FailureKind, Task, TaskFailed, TaskQueue, Worker, task
from fairque.tasks.message import Message, Overrides
from fairque.tasks.registry import registry, unregister
from tests.support.resp import RespClient


@pytest.fixture(autouse=True)
def _tasks() -> Iterator[None]:
    task(name="ok")(run)
    yield
    unregister("ok")


async def run() -> str:
    return "ok"


def ok() -> Task[str]:
    return registry["ok"]()


NO_TIMES = [float("nan"), float("inf"), -float("inf"), -1.0, 1e300]
DAMAGED: list[dict[str, Any]] = [
    *({"timeout": seconds} for seconds in NO_TIMES),
    *({"result_ttl": seconds} for seconds in NO_TIMES),
    {"max_retries": -1},
    {"max_retries": 2**62},
    {"retry": {"base": float("nan")}},
    {"retry": {"cap": -1.0}},
    {"timeout": "soon"},
    {"depends_on": [1]},
    {"schedule": {"schedule_id": 1}},
]


def put(queue: TaskQueue, key: str, value: bytes) -> None:
    with RespClient(queue.connector.url) as client:
        client.execute("SET", f"{queue.reader.keys_of('eve').prefix}{key}", value)


def body_with(overrides: dict[str, Any], cost: float = 1.0) -> bytes:
    head = struct.pack(">B8sdB", 1, b"nonce...", cost, 3)
    return head + msgspec.msgpack.encode(["ok", [], None, overrides])


@pytest.mark.parametrize("overrides", DAMAGED, ids=str)
async def test_options_that_break_a_rule_make_a_dead_letter_with_the_reason(
    queue: TaskQueue, overrides: dict[str, Any]
) -> None:
    damaged = await queue.enqueue(ok(), user_id="eve", task_id="damaged")
    put(queue, "body:eve:damaged", body_with(overrides))
    sound = [await queue.enqueue(ok(), user_id="bob") for _ in range(3)]
    async with Worker(queue, concurrency=2):
        assert [await handle.result() for handle in sound] == ["ok"] * 3
        with pytest.raises(TaskFailed) as caught:
            await damaged.result()
    assert caught.value.kind is FailureKind.BAD_MESSAGE
    assert "cannot be decoded" in str(caught.value)


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0])
async def test_a_cost_that_is_none_counts_as_one(queue: TaskQueue, cost: float) -> None:
    damaged = await queue.enqueue(ok(), user_id="eve", task_id="damaged")
    put(queue, "body:eve:damaged", body_with({}, cost))
    sound = await queue.enqueue(ok(), user_id="bob")
    async with Worker(queue):
        assert [await damaged.result(), await sound.result()] == ["ok", "ok"]
    [eve] = [user for user in await queue.users() if user.user_id == "eve"]
    assert eve.metrics.cost == 1.0


@pytest.mark.parametrize("field", ["failures", "returned", "queued", "since"])
async def test_a_record_that_cannot_be_read_makes_a_dead_letter(queue: TaskQueue, field: str) -> None:
    damaged = await queue.enqueue(ok(), user_id="eve", task_id="damaged")
    key = f"{queue.reader.keys_of('eve').prefix}task:eve:damaged"
    with RespClient(queue.connector.url) as client:
        client.execute("HSET", key, "state", "queued", field, "junk")
    sound = [await queue.enqueue(ok(), user_id="bob") for _ in range(3)]
    async with Worker(queue, concurrency=2):
        assert [await handle.result() for handle in sound] == ["ok"] * 3
        with pytest.raises(TaskFailed, match="damaged"):
            await damaged.result()


def test_options_that_are_sound_are_read_as_they_were_written() -> None:
    written = Message("ok", msgspec.Raw(b"\x90"), overrides=Overrides(timeout=0.5, result_ttl=0.0, max_retries=0))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(written), type=Message).overrides == written.overrides
