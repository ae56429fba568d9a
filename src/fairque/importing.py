"""Whether this process is only reading a script for the functions in it, as a subprocess of a worker does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fairque.errors import ConfigError

__all__ = ["Reading", "check_not_importing", "importing"]


@dataclass
class Reading:
    """A script that is being read. `stopped` is what it got where it would use a queue, whatever it made of it."""

    script: str
    stopped: ConfigError | None = None


_readings: list[Reading] = []


@contextmanager
def importing(script: str) -> Iterator[Reading]:
    """Until it is left, whatever opens a queue or runs a worker gets a `ConfigError`."""
    _readings.append(Reading(script))
    try:
        yield _readings[-1]
    finally:
        _readings.pop()


def check_not_importing() -> None:
    """Raises `ConfigError`."""
    if not _readings:
        return
    reading = _readings[-1]
    reading.stopped = ConfigError(
        f"{reading.script} opens a queue while a subprocess of its worker reads it: put what it does under "
        'if __name__ == "__main__":, and its tasks before that'
    )
    raise reading.stopped
