"""Times for people: one unit, two digits. Programs get raw seconds, in JSON."""

from __future__ import annotations

from datetime import datetime

__all__ = ["ago", "moment", "span"]

_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "m"), (1.0, "s"))
NOTHING = "-"


def span(seconds: float | None) -> str:
    """``85 ms``, ``1.2 s``, ``3 m``, ``12 h``, ``2.5 d``; ``-`` for None."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    size, unit = next(each for each in _UNITS if seconds >= each[0])
    value = seconds / size
    text = f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"
    return f"{text} {unit}"


def ago(at: float | None, now: float) -> str:
    """How long before `now`, both in seconds since the epoch."""
    return NOTHING if at is None else f"{span(now - at)} ago"


def moment(at: float | None) -> str:
    """Local date and time of seconds since the epoch."""
    if at is None:
        return NOTHING
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="seconds")
