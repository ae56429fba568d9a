"""The scripts that carry a user elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, NamedTuple

from fairque.errors import BadExport, InvalidInput, QueueUnavailable, StoreError, UserFrozen
from fairque.redis import arguments
from fairque.redis.arguments import Values
from fairque.redis.keys import decode_user, encode_user, glob
from fairque.redis.places import MovedUser
from fairque.redis.requester import pack
from fairque.redis.store_checks import CheckScripts

__all__ = ["KNOWN", "DumpedPage", "Frozen", "ImportedKey", "TransferScripts"]

DUMP_BYTES = 1 << 19
PAGE = 1000
_WORDS = (
    "errors task body result ends children needs uses feeds informed chunks collected unique batch batch-tasks usage"
)
_PLACELESS = frozenset(_WORDS.split())
KNOWN = "is known here: purge it first, or import into another queue"
_BY_OTHERS = {
    b"export": "is being exported",
    b"import": "has an import that is not complete: purge it first",
    b"move": "is being moved",
    b"arrive": "is being moved",
}
_LAPSED = "went on, as its export or move stood still for too long: begin it anew"


class DumpedPage(NamedTuple):
    """start: where the next page begins, "" behind the last. expires_ms: -1 never, -2 where the key is gone."""

    start: str
    expires_ms: int
    parts: list[bytes]


class Frozen(NamedTuple):
    """at: how many records of an import are there. ahead: by how much the tag of the user was ahead of the clock.
    passport: what it takes along, of one that may be moved: lua/lib/passport.lua.
    """

    at: int
    ahead: float
    passport: bytes = b""


class ImportedKey(NamedTuple):
    """redis_type: "none" for what is only counted. See `transfer.record.Record`."""

    kind: str
    name: str
    redis_type: str
    expires_ms: int
    parts: list[bytes]


class TransferScripts(CheckScripts):
    """The part of a `Store` that is about exports and imports. Users are encoded."""

    async def freeze(
        self,
        user_id: str,
        token: str,
        why: Literal["export", "import", "move"],
        hold_ms: int = 0,
        *,
        renews: bool = False,
    ) -> Frozen:
        """Have a user stand still, for `hold_ms` or until `thaw`. An import always does so until that: `hold_ms` is for
        how long nothing of it changes, as it is carried elsewhere.

        Raises `UserFrozen` when it does so already for another, `QueueUnavailable` when it should and does not, and
        `InvalidInput` for one that is to be imported and has something.
        """
        code, *rest = await self.call(arguments.Freeze(encode_user(user_id), token, why, hold_ms, renews))
        if code == b"lapsed":
            raise QueueUnavailable(f"user {user_id!r} {_LAPSED}")
        if code == b"known":
            raise InvalidInput(f"user {user_id!r} {KNOWN}")
        if code == b"other":
            raise UserFrozen(f"user {user_id!r} {_BY_OTHERS[rest[0]]}", user_id)
        return Frozen(rest[0], float(rest[1]), rest[2])

    async def thaw(self, user_id: str, token: str, ahead: float = -1.0) -> bool:
        """False where it does not stand still, or for another. `ahead`: of an import that is complete."""
        return bool(await self.call(arguments.Thaw(encode_user(user_id), token, ahead)))

    async def dump(self, user_id: str, token: str, keys: Sequence[tuple[str, str, str]]) -> list[DumpedPage]:
        """Of the first of these keys, as many as fit: names without their prefix, types, and where pages begin."""
        wanted = [arguments.DumpedKey(*key) for key in keys]
        found: list[Any] | None = await self.call(arguments.Dump(encode_user(user_id), token, DUMP_BYTES, wanted))
        if found is None:
            raise QueueUnavailable(f"user {user_id!r} {_LAPSED}")
        return [DumpedPage(start.decode(), expires, parts) for start, expires, *parts in found]

    async def import_keys(self, user_id: str, token: str, first: int, keys: Sequence[ImportedKey]) -> int:
        """Returns how many records are there by then."""
        values = Values()
        records = [arguments.ImportedRecord(*key[:4], [values.put(part) for part in key.parts]) for key in keys]
        ttl_ms = self.settings.dead_letter_ttl_ms
        there: Any = await self.call(arguments.Import(encode_user(user_id), token, first, ttl_ms, records), values)
        if not isinstance(there, list):
            return int(there)
        code, *rest = there
        if code == b"taken":
            raise BadExport(f"schedule {rest[0].decode()!r} belongs to another user of the queue")
        if code == b"type":
            raise StoreError(
                f"key {rest[0].decode(errors='replace')!r} is there, and of another type: run `fairque doctor`"
            )
        raise StoreError(f"the import of user {user_id!r} was given up meanwhile")

    async def forward(self, moved: MovedUser) -> bool:
        """Of a partition where the user does not live: have it tell where that does. False where it knows of a later
        move. Raises `InvalidInput` where the user lives there.
        """
        told: int = await self.call(arguments.Forward(*moved))
        if told < 0:
            raise InvalidInput(
                f"user {decode_user(moved.user.encode())!r} lives in the partition that is to send others on"
            )
        return told == 1

    async def epoch_of(self, user: str) -> int:
        """Of the last move of which a partition knows, of a user or of the root of a group; 0: it knows of none."""
        told: bytes | None = await self._insist(pack((b"HGET", self.keys.prefix + "moved", user)))
        return int(told.split()[1]) if told is not None else 0

    async def names_of(self, user_id: str) -> AsyncIterator[list[tuple[str, str]]]:
        """All keys that have the user in their names, as the kind and what stands behind the user; in pages, of which
        some may come twice. This looks at every key of the server.
        """
        user, prefix = encode_user(user_id), self.keys.prefix
        async for found in self._scan(b"SCAN", pattern=f"{glob(prefix)}*:{glob(user)}*"):
            names = [key.decode(errors="replace").removeprefix(prefix).split(":", 2) for key in found]
            yield [(kind, "".join(rest)) for kind, whose, *rest in names if whose == user]

    async def limits_of(self, user_id: str) -> list[str]:
        """Names of limits that are set for the user alone, without it."""
        user = encode_user(user_id)
        found = await self._members_from("limit-keys", f"{user}:") + await self._members_from("limit-keys", f"{user}=")
        return [name.removeprefix(user) for name in found]

    async def schedules_of(self, user_id: str) -> list[str]:
        """Ids of the schedules of the user."""
        start = f"{encode_user(user_id)}:"
        return [name.removeprefix(start) for name in await self._members_from("schedule-index", start)]

    async def _members_from(self, index: str, start: str) -> list[str]:
        """Those that begin so."""
        found: list[str] = []
        first, end = f"[{start}", f"({start[:-1]}{chr(ord(start[-1]) + 1)}"
        while True:
            range_ = (b"BYLEX", b"LIMIT", 0, PAGE)
            page = await self._insist(pack((b"ZRANGE", self.keys.prefix + index, first, end, *range_)))
            found += [name.decode() for name in page]
            if len(page) < PAGE:
                return found
            first = f"({found[-1]}"

    async def erase_half_import(self, user_id: str) -> None:
        """Of an import that is to be given up, what a purge would not find: it has tasks whose places never came."""
        user, prefix = encode_user(user_id), self.keys.prefix
        if await self._insist(pack((b"HGET", f"{prefix}frozen:{user}", b"why"))) != b"import":
            return
        async for page in self.names_of(user_id):
            found = [f"{prefix}{kind}:{user}:{name}" for kind, name in page if kind in _PLACELESS]
            if found:
                await self._insist(pack((b"UNLINK", *found)))
