"""Scripts that run at a time of our own, so that a model can be given the same, and a game can be played again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from fairque.redis import arguments
from fairque.redis.backend import Backend
from fairque.redis.connector import DEFAULT_TIMEOUT
from fairque.redis.delivery import Delivery
from fairque.redis.requester import pack
from fairque.redis.scripts import Script, load
from fairque.redis.store import WORKER_TTL_MS, Store
from tests.support.core import SETTINGS, Core

START_US = 1_800_000_000_000_000
STEP_US = 11
"""Between two calls."""
IDLE_US = 3_000
"""Real time, which streams go by: a lease of 1 ms is over for certain after it."""
_READS_CLOCK = b"call('TIME')"
_FORGETS_RATE, _KEEPS_RATE = b"math.ceil((l.tat - now_us) / 1000)", b"600000"
"""A time to live is of the server's own clock, which may be far ahead of that of a game. What is over says nothing."""


@cache
def _told(name: str) -> bytes:
    source = load(name).source
    assert source.count(_READS_CLOCK) == 1
    assert name != "claim" or source.count(_FORGETS_RATE) == 1
    told = source.replace(_READS_CLOCK, b"call('HMGET', prefix .. 'told', 'seconds', 'us')")
    return told.replace(_FORGETS_RATE, _KEEPS_RATE)


class TimedStore(Store):
    core: TimedCore

    async def _run(self, script: Script, args: Sequence[Any], patience: float | None = None) -> Any:
        self.core.tick()
        return await self._insist(pack((b"EVAL", _told(script.name), b"1", self.keys.state, *args)), patience)


class TimedCore(Core):
    """Time passes by a little with each call, and where a test says so."""

    def __init__(self, url: str, queue_name: str) -> None:
        super().__init__(url, queue_name)
        self._own = Backend(url, queue_name, timeout=DEFAULT_TIMEOUT, given=SETTINGS)
        store = TimedStore(self._own)
        store.core = self
        self.store = store
        self._now_us = START_US

    async def __aenter__(self) -> TimedCore:
        await self._own.connector.open()
        await super().__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await super().__aexit__(*error)
        await self._own.connector.close()

    def now_us(self) -> int:
        return self._now_us

    def tick(self, us: int = STEP_US) -> None:
        self._now_us += us
        self.execute("HSET", ":told", "seconds", self._now_us // 1_000_000, "us", self._now_us % 1_000_000)

    def wait_until_ms(self, moment: float) -> None:
        self._now_us = max(self._now_us, int(moment + 1) * 1000)

    def rest(self) -> None:
        """Until every delivery has been idle for longer than a short lease, on both clocks."""
        until = super().now_us() + IDLE_US
        self._now_us += IDLE_US
        while super().now_us() <= until:
            pass

    def renew(
        self,
        worker: str,
        deliveries: Sequence[Delivery],
        run_times: Sequence[arguments.EndedRuns] = (),
        **fields: Any,
    ) -> list[Delivery]:
        self.tick()
        held = [
            arguments.HeldDelivery(
                of.lane.decode(), of.user.decode(), of.id, of.stream_id.decode(), of.attempt, of.cost
            )
            for of in deliveries
        ]
        renewal = arguments.encode(arguments.Renew(worker, WORKER_TTL_MS, {"pid": 1, **fields}, held, list(run_times)))
        lost, _ = self.execute("EVAL", _told("renew"), 1, self.keys.state, renewal)
        return [deliveries[position] for position in lost[::2]]
