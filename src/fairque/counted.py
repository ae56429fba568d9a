"""Numbers with their nouns."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: int, one: str, many: str = "") -> str:
    """``1 task``, ``2,000 tasks``; `many` where it is not `one` with an s: ``1 task waits``, ``2 tasks wait``."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
