"""The scripts about values that tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairque.redis.arguments import Values, XcomClear, XcomDelete, XcomKeys, XcomPull, XcomPush
from fairque.redis.keys import encode_user
from fairque.redis.replies import refusal
from fairque.redis.script_caller import ScriptCaller

__all__ = ["XComScripts"]

XCOM_PAGE = 1000


class XComScripts(ScriptCaller):
    """The part of a `Store` that is about XCom values."""

    async def xcom_push(self, user_id: str, namespace: str, key: str, value: bytes, ttl_ms: int) -> None:
        values = Values()
        push = XcomPush(encode_user(user_id), encode_user(namespace), key, values.put(value), ttl_ms)
        answer: Any = await self.call(push, values)
        if isinstance(answer, list):
            raise refusal(answer)

    async def xcom_pull(self, user_id: str, namespaces: Sequence[str], keys: Sequence[str]) -> list[bytes | None]:
        """For each key its value from the first namespace that has it."""
        spaces = [encode_user(namespace) for namespace in namespaces]
        found: list[bytes | None] = await self.call(XcomPull(encode_user(user_id), spaces, keys))
        return found

    async def xcom_keys(self, user_id: str, namespace: str) -> list[str]:
        """The keys that have a value, sorted; read in pages, so that nobody waits for a user who has many."""
        names: set[bytes] = set()
        at, skip = 0, 0
        while True:
            look = XcomKeys(encode_user(user_id), encode_user(namespace), at, skip, XCOM_PAGE)
            page: list[bytes] = await self.call(look)
            names.update(page[::2])
            if len(page) < 2 * XCOM_PAGE:
                return sorted(name.decode() for name in names)
            skip = page[1::2].count(page[-1]) + (skip if int(page[1]) == int(page[-1]) == at else 0)
            at = int(page[-1])

    async def xcom_delete(self, user_id: str, namespace: str, key: str) -> None:
        await self.call(XcomDelete(encode_user(user_id), encode_user(namespace), [key]))

    async def xcom_clear(self, user_id: str, namespace: str) -> None:
        await self.call(XcomClear(encode_user(user_id), encode_user(namespace)))
