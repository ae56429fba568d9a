"""Limits: how many tasks of a key may run, how often they may start, and which names are paused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from fairque import LimitInfo, TaskQueue
from fairque.contrib.dashboard.acts import Act
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.viewer import Viewer
from fairque.limit import record_of

__all__ = ["Limits", "LimitsPage"]

PAGE = 100


class Limits(NamedTuple):
    """A page of limits. `paused` are names of which nothing is started, at most 100."""

    limits: Sequence[LimitInfo]
    paused: Sequence[str]
    is_last: bool


class LimitsPage(Page[Limits]):
    """What holds tasks back beside their users."""

    name, path, title = "limits", "limits", "Limits"
    in_navigation = True
    arguments: ClassVar = ("after", "user", "own")
    """Behind which key to begin: its text, whose it is, and whether it is of each user for itself."""
    parts = ("limits",)

    @property
    def acts(self) -> Mapping[str, Act]:
        return {
            "pause-name": Act(("name",), TaskQueue.pause_task, "Nothing more of this name is started.", "limits"),
            "resume-name": Act(("name",), TaskQueue.resume_task, "Tasks of this name go on.", "limits"),
        }

    async def read(self, *about: str) -> Limits:
        key, user, own = about
        after = LimitInfo(key=key, user_id=user or None, shared=not own) if key else None
        found = await self.queue.limits(limit=PAGE + 1, after=after)
        stats = await self.queue.stats()
        return Limits(found[:PAGE], stats.paused_tasks, len(found) <= PAGE)

    def shown(self, seen: Limits, _: Viewer) -> Mapping[str, Any]:
        """Each row by its name in Redis, which is its own."""
        return {"rows": [(record_of(each.key, each.user_id, each.shared), each) for each in seen.limits]}
