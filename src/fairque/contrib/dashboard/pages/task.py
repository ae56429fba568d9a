"""A task: what became of it so far, why it waits, what it waits for, and how it failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import msgspec

from fairque import (
    ConfigError,
    Explanation,
    FairqueError,
    QueueUnavailable,
    SealError,
    StoreError,
    Streamed,
    TaskGraph,
    TaskHandle,
    TaskInfo,
    TaskMoment,
    TaskNode,
    TaskQueue,
    TaskState,
)
from fairque.contrib.dashboard.look import Look
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.pages.user import REASONS
from fairque.contrib.dashboard.viewer import Viewer
from fairque.contrib.dashboard.words import brief

__all__ = ["Step", "Task", "TaskPage"]

MOST_SHOWN = 2000
"""Characters of a result, or of the message of an error: a page costs little, whatever tasks carry."""
MOST_OF_TRACEBACK = 4000
"""Characters at its end."""
MOST_TOLD = 5
"""Errors that are told with their tracebacks, the latest; of those before there is a line each."""
MOST_LINKED = 60
MOST_REMEMBERED = 100


class Step(NamedTuple):
    """One moment in the life of a task. `kind` names its shape; `took` are the seconds since the one before."""

    at: float
    what: str
    kind: str
    took: float | None


class Task(NamedTuple):
    """All that one page tells of a task. `result` is a text for people, None where there is none."""

    info: TaskInfo
    graph: TaskGraph
    explanation: Explanation | None
    result: str | None


class TaskPage(Page[Task]):
    """One task."""

    name, path, title = "task", "task", "Task"
    arguments: ClassVar = ("user", "task")
    is_for_customers = True
    parts = ("state", "timeline", "reasons", "attempts", "links", "result")

    def __init__(self, queue: TaskQueue, look: Look) -> None:
        super().__init__(queue, look)
        self._results: dict[tuple[object, ...], str] = {}

    def heading(self, *about: str) -> str:
        return brief(about[1])

    async def read(self, *about: str) -> Task:
        user_id, task_id = about
        handle = self.queue.handle(user_id, task_id)
        info = await handle.info()
        graph = await self.queue.graph(user_id, task_id, limit=MOST_LINKED)
        explanation = None if info.state.ended else await self.queue.explain(user_id, task_id)
        return Task(info, graph, explanation, await self._result(handle, info))

    async def _result(self, handle: TaskHandle[Any], info: TaskInfo) -> str | None:
        """Read once for each end: it may be large, and an open page is looked at each second."""
        if info.state is not TaskState.FINISHED:
            return None
        end = (info.user_id, info.task_id, info.started_at, info.ended_at)
        if end not in self._results:
            self._results[end] = await _shown(handle)
            if len(self._results) > MOST_REMEMBERED:
                del self._results[next(iter(self._results))]
        return self._results[end]

    def shown(self, seen: Task, viewer: Viewer) -> Mapping[str, Any]:
        explanation = seen.explanation
        held = explanation.waiting if explanation is not None else ()
        return {
            "told": MOST_TOLD,
            "longest": MOST_SHOWN,
            "longest_traceback": MOST_OF_TRACEBACK,
            "steps": list(_steps(seen.info.timeline)),
            "reasons": [each.text if viewer.is_operator else REASONS[each.reason] for each in held],
            "own": seen.graph.tasks[0],
            "before": _linked(seen.graph, "dependency", behind=False),
            "behind": _linked(seen.graph, "dependency", behind=True),
            "children": _linked(seen.graph, "child", behind=True),
        }


def _linked(graph: TaskGraph, kind: str, *, behind: bool) -> list[TaskNode]:
    """Those next to the task itself."""
    nodes = {node.task_id: node for node in graph.tasks}
    own = graph.tasks[0].task_id
    pairs = ((link.before, link.after) for link in graph.links if link.kind == kind)
    return [nodes[after if behind else before] for before, after in pairs if (before if behind else after) == own]


async def _shown(handle: TaskHandle[Any]) -> str:
    """As JSON where it can be that."""
    try:
        value = await handle.result(0)
    except (QueueUnavailable, StoreError, ConfigError):  # of the server: another look may find it
        raise
    except SealError:
        return "(it is sealed, and cannot be read here)"
    except FairqueError as exc:
        return f"({exc})"
    if isinstance(value, Streamed):
        return f"({value.chunks:,} chunks)"
    try:
        text = msgspec.json.format(msgspec.json.encode(value)).decode()
    except (TypeError, ValueError, msgspec.MsgspecError):
        text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text):,} characters)"


_KINDS = {"enqueued": "queued", "due": "scheduled", "expires": "scheduled", "attempt failed": "failed"}
_WHAT = {
    "enqueued": "put in",
    "queued": "came to its place in line",
    "due": "may start",
    "expires": "is given up, if it has not begun",
}


def _steps(moments: Sequence[TaskMoment]) -> Iterator[Step]:
    before = None
    for moment in moments:
        what = _WHAT.get(moment.what, moment.what)
        if moment.what in ("started", "attempt failed"):
            what = f"attempt {moment.attempt} {'started' if moment.what == 'started' else 'failed'}"
        took = moment.at - before if before is not None else None
        yield Step(moment.at, what, _KINDS.get(moment.what, moment.what), took)
        before = moment.at
