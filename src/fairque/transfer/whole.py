"""`Whole`: whether records fit together, looked at as they go by."""

from __future__ import annotations

from collections.abc import Sequence

from fairque.errors import BadExport
from fairque.transfer.bounds import CHUNK_WORDS
from fairque.transfer.kinds import RANKS
from fairque.transfer.record import Record

__all__ = ["Whole"]

_STATE_IN = {
    "dead": b"failed",
    "deferred": b"deferred",
    "scheduled": b"scheduled",
    "critical": b"queued",
    "normal": b"queued",
}
_PAST = {"critical": 1, "normal": 1, "dead": 1000}
"""Places whose scores are moments that are over, and how many microseconds one counts."""
MINUTE_US = 60_000_000


class Whole:
    """Records are in order, none comes twice, and each task that has not ended is in one place.

    Args:
        now_ms: By the clock of the server: nothing came later.
    """

    def __init__(self, now_ms: int) -> None:
        self._latest_us = now_ms * 1000 + MINUTE_US
        self._last = (-1, "")
        self._bodies: set[str] = set()
        self._states: dict[str, bytes] = {}
        self._ended: set[str] = set()
        self._schedules: set[str] = set()
        self._place_of: dict[str, str] = {}
        self._last_chunk: tuple[str, tuple[int, ...]] = "", ()

    def add(self, record: Record) -> None:
        """Raises `BadExport`."""
        self._check_order(record)
        if record.kind == "body":
            self._bodies.add(record.name)
        elif record.kind == "task":
            fields = dict(zip(record.parts[::2], record.parts[1::2], strict=True))
            self._states[record.name] = fields.get(b"state", b"")
        elif record.kind == "result":
            self._ended.add(record.name)
        elif record.kind == "schedule":
            self._schedules.add(record.name)
        elif record.kind == "chunks":
            self._check_chunks(record)
        elif record.kind == "schedules":
            self._check_schedules(record.parts[::2])
        elif record.kind in _STATE_IN:
            self._place(record)

    def _check_order(self, record: Record) -> None:
        """Pages of a set or a list follow each other; of what is one value, there is one."""
        here = (RANKS[record.kind], record.name)
        if here < self._last:
            raise BadExport(f"record {record.kind} {record.name[:80]!r} is not in order, or comes twice")
        if here == self._last and record.kind in (
            "task",
            "body",
            "result",
            "ends",
            "unique",
            "metrics",
            "policy",
            "limit",
        ):
            raise BadExport(f"record {record.kind} {record.name[:80]!r} comes twice")
        self._last = here

    def _check_chunks(self, record: Record) -> None:
        """Behind those of the page before."""
        ids = [tuple(map(int, part.split(b"-"))) for part in record.parts[:: 2 + CHUNK_WORDS]]
        name, last = self._last_chunk
        if name == record.name and ids[0] <= last:
            raise BadExport(f"record chunks {record.name[:80]!r} is not in order")
        self._last_chunk = record.name, ids[-1]

    def _check_schedules(self, ids: Sequence[bytes]) -> None:
        for id_ in ids:
            if id_.decode() not in self._schedules:
                raise BadExport(f"schedule {id_.decode()!r} is to fire, and is not there")

    def _place(self, record: Record) -> None:
        step = 1 if record.kind == "deferred" else 2
        for id_ in record.parts[::step]:
            self._put(id_.decode(), record.kind)
        if record.kind in _PAST:
            latest = max(map(float, record.parts[1::2])) * _PAST[record.kind]
            if latest > self._latest_us:
                raise BadExport(f"a task in {record.kind} is of {latest:.0f} µs, which has not come")

    def _put(self, task_id: str, place: str) -> None:
        if task_id not in self._bodies:
            raise BadExport(f"task {task_id!r} is in {place}, and has no message")
        if before := self._place_of.get(task_id):
            raise BadExport(f"task {task_id!r} is in {before} and in {place}")
        state = self._states.get(task_id, b"") or b"queued"
        if state != _STATE_IN[place]:
            raise BadExport(f"task {task_id!r} is in {place}, and {state.decode(errors='replace')}")
        self._place_of[task_id] = place

    def check(self) -> None:
        """At the end. Raises `BadExport`."""
        for task_id in self._bodies:
            if task_id not in self._place_of and task_id not in self._ended:
                raise BadExport(
                    f"task {task_id!r} has a message, and is in no place: run `fairque doctor` where it comes from"
                )
