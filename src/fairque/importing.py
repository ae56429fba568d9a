"""Whether this process is only reading a script for the functions in it, as a subprocess of a worker does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fairque.errors import FairqueError

__all__ = ["Reading", "ScriptRunsAgain", "check_not_importing", "importing"]


class ScriptRunsAgain(FairqueError):
    """A script without a main guard came to where it would use a queue, in a subprocess that wants its functions."""

    def __init__(self, script: str) -> None:
        super().__init__(
            f"{script} opens a queue while a subprocess of its worker reads it: put what it does under "
            'if __name__ == "__main__":, and its tasks before that'
        )


@dataclass
class Reading:
    """A script that is being read. `stopped` is what it got where it would use a queue, whatever it made of it."""

    script: str
    stopped: ScriptRunsAgain | None = None


_readings: list[Reading] = []


@contextmanager
def importing(script: str) -> Iterator[Reading]:
    """Until it is left, whatever opens a queue or runs a worker raises `ScriptRunsAgain`."""
    _readings.append(Reading(script))
    try:
        yield _readings[-1]
    finally:
        _readings.pop()


def check_not_importing() -> None:
    """Raises `ScriptRunsAgain`."""
    if _readings:
        _readings[-1].stopped = ScriptRunsAgain(_readings[-1].script)
        raise _readings[-1].stopped
