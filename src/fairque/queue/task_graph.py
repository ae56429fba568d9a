"""`TaskGraph`: what hangs on a task."""

from __future__ import annotations

from typing import Literal

import msgspec

from fairque.models import TaskState
from fairque.queue.ends import unknown
from fairque.redis.store import Store

__all__ = ["TaskGraph", "TaskLink", "TaskNode", "look_at_graph"]


class TaskNode(msgspec.Struct, frozen=True):
    """A task of a graph. `state` is None, and the name empty, where nothing is known of it any more."""

    task_id: str
    name: str
    state: TaskState | None


class TaskLink(msgspec.Struct, frozen=True):
    """From the task that goes before to the one behind it: it depends on that, or was put in by it."""

    before: str
    after: str
    kind: Literal["dependency", "child"]


class TaskGraph(msgspec.Struct, frozen=True):
    """A task, the first of `tasks`, and what hangs on it in either direction, near ones first.

    A link is known until the task behind it has ended; of a dead letter, for as long as that is kept. `is_part`: there
    is more.
    """

    tasks: tuple[TaskNode, ...]
    links: tuple[TaskLink, ...]
    is_part: bool


async def look_at_graph(store: Store, user_id: str, task_id: str, most: int) -> TaskGraph:
    """See `TaskQueue.graph`."""
    is_part, rows, pairs = await store.graph(user_id, task_id, most)
    nodes = [
        TaskNode(name.decode(), told.decode("utf-8", "replace"), TaskState(state.decode()) if state else None)
        for name, state, told in rows
    ]
    if nodes[0].state is None:
        raise unknown(user_id, task_id)
    links = [
        TaskLink(nodes[before - 1].task_id, nodes[after - 1].task_id, kind.decode()) for before, after, kind in pairs
    ]
    return TaskGraph(tuple(nodes), tuple(links), is_part)
