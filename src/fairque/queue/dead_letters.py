"""Dead letters: failed tasks that are kept, to be looked at, requeued or discarded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import groupby
from typing import NamedTuple, TypeAlias

import msgspec

from fairque.checks import check_count, is_text
from fairque.codec.codec import Sealer
from fairque.errors import InvalidInput, QueueFull, QueueUnavailable, UnknownTask, UserFrozen
from fairque.listed import Listed
from fairque.models import FailureKind
from fairque.redis.keys import decode_user, encode_user
from fairque.redis.missing import noting_missing
from fairque.redis.store import Store
from fairque.tasks.sealed import read_record

__all__ = ["Act", "DeadGroup", "DeadGroups", "DeadLetter", "DeadLetters", "DeadStep", "group_key"]

Act: TypeAlias = Callable[[str, list[str]], Awaitable[list[bool]]]
"""What is done to dead letters of a user; says of each whether it was one."""
PAGE = 100
MAX_LIMIT = 1000
MAX_KEY_BYTES = 200


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A task that failed for good. `at` is in seconds since the epoch; pass the last letter of a page as `after`."""

    user_id: str
    task_id: str
    name: str
    at: float
    attempt: int
    kind: FailureKind
    type_name: str
    message: str


class DeadGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters with one kind of error. Times are in seconds since the epoch.

    `key` names the group; `kind` and `type_name` (the class of the error, at most about 190 bytes of it) are in it.
    """

    key: str
    kind: FailureKind
    type_name: str
    count: int
    oldest_at: float
    latest_at: float


class DeadGroups(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters by the kind of their error, the most frequent first.

    `others` are those of kinds that are not counted by themselves: of a user, 20 kinds are, of a queue 500. `missing`
    are partitions that did not answer, whose letters are not counted.
    """

    groups: tuple[DeadGroup, ...]
    others: int
    total: int
    missing: tuple[int, ...] = ()


class DeadStep(msgspec.Struct, frozen=True, kw_only=True):
    """How far a step through a group of dead letters came.

    `done` letters were requeued, or discarded. `kept` stay, as the backlog of their user is full. About `left` are
    still to come; `after` goes on with these, None at the end. `missing` are partitions that did not answer: what they
    have of the group is for a later walk from the beginning.
    """

    done: int
    kept: int
    left: int
    after: str | None
    missing: tuple[int, ...] = ()


class DeadLetters:
    """The dead letters of a queue.

    Args:
        store: Where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(
        self, user_id: str | None, limit: int, after: DeadLetter | None, group: str = ""
    ) -> Listed[DeadLetter]:
        if not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
            raise InvalidInput(f"limit must be 1 to {MAX_LIMIT}, not {limit!r}")
        after_ms, member = 0, ""
        if after is not None:
            after_ms = round(after.at * 1000)
            member = after.task_id if user_id is not None else f"{encode_user(after.user_id)}:{after.task_id}"
        with noting_missing() as missing:
            found = await self._store.dead_letters(user_id, limit, after_ms, member, group)
        return Listed((_letter(self._store.sealer, *entry) for entry in found), missing.numbers)

    async def requeue(self, user_id: str, task_id: str) -> None:
        """Raises `UnknownTask` when it is not a dead letter."""
        if not (await self._store.requeue(user_id, [task_id]))[0]:
            raise _no_letter(user_id, task_id)

    async def discard(self, user_id: str, task_id: str) -> None:
        """Raises `UnknownTask` when it is not a dead letter."""
        if not (await self._store.discard(user_id, [task_id]))[0]:
            raise _no_letter(user_id, task_id)

    async def groups(self, user_id: str | None) -> DeadGroups:
        """See `TaskQueue.dead_groups`."""
        with noting_missing() as missing:
            _, total, rows = await self._store.dead_kinds(user_id)
        groups = sorted((_group(*row) for row in rows), key=lambda group: (-group.count, group.key))
        counted = sum(group.count for group in groups)
        others = max(0, total - counted)
        return DeadGroups(groups=tuple(groups), others=others, total=total, missing=missing.numbers)

    async def step(
        self,
        act: Act,
        user_id: str | None,
        key: str,
        limit: int,
        after: str | None,
    ) -> DeadStep:
        """Up to `limit` letters of a group, the oldest first, of those that were there at the first step."""
        check_count("limit", limit, 1, MAX_LIMIT)
        with noting_missing() as missing:
            step = await self._step(act, user_id, key, limit, after)
        return msgspec.structs.replace(step, missing=missing.numbers)

    async def _step(self, act: Act, user_id: str | None, key: str, limit: int, after: str | None) -> DeadStep:
        place = _Place.of(after) if after is not None else _Place((await self._store.dead_kinds(user_id))[0], 0, "")
        rows = await self._store.dead_letters(user_id, limit, place.ms, place.member, key)
        letters = [_Row(decode_user(user), task_id.decode(), int(ms)) for user, task_id, ms, _, _ in rows]
        chosen = [row for row in letters if row.ms <= place.until_ms]
        done, kept = 0, list[_Row]()
        for owner, of_owner in groupby(sorted(chosen), key=lambda row: row.user_id):
            its = list(of_owner)
            try:
                done += sum(await act(owner, [row.task_id for row in its]))
            except (QueueFull, UserFrozen):
                kept += its
        if len(chosen) < limit:
            return DeadStep(done=done, kept=len(kept), left=0, after=None)
        last = chosen[-1]
        member = last.task_id if user_id is not None else f"{encode_user(last.user_id)}:{last.task_id}"
        there = await self._store.letters_between(user_id, key, last.ms, place.until_ms)
        left = max(0, there - sum(row.ms == last.ms for row in kept))
        return DeadStep(done=done, kept=len(kept), left=left, after=str(_Place(place.until_ms, last.ms, member)))

    async def requeue_all(self, user_id: str | None, matches: Callable[[DeadLetter], bool], limit: int) -> int:
        """Requeue at most `limit` that match, the oldest first; none twice, however soon it fails again."""
        if not isinstance(limit, int) or limit < 1:
            raise InvalidInput(f"limit must be at least 1, not {limit!r}")
        with noting_missing() as missing:
            requeued = await self._requeue_all(user_id, matches, limit)
        if missing.numbers:
            away = ", ".join(map(str, missing.numbers))
            raise QueueUnavailable(f"{requeued} requeued; no answer from partitions {away}: call again for these")
        return requeued

    async def _requeue_all(self, user_id: str | None, matches: Callable[[DeadLetter], bool], limit: int) -> int:
        requeued, after, seen = 0, None, set[tuple[str, str]]()
        while requeued < limit:
            letters = await self.page(user_id, PAGE, after)
            if not letters:
                break
            after = letters[-1]
            fresh = [letter for letter in letters if (letter.user_id, letter.task_id) not in seen and matches(letter)]
            chosen = fresh[: limit - requeued]
            seen.update((letter.user_id, letter.task_id) for letter in chosen)
            for owner, of_owner in groupby(chosen, key=lambda letter: letter.user_id):
                ids = [letter.task_id for letter in of_owner]
                requeued += sum(await self._store.requeue(owner, ids))
        return requeued


class _Row(NamedTuple):
    user_id: str
    task_id: str
    ms: int


class _Place(NamedTuple):
    """Where a step through a group begins. `until_ms`: when the first one did; what failed since is left alone."""

    until_ms: int
    ms: int
    member: str

    @classmethod
    def of(cls, text: str) -> _Place:
        """Raises `InvalidInput`."""
        until, _, rest = text.partition(":") if is_text(text) else ("", "", "")
        ms, _, member = rest.partition(":")
        if not all(part.isascii() and part.isdigit() and len(part) <= 15 for part in (until, ms)) or not member:
            raise InvalidInput(f"after must be that of the step before, not {text!r}")
        return cls(int(until), int(ms), member)

    def __str__(self) -> str:
        return f"{self.until_ms}:{self.ms}:{self.member}"


def group_key(group: DeadGroup | str) -> str:
    """Raises `InvalidInput` for what names no group."""
    key = group.key if isinstance(group, DeadGroup) else group
    if not is_text(key) or key.partition(" ")[0] not in set(FailureKind) or len(key.encode()) > MAX_KEY_BYTES:
        raise InvalidInput(f"group must be one of dead_groups(), or its key, not {group!r}")
    return key


def _group(key: str, count: int, oldest_ms: int, latest_ms: int) -> DeadGroup:
    kind, _, type_name = key.partition(" ")
    return DeadGroup(
        key=key,
        kind=FailureKind(kind) if kind in set(FailureKind) else FailureKind.ERROR,
        type_name=type_name,
        count=count,
        oldest_at=oldest_ms / 1000,
        latest_at=latest_ms / 1000,
    )


def _letter(sealer: Sealer | None, user: bytes, task_id: bytes, ms: bytes, record: bytes, name: bytes) -> DeadLetter:
    ended = read_record(sealer, decode_user(user), task_id.decode(), record)[1] if record else None
    return DeadLetter(
        user_id=decode_user(user),
        task_id=task_id.decode(),
        name=name.decode("utf-8", "replace"),
        at=int(ms) / 1000,
        attempt=ended.attempt if ended else 0,
        kind=(ended.kind if ended else None) or FailureKind.ERROR,
        type_name=ended.type_name if ended else "",
        message=ended.message if ended else "",
    )


def _no_letter(user_id: str, task_id: str) -> UnknownTask:
    return UnknownTask(f"user {user_id!r} has no dead letter {task_id!r}")
