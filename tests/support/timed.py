"""Scripts that run at a time of our own, so that a model can be given the same, and a game can be played again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from fairque.redis import arguments
from fairque.redis.backend import Backend
from fairque.redis.connector import DEFAULT_TIMEOUT
from fairque.redis.delivery import Delivery
from fairque.redis.requester import pack
from fairque.redis.scripts import Script, load
from fairque.redis.store import WORKER_TTL_MS, Store
from tests.support.core import HOUR_MS, SETTINGS, Core
from tests.support.played_clock import SET_CLOCK, played

START_US = 1_800_000_000_000_000
STEP_US = 11
"""Between two calls."""
IDLE_US = 3_000
"""After it, a lease of 1 ms is over."""


@cache
def _told(name: str) -> bytes:
    return played(load(name).source)


class TimedStore(Store):
    core: TimedCore

    async def _run(self, script: Script, args: Sequence[Any], patience: float | None = None) -> Any:
        self.core.tick()
        return await self._insist(pack((b"EVAL", _told(script.name), b"1", self.keys.state, *args)), patience)


class TimedCore(Core):
    """Time passes by a little with each call, and where a test says so. No dead letter is given up in a game.

    Of a queue without partitions, whatever the suite runs on: `spread` has one with some.
    """

    settings = SETTINGS | {"dead_letter_ttl_ms": 24 * HOUR_MS, "result_ttl_ms": 24 * HOUR_MS, "partitions": 1}

    def __init__(self, url: str, queue_name: str) -> None:
        super().__init__(url, queue_name)
        self._own = Backend(url, queue_name, timeout=DEFAULT_TIMEOUT, given=self.settings)
        store = TimedStore(self._own)
        store.core = self
        self.store = store
        self._now_us = START_US
        self.on_tick: Callable[[int], object] = int  # is told the time, in microseconds

    async def __aenter__(self) -> TimedCore:
        await self._own.connector.open()
        await super().__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.execute("DEL", ":told", ":told-expiry", ":told-idle")
        await super().__aexit__(*error)
        await self._own.connector.close()

    def now_us(self) -> int:
        return self._now_us

    def tick(self, us: int = STEP_US) -> None:
        self._now_us += us
        self.on_tick(self._now_us)
        self.execute("EVAL", SET_CLOCK, 1, self.keys.state, self._now_us // 1_000_000, self._now_us % 1_000_000)

    def wait_until_ms(self, moment: float) -> None:
        self._now_us = max(self._now_us, int(moment + 1) * 1000)

    def rest(self) -> None:
        """Until every delivery has been idle for longer than a short lease."""
        self._now_us += IDLE_US

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
        lost, *_ = self.execute("EVAL", _told("renew"), 1, self.keys.state, renewal)
        return [deliveries[position] for position in lost[::2]]
