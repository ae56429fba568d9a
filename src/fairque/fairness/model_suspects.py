"""Suspects of the model: tasks whose worker died, which run apart from each other until one of them dies alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fairque.fairness.model_task import Holding, LaneKey, ModelTask

__all__ = ["FOR_EVER_MS", "Room", "Suspects", "time_alone_ms"]

SIGN_MS = 20_000
"""Within which a worker that lives gives a sign."""
PATIENCE_MS = 30_000
"""For so long a busy worker takes nothing new, to become empty for a suspect."""
SHARE = 0.1
"""Of all slots for suspects, and of the time of all workers for those that run alone."""
KNOWN_MS = 60_000
"""For so long a worker is remembered."""
OWN_LEASES = 3
"""After which a worker has lost what it does not renew, while it renews the rest."""
LONGEST_ALONE = 6
"""Leases."""
FOR_EVER_MS = 10**12


@dataclass(frozen=True, slots=True)
class Room:
    """The one worker of all in which a suspect runs beside nothing else, or that is to become empty for one.

    Attributes:
        opens_ms: When there may be another one.
        lane: That for which it becomes empty; None: one runs.
    """

    since_ms: int = 0
    ends_ms: int = 0
    opens_ms: int = 0
    lane: LaneKey | None = None
    worker: str = ""

    def is_awaited(self, now_ms: int) -> bool:
        """It is to become empty."""
        return self.lane is not None and self.ends_ms > now_ms


class Suspects:
    """Which of the tasks that were lost are out since less than a lease, and which worker one of them has for itself.

    Attributes:
        recent: Users and ids → the ms until which others wait for them.
        room: Where one runs alone, or ran last.
        signs: Workers → the ms of their last sign of life.
        renewals: The same of their last renewal.
    """

    def __init__(self) -> None:
        self.recent: dict[tuple[str, str], int] = {}
        self.room: Room | None = None
        self.signs: dict[str, int] = {}
        self.renewals: dict[str, int] = {}

    # Of all

    def open_at_ms(self, now_ms: int, slots: int) -> int:
        """When one more may be handed out at the latest; not later than now: at once."""
        recent = [until_ms for until_ms in self.recent.values() if until_ms > now_ms]
        return min(recent) if len(recent) >= max(1, math.floor(slots * SHARE)) else 0

    def may_have_it(self, now_ms: int, worker: str, holds: int, holding: Holding, lease_ms: int) -> bool:
        """What a worker may have to itself, it does not take over from itself."""
        if holding.worker != worker:
            return False
        if now_ms - holding.touched_ms < OWN_LEASES * lease_ms:
            return True
        return holds > 0 and self.renewals.get(worker, 0) < now_ms - lease_ms

    def let_time_pass(self, now_ms: int) -> None:
        self.recent = {key: until_ms for key, until_ms in self.recent.items() if until_ms > now_ms}
        self.renewals = {worker: at_ms for worker, at_ms in self.renewals.items() if at_ms >= now_ms - KNOWN_MS}

    def leave(self, worker: str) -> None:
        self.signs.pop(worker, None)
        self.renewals.pop(worker, None)

    # Of one

    @staticmethod
    def judged(task: ModelTask, holding: Holding, lease_ms: int) -> tuple[int, int]:
        """How often it was among several when they died, and alone, if the worker that has it is dead as well.

        One that never arrived has not run. When a worker died is known to half a lease.
        """
        if not task.is_suspect or task.received != task.attempt:
            return task.tried, task.deaths
        was_alone = lived_ms(task, holding, lease_ms) < task.alone_ms
        return task.tried + (not was_alone), task.deaths + was_alone

    # Alone

    def is_open(self, now_ms: int, holds: int) -> bool:
        """Whether one may run alone in a worker that has so much."""
        room = self.room
        return holds == 0 and (room is None or room.is_awaited(now_ms) or room.opens_ms <= now_ms)

    def awaiting(self, now_ms: int, worker: str) -> Room | None:
        """If this worker is to become empty."""
        room = self.room
        return room if room and room.worker == worker and room.is_awaited(now_ms) else None

    def note_room(self, now_ms: int, since_ms: int, ends_ms: int, lane: LaneKey | None, worker: str) -> None:
        """The next one comes when this one, of the time of all workers that live, has taken its share."""
        living = max(1, sum(at_ms >= now_ms - SIGN_MS for at_ms in self.signs.values()))
        rest_ms = math.ceil((ends_ms - since_ms) * max(0, 1 / SHARE / living - 1))
        self.room = Room(since_ms, ends_ms, ends_ms + rest_ms, lane, worker)

    def take_room(self, now_ms: int, worker: str, alone_ms: int) -> None:
        """The time in which it became empty counts."""
        awaited = self.awaiting(now_ms, worker)
        self.note_room(now_ms, awaited.since_ms if awaited else now_ms, now_ms + alone_ms, None, worker)

    def close_room(self, now_ms: int, worker: str) -> None:
        """What ran alone has ended."""
        room = self.room
        if room and room.worker == worker and room.lane is None and room.ends_ms > now_ms:
            self.note_room(now_ms, room.since_ms, now_ms, None, worker)

    def ask_for_room(self, now_ms: int, worker: str, lane: LaneKey) -> None:
        self.note_room(now_ms, now_ms, now_ms + PATIENCE_MS, lane, worker)


def lived_ms(task: ModelTask, holding: Holding, lease_ms: int) -> float:
    """For how long it ran at most in the worker that has it, if that is dead."""
    return max(0, holding.touched_ms - task.started_ms) + lease_ms / 2


def time_alone_ms(task: ModelTask, holding: Holding, lease_ms: int) -> int:
    """It runs alone for longer than it ran until its last worker died, but not for ever."""
    return math.ceil(min(lived_ms(task, holding, lease_ms) + lease_ms, LONGEST_ALONE * lease_ms))
