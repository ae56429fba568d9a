"""What the rules leave open: how much of what may be done one call does."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Literal

from fairque.fairness.model_batch import ModelBatch
from fairque.fairness.model_task import LaneKey, ModelTask

__all__ = ["Freedom"]


class Freedom:
    """Everything at once. Scripts do a bounded part of it at each call; a test says here which part they did."""

    def promotes(self, user_id: str, due: Sequence[ModelTask]) -> int:  # noqa: ARG002
        """How many of the user's tasks that are due come to their lanes, the first ones first."""
        return len(due)

    def steals(self, silent: Sequence[ModelTask], most: int) -> Sequence[ModelTask]:
        """Which deliveries of silent workers are taken over, at most so many, in which order."""
        return silent[:most]

    def asks_for_room(self, waiting: Sequence[LaneKey]) -> LaneKey | None:
        """For a suspect of which lane a busy worker is to become empty, if for any: not all lanes are looked at."""
        return waiting[0]

    def size(self, kind: Literal["body", "ends", "errors", "result"], task: ModelTask) -> int:  # noqa: ARG002
        """Bytes of what the queue itself has written of a task."""
        return 0

    def fits(self, task: ModelTask) -> bool:  # noqa: ARG002
        """Whether all that a task leaves was kept, while not all is counted that its user has."""
        return False

    def is_refused(self) -> bool:
        """Whether a call was, while not all is counted that a user has."""
        return False

    def unparks(self, users: Sequence[str]) -> int:
        """How many of the users whose time has come are looked at, the first ones first."""
        return len(users)

    def sweeps(self, users: Sequence[str]) -> int:
        """How many of those are looked at whom a change of the default may concern."""
        return len(users)

    def counts(self) -> bool:
        """Whether all that runs has been counted for the limits that are new."""
        return True

    def notes(self, users: frozenset[str], before: int, now_ms: int) -> int:  # noqa: ARG002
        """The ms that is noted as that of the last sign of life of workers who serve these users."""
        return now_ms

    def ends(self, silent: Sequence[frozenset[str]]) -> Sequence[frozenset[str]]:
        """Which of the lists of users end that nobody served for long."""
        return silent

    def releases(self, users: frozenset[str], left: Set[str]) -> Set[str]:  # noqa: ARG002
        """To which users of a list that has ended it is forgiven what they were served out of turn."""
        return set(left)

    def abandons(self, due: Sequence[ModelBatch]) -> Sequence[ModelBatch]:
        """Which batches that nobody closed in time are abandoned, in which order."""
        return due

    def cancels(self, task_ids: Set[str]) -> Sequence[str]:
        """In which order tasks are canceled that have none: those of a batch, and those that wait for others."""
        return sorted(task_ids)
