"""A child ends when its parent is gone, even if that was killed: both hold an end of a pipe that nobody writes to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["REPEATED_SECONDS", "Lifeline", "follow_parent"]

REPEATED_SECONDS = 0.5
"""A signal that comes again so soon is the same request: some managers signal a process and, at once, its group."""
_VARIABLE = "FAIRQUE_LIFELINE"


class Lifeline:
    """The parent's side. Children get `descriptor` passed and `environment` set."""

    def __init__(self) -> None:
        self.descriptor, self._kept = os.pipe()

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, _VARIABLE: str(self.descriptor)}

    def close(self) -> None:
        os.close(self.descriptor)
        os.close(self._kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def follow_parent(on_death: Callable[[], None]) -> bool:
    """The child's side: call `on_death` from a thread once the parent is gone. False when there is no lifeline."""
    descriptor = os.environ.pop(_VARIABLE, None)
    if descriptor is None:
        return False

    def watch() -> None:
        os.read(int(descriptor), 1)
        on_death()

    threading.Thread(target=watch, name="fairque-lifeline", daemon=True).start()
    return True
