"""What is to happen to a schedule that is due: which slot fires, what was missed, when it goes on."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from fairque.schedule.spec import Spec
from fairque.schedule.timetable import Timetable

__all__ = ["FiringPlan", "jittered", "plan"]

MOST_COUNTED = 1000


class FiringPlan(NamedTuple):
    """`slot` fires, unless it is None. `missed` slots never will. `next_slot` is None after the last one."""

    slot: int | None
    missed: int
    next_slot: int | None


def plan(spec: Spec, timetable: Timetable, slot: int, due_ms: int, now_ms: int) -> FiringPlan:
    """For the slot that was to fire at `due_ms`. All that was missed after it is looked at together."""
    if now_ms - due_ms <= spec.misfire_grace_ms:
        return FiringPlan(slot, 0, timetable.after(slot))
    if spec.misfire == "once":
        return _once(spec, timetable, slot, now_ms)
    # What is late by less than the grace was not missed: it fires by itself, next.
    late = now_ms - spec.jitter_ms - spec.misfire_grace_ms - 1
    if spec.misfire == "skip":
        last = timetable.last(slot, late) or slot
        return FiringPlan(None, 1 + _count(timetable, slot, last), timetable.after(last))
    if _count(timetable, slot, late, spec.misfire_limit) < spec.misfire_limit:
        return FiringPlan(slot, 0, timetable.after(slot))
    first = timetable.last_few(slot, late, spec.misfire_limit)[0]
    return FiringPlan(None, 1 + _count(timetable, slot, first - 1), first)


def _once(spec: Spec, timetable: Timetable, slot: int, now_ms: int) -> FiringPlan:
    """The last slot stands for all."""
    last = timetable.last(slot, now_ms - spec.jitter_ms) or slot
    return FiringPlan(last, _count(timetable, slot - 1, last - 1), timetable.after(last))


def _count(timetable: Timetable, ms: int, until_ms: int, most: int = MOST_COUNTED) -> int:
    return sum(1 for _ in zip(range(most), timetable.slots(ms, until_ms), strict=False))


def jittered(schedule_id: str, spec: Spec, slot: int) -> int:
    """When the slot fires: later by a part of the jitter that everybody works out alike."""
    if not spec.jitter_ms:
        return slot
    digest = hashlib.sha256(f"{slot} {schedule_id}".encode()).digest()
    return slot + int.from_bytes(digest[:8], "big") % (spec.jitter_ms + 1)
