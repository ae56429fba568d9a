"""The attacker's process: ``attacker.py URL``. It is told what to do, and says when that is in full swing."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from fairque import TaskQueue
from tests.isolation.suite.attack import ATTACKS, Attacker, Scale
from tests.isolation.suite.attacks import load
from tests.isolation.suite.led import follow

PATIENCE = 20.0
"""Seconds in which an attack ends what it has begun."""


class Raid:
    """One attack at a time."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def attack(
        self, slug: str, queue: str, share: float, slots: int, lease: float | None = None
    ) -> dict[str, float | None]:
        self._queue = await TaskQueue(self._url, name=queue, timeout=30.0, lease=lease).open()
        self._attacker = Attacker(self._queue, Scale(share), slots)
        self._run = asyncio.create_task(ATTACKS[slug].run(self._attacker))
        begun = asyncio.create_task(self._attacker.begun())
        await asyncio.wait([begun, self._run], return_when=asyncio.FIRST_COMPLETED)
        if not begun.done():
            begun.cancel()
            await self._run
            raise AssertionError(f"{slug} has ended before it began")
        return {"moment": begun.result()}

    async def stop(self) -> dict[str, Any]:
        self._attacker.stop()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._run
        finally:
            await self._queue.close()
        return {"put_in": self._attacker.put_in}


if __name__ == "__main__":
    load()
    raid = Raid(sys.argv[1])
    asyncio.run(follow({"attack": raid.attack, "stop": raid.stop}))
