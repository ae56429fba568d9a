"""Callbacks of a task made into messages, which are kept with it and put in at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairque.checks import MAX_ID_BYTES
from fairque.errors import InvalidInput
from fairque.models import Priority
from fairque.redis.delivery import NewCallback
from fairque.tasks.message import encode_body
from fairque.tasks.options import TaskOptions, start_of

__all__ = ["callbacks_of"]

_ROOM = 4096  # in a message, for how its task ended
_LONGEST_ENDING = 48  # bytes that the id of a callback has more than that of its task


def callbacks_of(
    callbacks: Sequence[tuple[str, Any]], user_id: str, id_bytes: int, nonce: bytes, max_bytes: int
) -> tuple[NewCallback, ...]:
    """By kind and task, of a task or batch whose id has so many bytes.

    Raises `InvalidInput` for those of another user, and for an id that leaves no room for theirs.
    """
    if not callbacks:
        return ()
    with_ending = id_bytes + _LONGEST_ENDING
    if with_ending > MAX_ID_BYTES:
        raise InvalidInput(
            f"a task_id of {id_bytes} bytes leaves no room for the ids of callbacks: {MAX_ID_BYTES} in all"
        )
    return tuple(_callback(kind, each, user_id, with_ending, nonce, max_bytes) for kind, each in callbacks)


def _callback(kind: str, task: Any, user_id: str, id_bytes: int, nonce: bytes, max_bytes: int) -> NewCallback:
    options: TaskOptions = task.task_options
    if options.user_id not in (None, user_id):
        raise InvalidInput(f"{kind} {task!r} is of another user than {user_id!r}, whose end it is about")
    priority = options.priority or Priority.NORMAL
    cost = options.cost if options.cost is not None else 1.0
    body = encode_body(task.message(), nonce, cost, priority, max_bytes - _ROOM)
    after = callbacks_of(options.callbacks(), user_id, id_bytes, nonce, max_bytes)
    return NewCallback(kind, int(priority), start_of(options), body, after)
