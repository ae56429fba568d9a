"""The fields of a task and of its user, as they go along."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["LEFT_BEHIND", "as_carried", "has_shared_place", "lane_of", "moved_fields"]

_OF_TASKS = (
    "stream_id worker started limited keys held held_since received alone tried paid charged charged_before watched"
    " progress message progress_of dead_kind"
)
LEFT_BEHIND = {"task": frozenset(_OF_TASKS.split()), "user": frozenset(("weight", "capped", "epoch"))}
"""By kind, what limits, workers and shares know of it where it was. Elsewhere its next start is charged, and counts."""
_NOT_MOVED = {
    "task": frozenset((b"held", b"held_since", b"keys")),
    "user": frozenset((b"weight", b"capped", b"epoch")),
}
"""The same of a move: what is held is in its lane, and what runs goes on."""


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


def moved_fields(kind: str, parts: list[bytes]) -> list[bytes]:
    """Of a hash, those that go along to another partition."""
    if (left := _NOT_MOVED.get(kind)) is None:
        return parts
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [part for pair in pairs if pair[0] not in left for part in pair]


def has_shared_place(parts: Sequence[bytes]) -> bool:
    """Whether a task that runs counts for a limit that all users share, by its keys: lua/lib/limits.lua."""
    packed = dict(zip(parts[::2], parts[1::2], strict=True)).get(b"limited", b"")
    at = 0
    while at < len(packed):
        length, _, _ = packed[at:].partition(b":")
        at += len(length) + 1
        if packed[at : at + 1] in (b":", b"="):
            return True
        at += int(length)
    return False
