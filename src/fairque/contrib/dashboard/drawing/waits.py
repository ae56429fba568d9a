"""Waits as the columns of a histogram."""

from __future__ import annotations

from fairque.metrics import Waits, seconds_of_bucket

__all__ = ["wait_columns"]


def wait_columns(waits: Waits) -> list[tuple[str, float]]:
    """From the first to the last bucket in which there is anything, with one beside each; each with its bound."""
    filled = [bucket for bucket, count in enumerate(waits.counts) if count]
    if not filled:
        return []
    first, last = max(0, filled[0] - 1), min(len(waits.counts) - 1, filled[-1] + 1)
    return [(_below(bucket), float(waits.counts[bucket])) for bucket in range(first, last + 1)]


def _below(bucket: int) -> str:
    """In few letters."""
    seconds = seconds_of_bucket(bucket)
    if seconds == float("inf"):
        return "more"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
