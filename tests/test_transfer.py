"""A user carried from one queue to another: all of it is there, in its order, and nothing of another's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from fairque import TaskQueue
from fairque.redis.keys import encode_user
from fairque.transfer.fields import as_carried
from fairque.transfer.kinds import KINDS, Part
from tests.support.everything import USER, everything
from tests.support.resp import RespClient

if TYPE_CHECKING:
    from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()
_READ: dict[str, Callable[[bytes], tuple[Any, ...]]] = {
    "string": lambda key: ("GET", key),
    "list": lambda key: ("LRANGE", key, 0, -1),
    "set": lambda key: ("SMEMBERS", key),
    "zset": lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"),
    "hash": lambda key: ("HGETALL", key),
    "stream": lambda key: ("XRANGE", key, "-", "+"),
}


def contents(queue: TaskQueue, user_id: str) -> dict[tuple[str, str], Any]:
    """What the user has, by kind and name, in a form that can be compared."""
    user, prefix = encode_user(user_id), queue.keys.prefix
    found: dict[tuple[str, str], Any] = {}
    with RespClient(queue.connector.url) as client:
        for full in client.execute("KEYS", f"{prefix.replace('{', '?').replace('}', '?')}*"):
            kind, whose, name = [*full.decode().removeprefix(prefix).split(":", 2), "", ""][:3]
            if kind == "schedule":
                name, whose = full.decode().removeprefix(f"{prefix}schedule:"), user
                if client.execute("HGET", full, "user") != user.encode():
                    continue
            if kind in KINDS and KINDS[kind].part is not Part.LIMIT and whose == user:
                found[kind, name] = comparable(
                    KINDS[kind].redis_type, client.execute(*_READ[KINDS[kind].redis_type](full))
                )
    return found


def comparable(redis_type: str, content: Any) -> Any:
    if redis_type == "set":
        return sorted(content)
    return dict(zip(content[::2], content[1::2], strict=True)) if redis_type == "hash" else content


async def kept(records: AsyncIterator[bytes]) -> list[bytes]:
    return [record async for record in records]


def pairs(parts: list[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip(parts[::2], parts[1::2], strict=True)


def carried(before: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """As it is elsewhere: what runs, or is held, waits in its lane."""
    found = dict(before)
    lanes = {lane: list(pairs(found.pop((lane, ""), []))) for lane in ("critical", "normal")}
    for (kind, name), fields in before.items():
        if kind != "task":
            continue
        if fields.get(b"state") == b"started" or b"held" in fields:
            lanes[fields[b"lane"].decode()].append((name.encode(), fields[b"score"]))
        again = {key: fields[key] for key in (b"dead_kind",) if key in fields}
        flat = as_carried(kind, [part for pair in fields.items() for part in pair])
        found[kind, name] = comparable("hash", flat) | again
    for lane, placed in lanes.items():
        if placed:
            found[lane, ""] = [part for row in sorted(placed, key=lambda row: int(row[1])) for part in row]
    return found


async def test_all_that_a_user_has_is_in_another_queue(server: Server, queue_name: str) -> None:
    async with everything(server.url, queue_name) as here, TaskQueue(server.url, name=f"{queue_name}/2") as there:
        before = contents(here, USER)
        records = await kept(here.export_user(USER))
        assert contents(here, USER) == before
        imported = await there.import_user(records)
        assert (imported.user_id, imported.records) == (USER, len(records) - 1)
        assert contents(there, USER) == carried(before)
        assert (await there.check()).findings == ()
        assert (await here.check()).findings == ()
