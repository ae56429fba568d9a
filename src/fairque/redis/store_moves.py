"""The scripts that move a user to another partition, each called of one of the two. Users are encoded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

from fairque.errors import StoreError, UserFrozen
from fairque.redis import arguments
from fairque.redis.arguments import Values
from fairque.redis.keys import decode_user, glob
from fairque.redis.replies import fields_in
from fairque.redis.store_transfer import TransferScripts

__all__ = ["Adopted", "Leftovers", "MoveScripts", "Moving"]

_TOTAL = "n:"


class Moving(NamedTuple):
    """How far the move of a user is, as one partition knows it.

    Attributes:
        record: '' or, once it has left for another one: that, the epoch and the token of the move.
        moved: '' or where it lives, and by the move of which epoch.
        why, token: Why it stands still and by whose will; '' where it does not.
        totals: What it adds to them where it arrives.
    """

    record: str
    moved: str
    why: str
    token: str
    totals: dict[str, int]


class Leftovers(NamedTuple):
    """Of an earlier move: what it left, or of one that came to nothing, of which this is the token, what it brought."""

    token: str


class Adopted(NamedTuple):
    """A move of which nobody was heard. `record` is as in `Moving`; of one that arrives, where it comes from."""

    user: str
    is_departing: bool
    record: str
    token: str


class MoveScripts(TransferScripts):
    """The part of a `Store` that is about moves between partitions."""

    async def arrive(self, user: str, token: str, source: int, passport: bytes) -> Leftovers | None:
        """Returns what an earlier move has left, which goes first.

        Raises `UserFrozen` where another one has it, `StoreError` where it has something here.
        """
        values, user_id = Values(), decode_user(user.encode())
        arriving = arguments.Arrive(user, token, source, values.put(passport))
        code, *rest = await self.call(arriving, values)
        if code == b"leaving":
            return Leftovers("")
        if code == b"other" and rest[0] == b"arrive":
            return Leftovers(rest[1].decode())
        if code == b"other":
            raise UserFrozen(f"user {user_id!r} stands still where it is to move: purge its import", user_id)
        if code == b"known":
            raise StoreError(f"user {user_id!r} has something where it is to move: run `fairque doctor`")
        return None

    async def note_manifest(self, user: str, token: str, first: int, names: Sequence[str]) -> bool:
        """`names` of keys without their prefix, the first to be erased last; False where it stands still no more."""
        return bool(await self.call(arguments.Manifest(user, token, first, names)) >= 0)

    async def depart(self, user: str, token: str, partition: int, epoch: int, taken: Mapping[str, int]) -> bool:
        """False where it stands still no more: nothing has changed."""
        return bool(await self.call(arguments.Depart(user, token, partition, epoch, taken)))

    async def erase(self, user: str, token: str, most: int) -> int:
        """1 when more is left, 0 at the end, -1 where there is no such move."""
        left: int = await self.call(arguments.Erase(user, token, most))
        return left

    async def adopt(self, most: int) -> list[Adopted]:
        """Moves that this one is to see to now."""
        found = await self.call(arguments.Adopt(most))
        return [
            Adopted(user.decode(), why == b"departing", record.decode(), token.decode())
            for user, why, record, token in found
        ]

    async def moving(self, user: str) -> Moving:
        record, moved, flat = await self.call(arguments.Moving(user))
        passport = flat.index(b"passport") if b"passport" in flat else len(flat)  # which is no text
        marker = fields_in([*flat[:passport], *flat[passport + 2 :]])
        totals = {name.removeprefix(_TOTAL): int(value) for name, value in marker.items() if name.startswith(_TOTAL)}
        return Moving(record.decode(), moved.decode(), marker.get("why", ""), marker.get("token", ""), totals)

    async def all_names_of(self, user: str) -> AsyncIterator[list[tuple[str, str, str]]]:
        """As `names_of`, with what is of keys of its limits: per key its name without the prefix, kind, and what stands
        behind the user, of a limit with what parts the two.
        """
        prefix = self.keys.prefix
        async for found in self._scan(b"SCAN", pattern=f"{glob(prefix)}*:{glob(user)}*"):
            names = [key.decode(errors="replace").removeprefix(prefix) for key in found]
            yield [(name, *split) for name in names if (split := _split(name, user)) is not None]


def _split(name: str, user: str) -> tuple[str, str] | None:
    kind, _, rest = name.partition(":")
    if not rest.startswith(user):
        return None
    behind = rest[len(user) :]
    if kind in ("limit", "limit-rate"):
        return (kind, behind) if behind[:1] in (":", "=") else None
    if behind[:1] not in ("", ":"):
        return None
    return kind, behind[1:]
