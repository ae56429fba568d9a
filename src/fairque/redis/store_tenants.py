"""The scripts about what governs users and what they used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from fairque.limit import Limit
from fairque.policy import Rate
from fairque.redis import arguments
from fairque.redis.keys import encode_user
from fairque.redis.rulebook import Rulebook, rulebook_in
from fairque.redis.script_caller import ScriptCaller

__all__ = ["TenantScripts"]


class TenantScripts(ScriptCaller):
    """The part of a `Store` that is about policies, limits, explanations and usage."""

    async def set_policy(self, whose: str, changes: Mapping[str, Any], forget: Sequence[str] = ()) -> None:
        """`whose` is an encoded user, ``@`` and an encoded group, or ``*``; to forget ``*`` is to forget all."""
        await self.call(arguments.Policy(whose, changes, forget))

    async def forget_group_behind(self, whose: str) -> None:
        """Of a partition which a group has left: what is still there of its policy. ``@`` and an encoded group."""
        await self.call(arguments.Policy(whose, {}, ["*"], is_behind=True))

    async def policies(self, names: Sequence[str]) -> list[bytes]:
        found: list[bytes] = await self.call(arguments.Policies(names))
        return found

    async def governed(
        self, index: Literal["policy-users", "policy-groups", "limit-keys"], after: str, most: int
    ) -> list[list[Any]]:
        """Names behind `after` and what was set, at most so many. Users and groups are encoded, with ``@`` in front."""
        found: list[list[Any]] = await self.call(arguments.Governed(index, after, most))
        return [row[:2] for row in found]

    async def explain(self, user_id: str, task_id: str, most: int) -> list[Any]:
        found: list[Any] = await self.call(arguments.Explain(encode_user(user_id), task_id, most))
        return found

    async def usage(self, user: str, days: Sequence[int]) -> list[Any]:
        """`user` is encoded, or ``*``."""
        found: list[Any] = await self.call(arguments.Usage(user, days))
        return found

    async def declare_limits(self, limits: Iterable[tuple[str, Limit | None]]) -> int:
        """What code says, in the first partition of a queue. Returns the revision of what governs all users then."""
        records = [_record(name, limit) for name, limit in limits]
        revision, _ = await self.call(arguments.Limits(True, records, -1))
        return int(revision)

    async def revision_with(self, limits: Iterable[tuple[str, Limit | None]]) -> int | None:
        """That of what governs all users, where code has said all of this already; None: it has not."""
        book = await self.rulebook()
        said = {rule.record: rule.code for rule in book.follow.rules}
        known = all(said.get(name, "") == _said(_record(name, limit)) for name, limit in limits)
        return book.follow.revision if known else None

    async def rulebook(self) -> Rulebook:
        """All that governs all users, as a partition has it."""
        return rulebook_in(await self.call(arguments.Rulebook(-1)))

    async def follow(self, book: Rulebook) -> None:
        """A partition takes over what another one has, if that is newer."""
        await self.call(book.follow, [book.policy])

    async def set_limits(self, limits: Iterable[tuple[str, Limit | None]], *, declared: bool) -> None:
        """By record, see `record_of`; None takes it back. `declared`: by the code of a worker."""
        await self.call(arguments.Limits(declared, [_record(name, limit) for name, limit in limits]))

    async def set_paused(self, record: str, is_paused: bool) -> None:
        """Of the name of a task."""
        await self.call(arguments.Limits(False, [arguments.LimitRecord(record, False, None, None, None, is_paused)]))


def _said(record: arguments.LimitRecord) -> str:
    """As limits.lua writes it down."""
    if not record.is_set:
        return ""
    numbers = (record.max, record.interval_us, record.burst)
    return " ".join("-" if number is None else str(number) for number in numbers)


def _record(name: str, limit: Limit | None) -> arguments.LimitRecord:
    if limit is None:
        return arguments.LimitRecord(name, False, None, None, None)
    rate = limit.rate if isinstance(limit.rate, Rate) else None
    interval_us, burst = (rate.interval_us, rate.burst) if rate else (None, None)
    return arguments.LimitRecord(name, True, limit.max_running, interval_us, burst)
