"""`Guard`: what fails within it harms nobody, and is told once, as it may be so with every task."""

from __future__ import annotations

import logging
from types import TracebackType

__all__ = ["Guard", "logger"]

logger = logging.getLogger("fairque.opentelemetry")


class Guard:
    """``with guard: …``, as often as one likes.

    Args:
        text: What cannot be done, for the log.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._is_told = False

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if not self._is_told:
            self._is_told = True
            logger.warning("%s; this is told once", self._text, exc_info=error)
        return True
