"""`Looks`: asks where tasks stand, for all who want to know it at the same time."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from fairque.errors import FairqueError
from fairque.redis.home import Home
from fairque.redis.store import Store
from fairque.round_robin import RoundRobin

__all__ = ["Looks", "Sight"]

AT_ONCE = 200
MOST_CALLS = 4


class Sight(NamedTuple):
    """The result record, empty while there is none, and the state of a task that has not ended; None: not known."""

    record: bytes
    state: bytes | None


class _Wanted(NamedTuple):
    user_id: str
    task_id: str
    seen: asyncio.Future[Sight]


class Looks:
    """Looks that are wanted in the same round of the loop, or while others are under way, share round trips. Those of
    many users go by turns of them.

    Args:
        store: The connection that they take.
        home: Where they are bound to.
    """

    def __init__(self, store: Store, home: Home) -> None:
        self._store = store
        self._home = home
        self.abandon()
        home.add(self)

    def abandon(self) -> None:
        self._wanted: RoundRobin[_Wanted] = RoundRobin()
        self._calls: set[asyncio.Task[None]] = set()
        self._is_due = False

    async def look(self, user_id: str, task_id: str) -> Sight:
        """Raises `QueueUnavailable`, and `StoreError` where a key of the task is damaged."""
        self._home.enter()
        loop = asyncio.get_running_loop()
        wanted = _Wanted(user_id, task_id, loop.create_future())
        self._wanted.put(user_id, wanted)
        if not self._is_due and len(self._calls) < MOST_CALLS:
            self._is_due = True
            loop.call_soon(self._call)
        return await wanted.seen

    def _call(self) -> None:
        self._is_due = False
        while self._wanted and len(self._calls) < MOST_CALLS:
            if still := [each for each in self._wanted.take(AT_ONCE) if not each.seen.done()]:
                call = asyncio.create_task(self._ask(still), name="fairque-looks")
                self._calls.add(call)
                call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._call()

    async def _ask(self, some: list[_Wanted]) -> None:
        try:
            sights = await self._store.peek([(each.user_id, each.task_id) for each in some])
        except BaseException as exc:
            for each in some:
                _tell(each.seen, exc)
            if not isinstance(exc, Exception):
                raise
            return
        for each, sight in zip(some, sights, strict=False):
            _tell(each.seen, sight if isinstance(sight, FairqueError) else Sight(*sight))
        # Large results end an answer early. What did not fit goes behind the others, who may want something small.
        for each in some[len(sights) :]:
            self._wanted.put(each.user_id, each)


def _tell(seen: asyncio.Future[Sight], what: Sight | BaseException) -> None:
    if seen.done():
        return
    if isinstance(what, Sight):
        seen.set_result(what)
    elif isinstance(what, Exception):
        seen.set_exception(what)
    else:
        seen.cancel()
