"""Tasks that tell when they started, in the test's own process."""

from __future__ import annotations

import time

from fairque import current_task, task
from tests.support.eventually import eventually

_starts: list[tuple[str, float]] = []


class Starts:
    """What started since this was made: whose task, and when, in seconds since the epoch."""

    def __init__(self) -> None:
        _starts.clear()

    @property
    def users(self) -> list[str]:
        return [user_id for user_id, _ in _starts]

    @property
    def times(self) -> list[float]:
        return [at for _, at in _starts]

    async def reach(self, count: int, deadline: float) -> None:
        """Wait until so many have started."""
        await eventually(lambda: len(_starts) >= count, deadline)


@task
async def start() -> None:
    _starts.append((current_task().user_id, time.time()))


@task
async def fail() -> None:
    raise ValueError("on purpose")
