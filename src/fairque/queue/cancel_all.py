"""Canceling many tasks of a user."""

from __future__ import annotations

import math

from fairque.checks import Duration, check_id, check_seconds, check_text
from fairque.errors import InvalidInput
from fairque.everybody import check_user
from fairque.models import TaskState
from fairque.redis.store import Store
from fairque.tasks.sealed import seal_reason

__all__ = ["cancel_all", "checked_matches"]

_PLACES = {
    TaskState.DEFERRED: ("deferred",),
    TaskState.SCHEDULED: ("scheduled",),
    TaskState.QUEUED: ("critical", "normal", "held"),
    TaskState.STARTED: ("critical-stream", "normal-stream"),
}
"""Where tasks are that have not ended, in the order in which they go on: what goes on meanwhile is met again."""
STEP = 200


async def cancel_all(
    store: Store,
    user_id: str,
    *,
    name: str | None,
    state: TaskState | str | None,
    older_than: Duration | None,
    reason: str,
) -> int:
    """In bounded steps, each of which leaves Redis consistent: it may be broken off at any point and called again."""
    places, older_ms = checked_matches(user_id, name, state, older_than, reason)
    sealed = seal_reason(store.sealer, user_id, "", reason)
    total = before_ms = 0
    while True:
        found = 0
        for place in places:
            start: str | None = ""
            while start is not None:
                start, canceled, before_ms = await store.cancel_step(
                    user_id, place, start, STEP, name or "", older_ms, before_ms, sealed
                )
                found += canceled
        total += found
        if not found:  # nothing went on to a place that had been passed
            return total


def checked_matches(
    user_id: str, name: str | None, state: TaskState | str | None, older_than: Duration | None, reason: str
) -> tuple[tuple[str, ...], int]:
    """The places to look at, and the age in ms. Raises `InvalidInput`."""
    check_user("user_id", user_id)
    if name is not None:
        check_id("name", name)
    check_text("the reason", reason)
    seconds = check_seconds("older_than", older_than) if older_than is not None else None
    return _places(state), math.ceil(1000 * seconds) if seconds is not None else -1


def _places(state: TaskState | str | None) -> tuple[str, ...]:
    if state is None:
        return tuple(place for places in _PLACES.values() for place in places)
    try:
        return _PLACES[TaskState(state)]
    except (ValueError, KeyError):
        raise InvalidInput(f"state must be {', '.join(_PLACES)}, not {state!r}: others have ended") from None
