"""Erasing everything that a user has."""

from __future__ import annotations

import time

import anyio
import msgspec

from fairque.redis.keys import encode_user
from fairque.redis.store import Store

__all__ = ["Purged", "purge"]

STEP = 200
LONGEST_PAUSE = 0.5


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """What a purge erased. `complete` is False when running tasks had not ended in time: call it again."""

    queued: int
    scheduled: int
    deferred: int
    dead_letters: int
    running: int
    xcom_namespaces: int
    schedules: int
    results: int
    complete: bool


async def purge(store: Store, user_id: str, seconds: float) -> Purged:
    """In bounded steps, each of which leaves Redis consistent: it may be broken off at any point and called again.

    Running tasks are told to stop, and waited for at most `seconds`.
    """
    await (await store.home_of(encode_user(user_id))).erase_half_import(user_id)
    totals = [0] * 7
    deadline = time.monotonic() + seconds
    pause = 0.01
    while True:
        *counts, more = await store.purge_step(user_id, STEP)
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        if not more or time.monotonic() > deadline:
            break
        if not any(counts):  # what is left is running
            await anyio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
    results = await store.erase_results(user_id)
    await store.purge_step(user_id, STEP)  # counters of tasks that ended meanwhile
    queued, scheduled, deferred, dead_letters, running, namespaces, schedules = totals
    return Purged(
        queued=queued,
        scheduled=scheduled,
        deferred=deferred,
        dead_letters=dead_letters,
        running=running,
        xcom_namespaces=namespaces,
        schedules=schedules,
        results=results,
        complete=not more,
    )
