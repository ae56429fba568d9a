"""Tasks of the model that wait for others: who is told when one ends, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from fairque.fairness.model_task import ModelTask
from fairque.models import TaskState

__all__ = ["Links"]

Key = tuple[str, str]


class Links:
    """Who waits for whom. Both are tasks of one user.

    Args:
        standing: The state of a task, None when nothing is known of it.
    """

    def __init__(self, standing: Callable[[Key], TaskState | None]) -> None:
        self.deferred: dict[Key, ModelTask] = {}
        self._standing = standing

    def unfinished(self, task: ModelTask) -> set[str] | None:
        """What it has to wait for; None: one of them did not finish, and so it does not run."""
        states = {need: self._standing((task.user_id, need)) for need in task.needs}
        verdicts = {need: verdict(task, state) for need, state in states.items()}
        if "end" in verdicts.values():
            return None
        waits = {need for need, does in verdicts.items() if does == "wait"}
        task.uses |= waits | {need for need, state in states.items() if state is TaskState.FINISHED}
        return waits

    def dependents(self, key: Key) -> list[ModelTask]:
        """Those that wait for a task, who came first first."""
        user_id, task_id = key
        found = [task for task in self.deferred.values() if task.user_id == user_id and task_id in task.needs]
        return sorted(found, key=lambda task: task.came)

    def waiting(self, user_id: str) -> int:
        return sum(task.user_id == user_id for task in self.deferred.values())

    def refusal(self, new: Mapping[Key, ModelTask]) -> str | None:
        """``unknown`` or ``cycle``; None when the tasks can be taken."""
        for task in new.values():
            needs = {(task.user_id, need) for need in task.needs}
            if not task.allow_unknown and any(need not in new and self._standing(need) is None for need in needs):
                return "unknown"
        waits = {key: task.needs for key, task in self.deferred.items()} | {k: task.needs for k, task in new.items()}
        return "cycle" if any(self._reaches(waits, key) for key in new) else None

    def _reaches(self, waits: Mapping[Key, Iterable[str]], start: Key) -> bool:
        user_id, end = start
        todo, seen = list(waits[start]), set[str]()
        while todo:
            task_id = todo.pop()
            if task_id == end:
                return True
            if task_id not in seen:
                seen.add(task_id)
                todo += waits.get((user_id, task_id), ())
        return False


def verdict(task: ModelTask, state: TaskState | None) -> Literal["go", "end", "wait"]:
    """What becomes of a task for one of those that it waits for. What was given up counts as canceled.

    One that failed may be requeued. One that was canceled cannot: only who waits for ids that are not known waits on.
    """
    if state is None or not state.ended:
        return "wait"
    if state is TaskState.FINISHED or task.on_failure == "run":
        return "go"
    waits = task.on_failure == "wait" and (state is TaskState.FAILED or task.allow_unknown)
    return "wait" if waits else "end"
