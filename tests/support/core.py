"""The core of a queue, below `TaskQueue` and `Worker`: the scripts, and a look at everything they keep in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fairque.redis.arguments import EndedRuns
from fairque.redis.backend import Backend
from fairque.redis.connector import DEFAULT_TIMEOUT
from fairque.redis.delivery import Answer, Claim, Delivery, NewTask, Outcome, Put
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import Store, renew
from fairque.tasks.message import Message, encode_body, new_nonce
from tests.support.resp import RespClient
from tests.support.together import backend_of_all, store_of_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

HOUR_MS = 3_600_000
LONG_LEASE_MS = 600_000
STEP_MS = 300_000
MAX_BODY = 4096
SETTINGS = {
    "lease_ms": LONG_LEASE_MS,
    "max_message_bytes": MAX_BODY,
    "priority_step_ms": STEP_MS,
    "dead_letter_ttl_ms": HOUR_MS,
}
_NO_ARGS = msgspec.Raw(b"\x90")
_LETTERS = {"finished": b"F", "failed": b"X"}

_DUMP = """
local prefix, found = string.sub(KEYS[1], 1, -6), {}
local readers = {
  string = function(key) return { redis.call('GET', key) } end,
  hash = function(key) return redis.call('HGETALL', key) end,
  list = function(key) return redis.call('LRANGE', key, 0, -1) end,
  set = function(key) return redis.call('SMEMBERS', key) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  stream = function(key)
    local pending = redis.pcall('XPENDING', key, 'workers', '-', '+', 10000)
    return { redis.call('XRANGE', key, '-', '+'), pending.err and {} or pending }
  end,
}
for _, key in ipairs(redis.call('KEYS', prefix .. '*')) do
  local kind = redis.call('TYPE', key).ok
  found[#found + 1] = { string.sub(key, #prefix + 1), kind, redis.call('PTTL', key), readers[kind](key) }
end
return found
"""


@dataclass(frozen=True)
class Key:
    """What Redis has under one key."""

    kind: str
    ttl_ms: int  # -1: for ever
    content: list[Any]

    @property
    def expires(self) -> bool:
        return self.ttl_ms >= 0

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Fields of a hash, members of a sorted set with their scores."""
        texts = [part.decode() for part in self.content]
        return list(zip(texts[::2], texts[1::2], strict=True))

    @property
    def scores(self) -> list[tuple[str, float]]:
        return [(member, float(score)) for member, score in self.pairs]

    @property
    def holdings(self) -> list[tuple[str, str]]:
        """Of a stream: the id of each task that is out, and its worker."""
        entries, pending = self.content
        owners = {stream_id: owner for stream_id, owner, _, _ in pending}
        assert [stream_id for stream_id, _ in entries] == list(owners), "an entry that nobody has, or the reverse"
        return [(fields[1].decode(), owners[stream_id].decode()) for stream_id, fields in entries]


class Core:
    """Calls the scripts with as few words as a test wants to use."""

    settings: Mapping[str, int] = SETTINGS

    def __init__(self, url: str, queue_name: str) -> None:
        backend = Backend(url, queue_name, timeout=DEFAULT_TIMEOUT, given=self.settings)
        self.backend = backend_of_all(backend)
        self.keys = self.backend.keys
        self.store = store_of_all(Store(backend))
        self._client = RespClient(url)
        self._requester: BlockingRequester | None = None

    async def __aenter__(self) -> Self:
        await self.backend.connector.open()
        self._requester = BlockingRequester(self.backend.connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.store.close()
        await self.backend.connector.close()
        self._client.close()
        if self._requester is not None:
            self._requester.close()

    # The scripts

    async def enqueue(
        self, user_id: str, *task_ids: str, priority: int = 3, cost: float = 1.0, delay_ms: int = 0, nonce: bytes = b""
    ) -> list[Put]:
        nonce = nonce or new_nonce()
        return await self.enqueue_all([new_task(user_id, id_, priority, cost, delay_ms, nonce) for id_ in task_ids])

    async def enqueue_all(self, tasks: Sequence[NewTask]) -> list[Put]:
        return await self.store.enqueue(tasks)

    async def claim(
        self,
        want: int = 1,
        *,
        worker: str = "w",
        lease_ms: int = LONG_LEASE_MS,
        groups: Sequence[Sequence[str]] = ((),),
        wait: bool = False,
        steal: bool = True,
        holds: int = 0,
        suspects: int = 0,
        max_deliveries: int = 5,
        by_time: bool = False,
    ) -> Claim:
        return await self.store.claim(
            worker,
            want,
            groups=groups,
            wait=wait,
            steal=steal,
            holds=holds,
            suspects=suspects,
            max_deliveries=max_deliveries,
            settings=msgspec.structs.replace(
                self.store.settings, lease_ms=lease_ms, fairness="time" if by_time else "cost"
            ),
        )

    async def take(self, want: int = 1, **options: Any) -> list[Delivery]:
        return (await self.claim(want, **options)).deliveries

    async def settle(
        self, deliveries: Sequence[Delivery], kind: str = "finished", *, delay_ms: int = 0, worker: str = "w"
    ) -> list[Answer]:
        outcomes = [outcome(of, kind, delay_ms) for of in deliveries]
        return await self.store.settle(worker, outcomes)

    async def serve(self, services: int, **options: Any) -> list[str]:
        """One task after another is claimed and finished. Returns whose it was, in order."""
        served = []
        for _ in range(services):
            for delivery in await self.take(**options):
                served.append(delivery.user_id)
                await self.settle([delivery])
        return served

    def take_for(self, **fields: Any) -> None:
        """What this process takes for the settings of the queue."""
        whole = getattr(self.backend, "root", self.backend)
        whole.settings = msgspec.structs.replace(whole.settings, **fields)

    def renew(
        self, worker: str, deliveries: Sequence[Delivery], run_times: Sequence[EndedRuns] = (), **fields: Any
    ) -> list[Delivery]:
        """`fields`: what the worker tells of itself."""
        assert self._requester is not None
        lost, *_ = renew(self._requester, self.keys, worker, {"pid": 1, **fields}, deliveries, list(run_times))
        return [delivery for delivery, _ in lost]

    def is_to_fire(self, scheduler: str) -> bool:
        """What the sign of life of a worker brings home, in whose process that scheduler is."""
        assert self._requester is not None
        return renew(self._requester, self.keys, "w", {"pid": 1}, [], scheduler=scheduler).is_to_fire

    @property
    def is_part(self) -> bool:
        """Of a queue with partitions, one of them."""
        return self.backend.is_part

    # What is in Redis

    def execute(self, *arguments: str | bytes | int) -> Any:
        """One command; a name that begins with a colon is that of a key of the queue."""
        return self._client.execute(*(self._named(argument) for argument in arguments))

    def _named(self, argument: str | bytes | int) -> str | bytes | int:
        if isinstance(argument, str) and argument.startswith(":"):
            return self.keys.prefix + argument[1:]
        return argument

    def dump(self) -> dict[str, Key]:
        """Every key of the queue, without its prefix, but for its settings, and a state that was only begun."""
        rows = self._client.execute("EVAL", _DUMP, 1, self.keys.state)
        found = {name.decode(): Key(kind.decode(), ttl, content) for name, kind, ttl, content in rows}
        found.pop("settings", None)
        if "state" in found and found["state"].pairs == [("arrival", "0")]:
            del found["state"]
        return found

    def forget(self) -> None:
        """Delete every key of the queue; what is left is as after it was opened."""
        for name in (*self.dump(), "state"):
            self.execute("UNLINK", self.keys.prefix + name)
        self.execute("HSET", self.keys.state, "arrival", 0)

    def ready(self) -> dict[str, float]:
        """Tags of those who may be served now, by their name in Redis."""
        found = self.dump().get("ready")
        return dict(found.scores) if found else {}

    def state(self) -> dict[str, str]:
        found = self.dump().get("state")
        return dict(found.pairs) if found else {}

    def now_us(self) -> int:
        seconds, fraction = self._client.execute("TIME")
        return int(seconds) * 1_000_000 + int(fraction)

    def wait_until_ms(self, moment: float) -> None:
        """Until the server's clock is past this millisecond."""
        while self.now_us() // 1000 <= moment:
            pass


def new_task(user_id: str, task_id: str, priority: int, cost: float, delay_ms: int, nonce: bytes) -> NewTask:
    body = encode_body(Message("t", _NO_ARGS), nonce, cost, priority, MAX_BODY)
    return NewTask(user_id, task_id, priority, f"+{delay_ms}" if delay_ms else "", body)


def metrics_of_old(blob: bytes, hours: int) -> bytes:
    """What was measured of a user, as if it had been written so many hours ago."""
    values = msgspec.msgpack.decode(blob)
    values[9] -= hours * HOUR_MS
    return msgspec.msgpack.encode(values)


def outcome(of: Delivery, kind: str, delay_ms: int = 0) -> Outcome:
    """The same for each call, as a worker that did not get the reply repeats it."""
    name = b"%b/%d" % (of.stream_id, of.attempt)
    record = of.body[:9] + _LETTERS[kind] + name if kind in _LETTERS else b""
    error = name if kind in ("failed", "retry") else b""
    return Outcome(of, kind, ttl_ms=HOUR_MS, delay_ms=delay_ms, record=record, error=error)
