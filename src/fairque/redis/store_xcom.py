"""The scripts about values that tasks share."""

from __future__ import annotations

from collections.abc import Sequence

from fairque.redis.keys import encode_user
from fairque.redis.script_caller import ScriptCaller

__all__ = ["XComScripts"]

XCOM_PAGE = 1000


class XComScripts(ScriptCaller):
    """The part of a `Store` that is about XCom values."""

    async def xcom_push(self, user_id: str, namespace: str, key: str, value: bytes, ttl_ms: int) -> None:
        await self._call("xcom_push", [encode_user(user_id), encode_user(namespace), key, value, ttl_ms])

    async def xcom_pull(self, user_id: str, namespaces: Sequence[str], keys: Sequence[str]) -> list[bytes | None]:
        """For each key its value from the first namespace that has it."""
        spaces = [encode_user(namespace) for namespace in namespaces]
        found: list[bytes | None] = await self._call(
            "xcom", ["pull", encode_user(user_id), len(spaces), *spaces, *keys]
        )
        return found

    async def xcom_keys(self, user_id: str, namespace: str) -> list[str]:
        """The keys that have a value, sorted; read in pages, so that nobody waits for a user who has many."""
        names: set[bytes] = set()
        at, skip = b"0", 0
        while True:
            args = ["keys", encode_user(user_id), encode_user(namespace), at, skip, XCOM_PAGE]
            page: list[bytes] = await self._call("xcom", args)
            names.update(page[::2])
            if len(page) < 2 * XCOM_PAGE:
                return sorted(name.decode() for name in names)
            skip = page[1::2].count(page[-1]) + (skip if page[1] == page[-1] == at else 0)
            at = page[-1]

    async def xcom_delete(self, user_id: str, namespace: str, key: str) -> None:
        await self._call("xcom", ["delete", encode_user(user_id), encode_user(namespace), key])

    async def xcom_clear(self, user_id: str, namespace: str) -> None:
        await self._call("xcom", ["clear", encode_user(user_id), encode_user(namespace)])
