"""A task: what became of it so far, why it waits, what it waits for, and how it failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import msgspec

from fairque import Explanation, FairqueError, Streamed, TaskInfo, TaskState
from fairque.contrib.dashboard.drawing.graph import Node
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.pages.user import REASONS
from fairque.contrib.dashboard.viewer import Viewer
from fairque.contrib.dashboard.words import brief

__all__ = ["Step", "Task", "TaskPage"]

MOST_SHOWN = 2000
"""Characters of a result."""
MOST_LISTED = 50


class Step(NamedTuple):
    """One moment in the life of a task. `took` are the seconds since the one before."""

    at: float
    what: str
    kind: str
    took: float | None = None


class Task(NamedTuple):
    """All that one page tells of a task. `result` is a text for people, None where there is none."""

    info: TaskInfo
    explanation: Explanation | None
    result: str | None


class TaskPage(Page[Task]):
    """One task."""

    name, path, title = "task", "task", "Task"
    arguments: ClassVar[Sequence[str]] = ("user", "task")
    is_for_customers = True
    parts = ("state", "timeline", "reasons", "attempts", "links", "result")

    def heading(self, *about: str) -> str:
        return brief(about[1])

    async def read(self, *about: str) -> Task:
        user_id, task_id = about
        handle = self.queue.handle(user_id, task_id)
        info = await handle.info()
        if info.state is TaskState.FINISHED:
            return Task(info, None, await _result(handle))
        explanation = None if info.state.ended else await self.queue.explain(user_id, task_id)
        return Task(info, explanation, None)

    def shown(self, seen: Task, viewer: Viewer) -> Mapping[str, Any]:
        info, explanation = seen.info, seen.explanation
        held = explanation.waiting if explanation is not None else ()
        states = dict.fromkeys(info.dependencies) | info.dependency_states
        return {
            "steps": list(_steps(info)),
            "reasons": [each.text if viewer.is_operator else REASONS[each.reason] for each in held],
            "states": dict(list(states.items())[:MOST_LISTED]),
            "dependents": info.dependents[:MOST_LISTED],
            "children": info.children[:MOST_LISTED],
            "nodes": [Node(task_id, state or "unknown") for task_id, state in states.items()],
            "own": Node(info.task_id, info.state),
            "after": [Node(task_id, "deferred") for task_id in info.dependents],
        }


async def _result(handle: Any) -> str | None:
    """As JSON where it can be that."""
    try:
        value = await handle.result(0)
    except FairqueError as exc:
        return f"({exc})"
    if isinstance(value, Streamed):
        return f"({value.chunks} chunks)"
    try:
        text = msgspec.json.format(msgspec.json.encode(value)).decode()
    except (TypeError, ValueError, msgspec.MsgspecError):
        text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text):,} characters)"


def _steps(info: TaskInfo) -> Iterator[Step]:
    """From what is kept anyway, the oldest first."""
    points = [(info.queued_at, "put in line", "queued")]
    points.append((info.started_at, f"attempt {info.attempt} started", "started"))
    if info.state is TaskState.FAILED:
        points.append((info.ended_at, f"attempt {info.attempt} failed, and it was the last one", "failed"))
    elif info.state.ended:
        points.append((info.ended_at, str(info.state), info.state))
    elif info.due_at is not None:
        points.append((info.due_at, "may start", "scheduled"))
    earlier = [error for error in info.errors if info.state is not TaskState.FAILED or error.attempt < info.attempt]
    points += [(error.at, f"attempt {error.attempt} failed", "failed") for error in earlier]
    known = sorted((at, what, kind) for at, what, kind in points if at is not None)
    before = None
    for at, what, kind in known:
        yield Step(at, what, kind, at - before if before is not None else None)
        before = at
