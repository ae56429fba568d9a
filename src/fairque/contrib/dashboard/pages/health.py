"""Health: what was looked at and how it stands, and what a check of every key found."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fairque import FairqueError, InvalidInput, QueueCheck, TaskQueue
from fairque.contrib.dashboard.acts import Act
from fairque.contrib.dashboard.checks import Check, checks_in
from fairque.contrib.dashboard.look import Look
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.viewer import Viewer

__all__ = ["Health", "HealthPage"]

MOST_FINDINGS = 100
LOOKED_AT = 100


class Health(NamedTuple):
    """How a queue stands. `checked` is what the last check in this process found, `checked_at` when it was begun."""

    checks: Sequence[Check]
    is_checking: bool
    checked: QueueCheck | None
    checked_at: float | None
    trouble: str


class HealthPage(Page[Health]):
    """Whether the queue is well."""

    name, path, title = "health", "health", "Health"
    in_navigation = True
    parts = ("checks", "doctor")

    def __init__(self, queue: TaskQueue, look: Look) -> None:
        super().__init__(queue, look)
        self._checkup = _Checkup()

    @property
    def acts(self) -> Mapping[str, Act]:
        return {
            "check": Act((), self._checkup.begin, "The check has begun. It looks at every key of the queue.", "health")
        }

    async def read(self, *_: str) -> Health:
        overview = await self.queue.overview(limit=LOOKED_AT)
        checkup = self._checkup
        return Health(checks_in(overview.checks), checkup.goes_on, checkup.found, checkup.begun_at, checkup.trouble)

    def shown(self, seen: Health, _: Viewer) -> Mapping[str, Any]:
        findings = seen.checked.findings if seen.checked is not None else ()
        return {"findings": findings[:MOST_FINDINGS], "more": max(0, len(findings) - MOST_FINDINGS)}


class _Checkup:
    """One check at a time, in the background: it takes a second or so for each 10,000 tasks."""

    def __init__(self) -> None:
        self.found: QueueCheck | None = None
        self.begun_at: float | None = None
        self.trouble = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def goes_on(self) -> bool:
        return self._task is not None and not self._task.done()

    async def begin(self, queue: TaskQueue) -> None:
        if self.goes_on:
            raise InvalidInput("A check goes on already: its findings will be on the page Health.")
        self.begun_at = (await queue.stats()).at
        self._task = asyncio.create_task(self._check(queue), name="fairque-dashboard-check")

    async def _check(self, queue: TaskQueue) -> None:
        try:
            self.found, self.trouble = await queue.check(), ""
        except FairqueError as exc:
            self.trouble = str(exc)
