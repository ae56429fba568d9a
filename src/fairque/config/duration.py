"""Durations as people write them: ``30s``, ``1h30m``, ``7d``."""

from __future__ import annotations

import re

__all__ = ["parse_duration", "shown_duration"]

_UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_DURATION = re.compile(r"\s*".join(f"(?:({_NUMBER}){unit})?" for unit in _UNITS))


def parse_duration(text: str) -> float | None:
    """Seconds in a text like ``30``, ``1.5s``, ``1h30m`` or ``7d``; None where it is something else."""
    text = text.strip()
    if re.fullmatch(_NUMBER, text):
        return float(text)
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        return None
    return sum(float(count) * seconds for count, seconds in zip(found.groups(), _UNITS.values(), strict=True) if count)


def shown_duration(seconds: float) -> str:
    """As `parse_duration` reads it."""
    if seconds != int(seconds) or not seconds:
        return f"{seconds:g}s"
    parts, rest = "", int(seconds)
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, int(_UNITS[unit]))
        parts += f"{count}{unit}" if count else ""
    return parts
