"""What is written when a schedule is added, changed, paused or resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fairque.errors import InvalidInput
from fairque.redis.store_schedules import KEEP, StoredSchedule, Write, encode_spec
from fairque.schedule.spec import ScheduleState, Spec, moment_of
from fairque.schedule.timetable import Timetable
from fairque.scheduler.firing import Template
from fairque.scheduler.misfire import jittered

__all__ = ["Wanted", "added", "anew", "changed", "check_not_ended", "new", "paused", "resumed"]


class Wanted(NamedTuple):
    """A schedule as somebody adds it."""

    schedule_id: str
    spec: Spec
    template: Template


def added(wanted: Wanted, known: StoredSchedule | None, now_ms: int) -> Write | None:
    """None where it is there already. Raises `InvalidInput` for an id that another user has, and where it never fires.

    One that has ended is written although it is the same: it is kept for longer.
    """
    if known is None:
        return new(wanted, now_ms)
    if known.schedule.user_id != wanted.template.user_id:
        raise InvalidInput(f"the schedule id {wanted.schedule_id!r} is taken")
    has_ended = known.schedule.state is ScheduleState.ENDED
    if has_ended and (known.spec.times, known.spec.max_runs) != (wanted.spec.times, wanted.spec.max_runs):
        return anew(wanted, known)
    definition = {"spec": encode_spec(wanted.spec), **wanted.template.fields}
    if has_ended:
        return _write(known, KEEP, definition)
    if _has_run_enough(known, wanted.spec):
        return _write(known, None, definition | {"state": "ended"})
    return None if _is_same(wanted, known) else changed(known, wanted.spec, wanted.template.fields)


def new(wanted: Wanted, now_ms: int) -> Write:
    """Raises `InvalidInput` where it never fires."""
    name, spec, template = wanted
    slot = _first_slot(spec, now_ms, now_ms)
    fields = {"spec": encode_spec(spec), "anchor": now_ms, "state": "active", "slot": slot, **template.fields}
    return Write(name, template.user_id, "", jittered(name, spec, slot), fields)


def anew(wanted: Wanted, known: StoredSchedule) -> Write:
    """As if it were new, but for the tasks of it that have not ended."""
    fresh = new(wanted, known.now_ms)
    forgotten = dict.fromkeys(("runs", "skipped", "misfired"))
    return fresh._replace(read=known.revision, fields={**fresh.fields, "created": known.now_ms, **forgotten})


def changed(known: StoredSchedule, spec: Spec, task_fields: Mapping[str, Any]) -> Write:
    """Of one that has not ended. Its next slot stays, unless the times are others."""
    fields = {"spec": encode_spec(spec), **task_fields}
    if spec.times == known.spec.times:
        return _write(known, KEEP, fields)
    anchor_ms, slot = _times_after_change(known, spec)
    fields |= {"anchor": anchor_ms, "slot": slot}
    next_ms = _next_ms(known, jittered(known.schedule.schedule_id, spec, slot)) if known.schedule.active else None
    return _write(known, next_ms, fields)


def paused(known: StoredSchedule) -> Write:
    check_not_ended(known)
    return _write(known, None, {"state": "paused"})


def resumed(known: StoredSchedule) -> Write:
    check_not_ended(known)
    if known.schedule.active:
        return _write(known, KEEP, {})
    after_ms = max(known.now_ms, (known.slot or 0) - 1)  # those before its own were fired ahead of their time
    slot = _first_slot(known.spec, known.anchor_ms, after_ms)
    return _write(known, jittered(known.schedule.schedule_id, known.spec, slot), {"state": "active", "slot": slot})


def check_not_ended(known: StoredSchedule) -> None:
    if known.schedule.state is ScheduleState.ENDED:
        raise InvalidInput(f"schedule {known.schedule.schedule_id!r} has ended: add it again, with new times")


def _write(known: StoredSchedule, next_ms: int | str | None, fields: Mapping[str, Any]) -> Write:
    return Write(known.schedule.schedule_id, known.schedule.user_id, known.revision, next_ms, fields)


def _is_same(wanted: Wanted, known: StoredSchedule) -> bool:
    task = wanted.template.fields
    due = known.due
    if due is None or known.spec != wanted.spec:
        return False
    is_kept = due.body, due.delay, due.expires, due.callbacks
    return (task["body"], task["delay"], task["expires"], task["callbacks"]) == is_kept


def _has_run_enough(known: StoredSchedule, spec: Spec) -> bool:
    return spec.max_runs is not None and spec.max_runs <= known.schedule.runs


def _first_slot(spec: Spec, anchor_ms: int, now_ms: int) -> int:
    """Raises `InvalidInput` when there is none."""
    slot = Timetable(spec, anchor_ms).after(now_ms)
    if slot is None:
        last = spec.at_ms if spec.at_ms is not None else spec.end_ms
        reason = (
            f"{moment_of(last)} has passed" if last is not None and last <= now_ms else "no slot lies before its end"
        )
        raise InvalidInput(f"the schedule would never fire: {reason}")
    return slot


def _times_after_change(known: StoredSchedule, spec: Spec) -> tuple[int, int]:
    """From when intervals count, and the next slot.

    An interval that stays goes on: it would begin anew at each change of something else, and never come where there are
    many. A slot that waits for its jitter, or was missed, still comes if it is one of the new times.
    """
    goes_on = spec.every_ms is not None and spec.every_ms == known.spec.every_ms
    anchor_ms = known.anchor_ms if goes_on else known.now_ms
    if (
        known.slot is not None
        and known.slot <= known.now_ms
        and Timetable(spec, anchor_ms).after(known.slot - 1) == known.slot
    ):
        return anchor_ms, known.slot
    return anchor_ms, _first_slot(spec, anchor_ms, known.now_ms)


def _next_ms(known: StoredSchedule, jittered_ms: int) -> int:
    """Not so early that a slot looks missed which was not: the one before may have fired later than this one's time."""
    planned = known.schedule.next_run
    return jittered_ms if planned is None else max(jittered_ms, min(known.now_ms, round(planned.timestamp() * 1000)))
