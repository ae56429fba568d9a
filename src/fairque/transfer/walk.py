"""`Walk`: keys of a user that stands still, read page by page."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Literal

from fairque.redis.keys import encode_user
from fairque.redis.store import Store
from fairque.redis.store_transfer import DumpedPage, Frozen
from fairque.transfer.kinds import KINDS, Part

__all__ = ["HOLD_MS", "Walk"]

HOLD_MS = 30_000
"""For which a user stands still without a word of who reads it."""
RENEWAL = 5.0
AT_ONCE = 200


class Walk:
    """Has the user stand still while it is read.

    Args:
        store: Where it lives.
        user_id: Whose keys.
        token: By whose will it stands still.
        why: For what; "import": it is whole, and is read to be carried elsewhere.
    """

    def __init__(self, store: Store, user_id: str, token: str, why: Literal["export", "import", "move"]) -> None:
        self._store = store
        self._user_id = user_id
        self._user = encode_user(user_id)
        self._token = token
        self._why = why
        self._renew_at = 0.0

    async def begin(self) -> Frozen:
        frozen = await self._freeze(renews=self._why == "import")
        self._renew_at = time.monotonic() + RENEWAL
        return frozen

    async def stay(self) -> None:
        """It is still read. Raises `QueueUnavailable` where it went on."""
        if time.monotonic() > self._renew_at:
            await self._freeze(renews=True)
            self._renew_at = time.monotonic() + RENEWAL

    async def _freeze(self, *, renews: bool) -> Frozen:
        return await self._store.freeze(self._user_id, self._token, self._why, HOLD_MS, renews=renews)

    async def end(self) -> None:
        """It goes on; an import stands still until its own end."""
        if self._why == "import":
            await self._store.freeze(self._user_id, self._token, self._why, renews=True)
        else:
            await self._store.thaw(self._user_id, self._token)

    def key(self, kind: str, name: str) -> str:
        """Without its prefix."""
        part = KINDS[kind].part if kind in KINDS else Part.NONE
        if part is Part.SCHEDULE:
            return f"{kind}:{name}"
        separator = "" if part is Part.LIMIT or kind == "limit-rate" or not name else ":"
        return f"{kind}:{self._user}{separator}{name}"

    async def pages(self, kind: str, redis_type: str, names: Iterable[str]) -> AsyncIterator[tuple[str, DumpedPage]]:
        """All pages of some keys, in their order."""
        left = iter(names)
        waiting: list[tuple[str, str]] = []
        while True:
            waiting += [(name, "") for name in islice(left, AT_ONCE - len(waiting))]
            if not waiting:
                return
            await self.stay()
            keys = [(self.key(kind, name), redis_type, start) for name, start in waiting]
            pages = await self._store.dump(self._user_id, self._token, keys)
            done = 0
            for (name, _), page in zip(waiting, pages, strict=False):
                if page.expires_ms != -2 and page.parts:
                    yield name, page
                done += 1
                if page.start:
                    break
            rest = waiting[done:]
            waiting = [(waiting[done - 1][0], pages[done - 1].start), *rest] if pages[done - 1].start else rest
