"""What runs, on which worker, and since when."""

from __future__ import annotations

from fairque.models import RunningTask, RunningTasks
from fairque.redis.keys import decode_user
from fairque.redis.missing import noting_missing
from fairque.redis.store import Store

__all__ = ["MOST_LANES", "look_at_running"]

MOST_LANES = 2000


async def look_at_running(store: Store, worker_id: str, most: int) -> RunningTasks:
    """See `TaskQueue.running`."""
    with noting_missing() as missing:
        now_ms, is_part, rows = await store.running(worker_id, most, MOST_LANES)
    tasks = tuple(_running(*row) for row in rows)
    return RunningTasks(tasks=tasks, at=now_ms / 1000, is_sample=is_part, missing=missing.numbers)


def _running(user: bytes, task_id: bytes, name: bytes, attempt: int, started: bytes, worker: bytes) -> RunningTask:
    return RunningTask(
        user_id=decode_user(user),
        task_id=task_id.decode(),
        name=name.decode("utf-8", "replace"),
        attempt=attempt,
        started_at=int(started) / 1000 if started else None,
        worker=worker.decode("utf-8", "replace"),
    )
