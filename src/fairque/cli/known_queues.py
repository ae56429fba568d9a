"""Whether a queue is there at all, and which are: a name with a typo is no empty queue."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from fairque import FairqueError, TaskQueue
from fairque.cli.errors import FAILED, CommandError

__all__ = ["UnknownQueue", "check_is_known", "missing"]

_MOST_NAMED = 3


class UnknownQueue(CommandError):
    """Nobody has put anything into it, and no worker has served it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint, FAILED)


async def check_is_known(queue: TaskQueue) -> None:
    """Raises `UnknownQueue`."""
    if not await queue.reader.is_known():
        raise await missing(queue)


async def missing(queue: TaskQueue) -> UnknownQueue:
    """With the names of others that it might be meant for."""
    try:
        names = await queue.reader.some_queues()
    except FairqueError:  # the user of Redis may not be allowed to look
        names = []
    if queue.name in names:
        return UnknownQueue(f"queue {queue.name!r} has lost its state and its settings", "see fairque doctor")
    return UnknownQueue(f"there is no queue {queue.name!r} at {queue.connector.safe_url}", _hint(queue.name, names))


def _hint(name: str, names: Sequence[str]) -> str:
    if near := difflib.get_close_matches(name, names, _MOST_NAMED):
        return f"did you mean --queue {' or '.join(map(repr, near))}?"
    if names:
        more = ", …" if len(names) > _MOST_NAMED else ""
        return f"name another by --queue: there is {', '.join(map(repr, names[:_MOST_NAMED]))}{more}"
    return "a queue begins with its first task or worker; see --url and --queue"
