"""The scripts about what governs users and what they used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from fairque.policy import TaskLimit
from fairque.redis import arguments
from fairque.redis.keys import encode_user
from fairque.redis.script_caller import ScriptCaller

__all__ = ["TenantScripts"]


class TenantScripts(ScriptCaller):
    """The part of a `Store` that is about policies, limits, explanations and usage."""

    async def set_policy(self, whose: str, changes: Mapping[str, Any], forget: Sequence[str] = ()) -> None:
        """`whose` is an encoded user, ``@`` and an encoded group, or ``*``; to forget ``*`` is to forget all."""
        await self.call(arguments.Policy(whose, changes, forget))

    async def policies(self, names: Sequence[str]) -> list[bytes]:
        found: list[bytes] = await self.call(arguments.Policies(names))
        return found

    async def governed(
        self, index: Literal["policy-users", "policy-groups", "limit-names"], after: str, most: int
    ) -> list[list[Any]]:
        """Names behind `after` and what was set, at most so many. Users and groups are encoded, with ``@`` in front."""
        found: list[list[Any]] = await self.call(arguments.Governed(index, after, most))
        return found

    async def explain(self, user_id: str, task_id: str, most: int) -> list[Any]:
        found: list[Any] = await self.call(arguments.Explain(encode_user(user_id), task_id, most))
        return found

    async def usage(self, user: str, days: Sequence[int]) -> list[Any]:
        """`user` is encoded, or ``*``."""
        found: list[Any] = await self.call(arguments.Usage(user, days))
        return found

    async def set_limits(self, limits: Iterable[tuple[str, TaskLimit]], *, declared: bool) -> None:
        """By task name. `declared`: by the code of a worker."""
        named = [arguments.NamedLimit(name, limit.max_running, *_rate_of(limit)) for name, limit in limits]
        await self.call(arguments.Limits(declared, named))


def _rate_of(limit: TaskLimit) -> tuple[int, int] | tuple[None, None]:
    return (limit.rate.interval_us, limit.rate.burst) if limit.rate else (None, None)
