"""Callbacks of a task made into messages, which are kept with it and put in at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairque.checks import MAX_ID_BYTES
from fairque.codec.codec import Sealer
from fairque.errors import InvalidInput
from fairque.models import Priority
from fairque.redis.delivery import NewCallback
from fairque.tasks.message import encode_body
from fairque.tasks.options import TaskOptions, start_of
from fairque.tasks.sealed import seal_callback

__all__ = ["callbacks_of", "plain_callbacks", "seal_callbacks"]

CALLBACK_ROOM = 4096
"""In the message of a callback, for how its task ended."""
_LONGEST_ENDING = 48  # bytes that the id of a callback has more than that of its task
_NUMBERS = 36  # of these, what the scripts add to its kind


def callbacks_of(
    callbacks: Sequence[tuple[str, Any]],
    user_id: str,
    of: str,
    nonce: bytes,
    max_bytes: int,
    sealer: Sealer | None,
) -> tuple[NewCallback, ...]:
    """By kind and task, of the task or batch of this id. Raises what `plain_callbacks` and `seal_callbacks` raise."""
    if not callbacks:
        return ()
    made = plain_callbacks(callbacks, user_id, of, nonce, max_bytes, sealer)
    return seal_callbacks(sealer, user_id, of, made, max_bytes - CALLBACK_ROOM)


def plain_callbacks(
    callbacks: Sequence[tuple[str, Any]],
    user_id: str,
    of: str,
    nonce: bytes,
    max_bytes: int,
    sealer: Sealer | None,
    room: int = 0,
) -> tuple[NewCallback, ...]:
    """Without seals: the sealer hashes keys of limits alone. The id that they are of may get `room` bytes more.

    Raises `InvalidInput` for those of another user, and for an id that leaves no room for theirs.
    """
    if not callbacks:
        return ()
    id_bytes = len(of.encode()) + room
    if id_bytes + _LONGEST_ENDING > MAX_ID_BYTES:
        raise InvalidInput(
            f"a task_id of {id_bytes} bytes leaves no room for the ids of callbacks: {MAX_ID_BYTES} in all"
        )
    return tuple(
        _callback(kind, each, user_id, f"{of}.{kind}", nonce, max_bytes, sealer, room + _NUMBERS)
        for kind, each in callbacks
    )


def _callback(
    kind: str, task: Any, user_id: str, task_id: str, nonce: bytes, max_bytes: int, sealer: Sealer | None, room: int
) -> NewCallback:
    options: TaskOptions = task.task_options
    if options.user_id not in (None, user_id):
        raise InvalidInput(f"{kind} {task!r} is of another user than {user_id!r}, whose end it is about")
    priority = options.priority or Priority.NORMAL
    cost = options.cost if options.cost is not None else 1.0
    stand_in = sealer.stand_in(user_id) if sealer is not None else None
    body = encode_body(task.message(stand_in=stand_in), nonce, cost, priority, max_bytes - CALLBACK_ROOM)
    after = plain_callbacks(options.callbacks(), user_id, task_id, nonce, max_bytes, sealer, room)
    return NewCallback(kind, int(priority), start_of(options), body, after)


def seal_callbacks(
    sealer: Sealer | None, user_id: str, of: str, callbacks: Sequence[NewCallback], max_bytes: int
) -> tuple[NewCallback, ...]:
    """For the end of the task or batch of this id. Raises `UnknownKey` and `MessageTooLarge`."""
    return tuple(_sealed(sealer, user_id, f"{of}.{each.kind}", each, max_bytes) for each in callbacks)


def _sealed(sealer: Sealer | None, user_id: str, task_id: str, callback: NewCallback, max_bytes: int) -> NewCallback:
    body = seal_callback(sealer, user_id, task_id, callback.body, max_bytes)
    after = seal_callbacks(sealer, user_id, task_id, callback.after, max_bytes)
    return callback._replace(body=body, after=after)
