"""The scripts about what governs users and what they used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from fairque.policy import TaskLimit
from fairque.redis.keys import encode_user
from fairque.redis.script_caller import ScriptCaller

__all__ = ["TenantScripts"]


class TenantScripts(ScriptCaller):
    """The part of a `Store` that is about policies, limits, explanations and usage."""

    async def set_policy(self, whose: str, changes: Mapping[str, Any], forget: Sequence[str] = ()) -> None:
        """`whose` is an encoded user, ``@`` and an encoded group, or ``*``; to forget ``*`` is to forget all."""
        await self._call("policy", [whose, msgspec.msgpack.encode(changes), *forget])

    async def policies(self, names: Sequence[str]) -> list[bytes]:
        found: list[bytes] = await self._call("policies", names)
        return found

    async def governed(
        self, index: Literal["policy-users", "policy-groups", "limit-names"], after: str, most: int
    ) -> list[list[Any]]:
        """Names behind `after` and what was set, at most so many. Users and groups are encoded, with ``@`` in front."""
        found: list[list[Any]] = await self._call("governed", [index, after, most])
        return found

    async def explain(self, user_id: str, task_id: str, most: int) -> list[Any]:
        found: list[Any] = await self._call("explain", [encode_user(user_id), task_id, most])
        return found

    async def usage(self, user: str, days: Sequence[int]) -> list[Any]:
        """`user` is encoded, or ``*``."""
        found: list[Any] = await self._call("usage", [user, *days])
        return found

    async def set_limits(self, limits: Iterable[tuple[str, TaskLimit]], *, declared: bool) -> None:
        """By task name. `declared`: by the code of a worker."""
        args: list[Any] = [int(declared)]
        for name, limit in limits:
            args += (name, "" if limit.max_running is None else limit.max_running)
            args += ("", "") if limit.rate is None else (limit.rate.interval_us, limit.rate.burst)
        await self._call("limits", args)
