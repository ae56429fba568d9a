"""Scripts that tell when they ran, so that a model can be given the same time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from fairque.redis.backend import Backend
from fairque.redis.connector import DEFAULT_TIMEOUT
from fairque.redis.requester import pack
from fairque.redis.scripts import Script, load
from fairque.redis.store import Store
from tests.support.core import SETTINGS, Core

_READS_CLOCK = b"local now_text"


@cache
def _telling(name: str) -> bytes:
    source = load(name).source
    assert source.count(_READS_CLOCK) == 1
    return source.replace(_READS_CLOCK, b"call('SET', prefix .. 'told', now_us)\n" + _READS_CLOCK)


class TimedStore(Store):
    async def _run(self, script: Script, args: Sequence[Any], patience: float | None = None) -> Any:
        return await self._insist(pack((b"EVAL", _telling(script.name), b"1", self.keys.state, *args)), patience)


class TimedCore(Core):
    """Every call leaves the microsecond of its script in `told`, but for renewals, which have another way."""

    def __init__(self, url: str, queue_name: str) -> None:
        super().__init__(url, queue_name)
        self._own = Backend(url, queue_name, timeout=DEFAULT_TIMEOUT, given=SETTINGS)
        self.store = TimedStore(self._own)

    async def __aenter__(self) -> TimedCore:
        await self._own.connector.open()
        await super().__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await super().__aexit__(*error)
        await self._own.connector.close()

    def told_us(self) -> int:
        return int(self.execute("GET", ":told"))
