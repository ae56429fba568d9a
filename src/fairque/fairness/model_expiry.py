"""Tasks of the model that begin by a moment, or not at all."""

from __future__ import annotations

import math

from fairque.fairness.choice import encoded
from fairque.fairness.model_task import ModelTask
from fairque.fairness.sorted_set import SortedSet

__all__ = ["Expiry"]


class Expiry:
    """Those that have not begun, by user.

    Attributes:
        users: Users → the ms of their first task, or of their last turn where they have more that is over.
        tasks: Of each user, ids → the ms by which they must begin.
    """

    def __init__(self) -> None:
        self.users: SortedSet[str] = SortedSet(encoded)
        self.tasks: dict[str, SortedSet[str]] = {}

    def note(self, task: ModelTask) -> None:
        self.tasks.setdefault(task.user_id, SortedSet(str)).put(task.task_id, task.expires_ms)
        self.users.put(task.user_id, min(task.expires_ms, self.users.scores.get(task.user_id, math.inf)))

    def forget(self, task: ModelTask) -> None:
        """It has begun, or ended."""
        of_user = self.tasks.get(task.user_id, SortedSet(str))
        if task.task_id in of_user:
            of_user.drop(task.task_id)
            self._go_on(task.user_id, self.users.scores[task.user_id])

    def take_due(self, now_ms: int) -> list[tuple[str, str]]:
        """Those whose time is over, by turns of users, who have had theirs then."""
        due = []
        for user_id in self.users.up_to(now_ms, len(self.users)):
            of_user = self.tasks[user_id]
            for task_id in of_user.up_to(now_ms, len(of_user)):
                due.append((user_id, task_id))
                of_user.drop(task_id)
            self._go_on(user_id, now_ms)
        return due

    def _go_on(self, user_id: str, since_ms: float) -> None:
        if self.tasks[user_id]:
            self.users.put(user_id, max(since_ms, self.tasks[user_id].lowest_score()))
        else:
            del self.tasks[user_id]
            self.users.drop(user_id)
