"""What time it is for a queue: that of the server, where what is shown beside it comes from."""

from __future__ import annotations

from fairque import TaskQueue

__all__ = ["now_of"]


async def now_of(queue: TaskQueue, user_id: str | None = None) -> float:
    """In seconds since the epoch. Of a user: where that lives, whatever other partitions say."""
    return (await queue.stats()).at if user_id is None else (await queue.user(user_id)).at
