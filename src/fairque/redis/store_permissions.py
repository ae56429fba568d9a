"""Whether the user of Redis may do what a process is about to do: found out before a first call could fail."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Iterable, Sequence

from fairque.counted import counted
from fairque.errors import NotPermitted, QueueUnavailable
from fairque.redis import arguments
from fairque.redis.arguments import encode
from fairque.redis.dividing import of_those_there
from fairque.redis.keys import Keys
from fairque.redis.role import ROLES, Role, pattern_of
from fairque.redis.script_caller import ScriptCaller
from fairque.redis.scripts import load

__all__ = ["PermissionScripts"]

_DISPENSABLE = frozenset(("client|setname", "exists", "info", "select", "sscan"))
"""Without them, a process does without a name, a warning, a hint or a page of a listing."""
_ON_CHANNELS = frozenset(("spublish", "ssubscribe", "sunsubscribe"))
_ON_KEYS_BY_COUNT = frozenset(("fcall", "fcall_ro"))
MOST_TOLD = 8


class PermissionScripts(ScriptCaller):
    """The part of a `Store` that asks what it may."""

    async def check_opening(self) -> None:
        """Raises `NotPermitted` where a process could not even read; and where it may write, but not put in or plan."""
        await self._where_it_answers(lambda part: part._check_opening())

    async def check_roles(self, *names: str) -> None:
        """Raises `NotPermitted` where one of these could not work; see `ROLES`."""
        roles = [ROLES[name] for name in names]
        await self._where_it_answers(lambda part: part._check_roles(roles))

    async def _where_it_answers(self, check: Callable[[PermissionScripts], Awaitable[None]]) -> None:
        """At the node of the queue's settings, and at those of its partitions where that one is away."""
        try:
            await check(self)
        except QueueUnavailable:
            await self.agree_elsewhere()
            if not self.backend.is_partitioned or not await of_those_there(self.parts, check):
                raise

    async def _check_opening(self) -> None:
        roles = [ROLES[name] for name in ("producer", "scheduler", "reader")]
        denied = await self._denied(roles)
        able = roles[2:] if "fcall" in denied else roles[:2]
        lacking = [(role, denied & role.own_commands) for role in able]
        if all(lacks for _, lacks in lacking):
            raise self._not_permitted(*min(lacking, key=lambda each: len(each[1])))

    async def _check_roles(self, roles: Sequence[Role]) -> None:
        denied = await self._denied(roles)
        for role in roles:
            if lacks := denied & role.own_commands:
                raise self._not_permitted(role, lacks)

    @property
    def _partitions_option(self) -> str:
        count = self.settings.partitions
        return f" --partitions {count}" if count > 1 else ""

    async def _denied(self, roles: Iterable[Role]) -> frozenset[str]:
        needed = sorted(frozenset[str]().union(*(role.own_commands for role in roles)) - _DISPENSABLE)
        asked = arguments.Denied([_spoken(command, self.keys) for command in needed])
        positions: list[int] = await self._run(load("denied"), [encode(asked)])
        return frozenset(needed[at - 1] for at in positions)

    def _not_permitted(self, role: Role, lacks: frozenset[str]) -> NotPermitted:
        pattern = pattern_of(self.keys)
        missing = [f"+{command}" for command in sorted(lacks)]
        if lacks & _ON_CHANNELS:
            missing.insert(0, f"&{pattern}")
        if lacks & _ON_KEYS_BY_COUNT:
            missing.insert(0, f"~{pattern}")
        told = _some([_told(command, pattern) for command in sorted(lacks)])
        queue = f"{shlex.quote(self.backend.name)}{self._partitions_option}"
        return NotPermitted(
            f"Redis at {self.backend.connector.safe_url}: its user may not {told}; it lacks {_some(missing)}."
            f" All that it needs: fairque acl --role {role.name} --queue {queue}",
            tuple(missing),
        )


def _spoken(command: str, keys: Keys) -> list[str]:
    """With words after it by which the server sees keys and channels, whichever of them they are."""
    words = command.upper().split("|")
    if command in _ON_CHANNELS:
        return [*words, keys.schedules_channel]
    if command in _ON_KEYS_BY_COUNT:
        return [*words, "any", "1", keys.state]
    return [*words, *[keys.state] * 3]


def _told(command: str, pattern: str) -> str:
    name = command.upper().replace("|", " ")
    return f"{name} on {pattern}" if command in _ON_CHANNELS | _ON_KEYS_BY_COUNT else name


def _some(texts: list[str]) -> str:
    if len(texts) <= MOST_TOLD:
        return ", ".join(texts)
    return f"{', '.join(texts[:MOST_TOLD])} and {counted(len(texts) - MOST_TOLD, 'other')}"
