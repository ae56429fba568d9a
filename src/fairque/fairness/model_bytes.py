"""Bytes of the users of the model: what their tasks and batches take, where `max_bytes` says how much they may."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from fairque.everybody import EVERYONE
from fairque.fairness.model_batch import ModelBatch
from fairque.fairness.model_policies import Policies
from fairque.fairness.model_task import ModelTask

__all__ = ["Bytes"]

SPAN_MS = 10_000
"""What has expired counts until the end of as much time."""


class Bytes:
    """What counts, and for whom counting of what was there before is under way.

    Args:
        tasks: All that something is left of, that have ended or not.
        batches: All that are remembered.

    Attributes:
        counting: Users, and ``"*"``, whose limit came since the last count was finished.
    """

    def __init__(
        self,
        policies: Policies,
        tasks: Callable[[], Iterable[ModelTask]],
        batches: Callable[[], Iterable[ModelBatch]],
    ) -> None:
        self.counting: set[str] = set()
        self._policies = policies
        self._tasks = tasks
        self._batches = batches
        self._late: list[tuple[str, float, int]] = []  # users, ms until when, and bytes of what has expired

    def limit(self, user_id: str) -> int | None:
        return self._policies.of(user_id).max_bytes

    def change_limit(self, user_id: str, before: int | None, now: int | None) -> None:
        """Of a user, or of everybody. A count begins anew where a limit comes; that of everybody may stand behind."""
        if (before is None) == (now is None):
            return
        if user_id == EVERYONE and now is None:
            return
        self._late = [late for late in self._late if user_id not in (late[0], EVERYONE)]
        if user_id == EVERYONE or self.limit(user_id) is not None:
            self.counting.add(user_id)

    def is_counting(self, user_id: str) -> bool:
        own = self._policies.own.get(user_id)
        has_own = own is not None and own.max_bytes is not None
        return user_id in self.counting or (not has_own and EVERYONE in self.counting)

    def used(self, user_id: str) -> int:
        """Of what has expired, as long as it counts."""
        of_tasks = sum(task.bytes for task in self._tasks() if task.user_id == user_id)
        of_batches = sum(batch.bytes for batch in self._batches() if batch.user_id == user_id)
        return of_tasks + of_batches + sum(late[2] for late in self._late if late[0] == user_id)

    def has_room(self, user_id: str, asked: int) -> bool:
        limit = self.limit(user_id)
        return limit is None or asked <= 0 or self.used(user_id) + asked <= limit

    def expire(self, user_id: str, at_ms: float, size: int) -> None:
        """Something is gone at that time, which nobody saw."""
        until_ms = math.ceil(at_ms / SPAN_MS) * SPAN_MS if at_ms < math.inf else math.inf
        self._late.append((user_id, until_ms, size))

    def let_time_pass(self, now_ms: int) -> None:
        self._late = [late for late in self._late if late[1] > now_ms]

    def forget(self, user_id: str) -> None:
        """All that counted is erased."""
        self._late = [late for late in self._late if late[0] != user_id]
