"""Whether the queues of a test contradict themselves at its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fairque.doctor.doctor import examine
from fairque.redis.backend import Backend
from fairque.redis.connector import DEFAULT_TIMEOUT
from fairque.redis.keys import queue_of
from fairque.redis.store import Store

if TYPE_CHECKING:
    from fairque import QueueCheck
    from tests.support.servers import Server


def contradictions(server: Server, queue_name: str) -> list[str]:
    """What `queue.check()` finds in the queues of this name, and those below it; for code without a loop."""
    names = {queue_of(key.encode()) for key in server.keys(queue_name)}
    return [text for name in sorted(names) for text in _told(asyncio.run(_check(server.url, name)))]


async def _check(url: str, name: str) -> QueueCheck:
    backend = Backend(url, name, timeout=DEFAULT_TIMEOUT, given={})
    store = Store(backend, patience=DEFAULT_TIMEOUT)
    try:
        return await examine(store)
    finally:
        await store.close()
        await backend.connector.close()


def _told(check: QueueCheck) -> list[str]:
    return [
        f"{each.kind} at {each.key!r} (user {each.user_id}, task {each.task_id}): {each.detail}"
        for each in check.findings
    ]
