"""Numbers and names in words, for people."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "shown", "span_of", "unanswered"]

_MOST_NAMED = 8
_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def counted(number: int, one: str, many: str = "") -> str:
    """``1 task``, ``2,000 tasks``; `many` where it is not `one` with an s: ``1 task waits``, ``2 tasks wait``."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def shown(text: str) -> str:
    """Ids are anything, what a terminal would obey is escaped."""
    return text if text.isprintable() else repr(text)


def unanswered(partitions: Sequence[int]) -> str:
    """``no answer from partitions 3, 5``, with the first eight."""
    named = ", ".join(map(str, partitions[:_MOST_NAMED])) + (", …" if len(partitions) > _MOST_NAMED else "")
    return f"no answer from partition{'' if len(partitions) == 1 else 's'} {named}"


def span_of(seconds: float) -> str:
    """``85 ms``, ``1.2 s``, ``3 min``, ``12 h``, ``2.5 d``."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    size, unit = next(each for each in _UNITS if seconds >= each[0])
    value = seconds / size
    text = f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"
    return f"{text} {unit}"
