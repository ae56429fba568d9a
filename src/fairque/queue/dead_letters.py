"""Dead letters: failed tasks that are kept, to be looked at, requeued or discarded."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import msgspec

from fairque.codec.codec import Sealer
from fairque.errors import InvalidInput, UnknownTask
from fairque.models import FailureKind
from fairque.redis.keys import decode_user, encode_user
from fairque.redis.store import Store
from fairque.tasks.message import name_in
from fairque.tasks.sealed import read_record

__all__ = ["DeadLetter", "DeadLetters"]

PAGE = 100
MAX_LIMIT = 1000


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


class DeadLetters:
    """The dead letters of a queue.

    Args:
        store: Where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, user_id: str | None, limit: int, after: DeadLetter | None) -> list[DeadLetter]:
        if not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
            raise InvalidInput(f"limit must be 1 to {MAX_LIMIT}, not {limit!r}")
        after_ms, member = 0, ""
        if after is not None:
            after_ms = round(after.at * 1000)
            member = after.task_id if user_id is not None else f"{encode_user(after.user_id)}:{after.task_id}"
        found = await self._store.dead_letters(user_id, limit, after_ms, member)
        return [_letter(self._store.sealer, *entry) for entry in found]

    async def requeue(self, user_id: str, task_id: str) -> None:
        """Raises `UnknownTask` when it is not a dead letter."""
        if not (await self._store.requeue(user_id, [task_id]))[0]:
            raise _no_letter(user_id, task_id)

    async def discard(self, user_id: str, task_id: str) -> None:
        """Raises `UnknownTask` when it is not a dead letter."""
        if not (await self._store.discard(user_id, [task_id]))[0]:
            raise _no_letter(user_id, task_id)

    async def requeue_all(self, user_id: str | None, matches: Callable[[DeadLetter], bool], limit: int) -> int:
        """Requeue at most `limit` that match, the oldest first; none twice, however soon it fails again."""
        if not isinstance(limit, int) or limit < 1:
            raise InvalidInput(f"limit must be at least 1, not {limit!r}")
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


def _letter(sealer: Sealer | None, user: bytes, task_id: bytes, ms: bytes, record: bytes, body: bytes) -> DeadLetter:
    ended = read_record(sealer, decode_user(user), task_id.decode(), record)[1] if record else None
    return DeadLetter(
        user_id=decode_user(user),
        task_id=task_id.decode(),
        name=name_in(body),
        at=int(ms) / 1000,
        attempt=ended.attempt if ended else 0,
        kind=(ended.kind if ended else None) or FailureKind.ERROR,
        type_name=ended.type_name if ended else "",
        message=ended.message if ended else "",
    )


def _no_letter(user_id: str, task_id: str) -> UnknownTask:
    return UnknownTask(f"user {user_id!r} has no dead letter {task_id!r}")
