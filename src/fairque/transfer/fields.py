"""The fields of a task and of its user, as they go along."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["LEFT_BEHIND", "as_carried", "lane_of"]

_OF_TASKS = (
    "stream_id worker started limited keys held held_since received alone tried paid charged charged_before watched"
    " progress message progress_of dead_kind"
)
LEFT_BEHIND = {"task": frozenset(_OF_TASKS.split()), "user": frozenset(("weight", "capped"))}
"""By kind, what limits, workers and shares know of it where it was. Elsewhere its next start is charged, and counts."""


def as_carried(kind: str, parts: Sequence[bytes]) -> list[bytes]:
    """One that runs waits elsewhere, with the attempts that it had."""
    known = dict(zip(parts[::2], parts[1::2], strict=True))
    if kind == "task" and known.get(b"state") == b"started":
        known[b"state"] = b"queued"
        known.setdefault(b"attempt", b"1")
        known.setdefault(b"queued", known.get(b"started", b"0"))
    kept = {name: value for name, value in known.items() if name.decode(errors="replace") not in LEFT_BEHIND[kind]}
    return [part for pair in kept.items() for part in pair]


def lane_of(parts: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Of a task: its lane and its score there, empty where it has none."""
    known = dict(zip(parts[::2], parts[1::2], strict=True))
    return known.get(b"lane", b""), known.get(b"score", b"")
