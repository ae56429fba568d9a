"""`UserView`: a user at one glance, from what is its own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec

from fairque.models import TaskInfo, TaskState, UserInfo
from fairque.queue.dead_letters import DeadGroups, DeadLetters
from fairque.queue.listing import list_tasks
from fairque.queue.usage import UsageHour, usage_days, usage_in
from fairque.queue.user_status import UserStatus
from fairque.redis.keys import encode_user
from fairque.redis.store import Store

__all__ = ["UserView", "look_at_user"]


class UserView(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a user, of its own: nothing in it counts or names others, or depends on them but for `user.tag`.

    `status` says what of its policy holds it back now, and until when; of a `max_share` nothing, as that is a part of
    the slots of all. `running` are the tasks that began first, `usage` the last hours in which it used anything.
    """

    user: UserInfo
    status: UserStatus
    running: tuple[TaskInfo, ...]
    usage: tuple[UsageHour, ...]
    dead: DeadGroups


async def look_at_user(store: Store, letters: DeadLetters, user_id: str, hours: int, limit: int) -> UserView:
    """See `TaskQueue.user_view`."""
    since = datetime.now(UTC) - timedelta(hours=hours - 1)
    days = usage_days(since)
    user, running, used, dead = await asyncio.gather(
        store.user(user_id),
        list_tasks(store, user_id, TaskState.STARTED, limit, None),
        store.usage(encode_user(user_id), days),
        letters.groups(user_id),
    )
    return UserView(
        user=user,
        status=UserStatus.of(user, None, user.at),
        running=tuple(running),
        usage=tuple(usage_in(used, days, since)),
        dead=dead,
    )
