"""Dead letters: by the kind of their error, to be looked at, and requeued or discarded together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from fairque import DeadGroups, DeadLetter, FailureKind, TaskQueue
from fairque.contrib.dashboard.acts import Act
from fairque.contrib.dashboard.bulk import Bulk, Bulks
from fairque.contrib.dashboard.look import Look
from fairque.contrib.dashboard.page import Page
from fairque.contrib.dashboard.viewer import Viewer

__all__ = ["Dead", "DeadPage"]

PAGE = 50
GROUPS = 50


class Dead(NamedTuple):
    """The kinds of errors, a page of letters (of one kind, or of all), and what is done to many of them now."""

    groups: DeadGroups
    letters: Sequence[DeadLetter]
    is_last: bool
    bulks: Sequence[Bulk]


class DeadPage(Page[Dead]):
    """What failed for good."""

    name, path, title = "dead", "dead-letters", "Dead letters"
    in_navigation = True
    arguments: ClassVar = ("group", "at", "user", "task")
    """The key of a kind, and the letter behind which to begin."""
    parts = ("bulks", "groups")

    def __init__(self, queue: TaskQueue, look: Look) -> None:
        super().__init__(queue, look)
        self._bulks = Bulks()

    @property
    def acts(self) -> Mapping[str, Act]:
        bulks = self._bulks
        return {
            "requeue-group": Act(("group",), bulks.requeue, "They are requeued, some at a time.", "dead"),
            "discard-group": Act(("group",), bulks.discard, "They are discarded, some at a time.", "dead"),
            "stop-group": Act(("group",), bulks.stop, "No more of them are touched.", "dead"),
        }

    async def read(self, *about: str) -> Dead:
        group, at, user, task = about
        after = _after(at, user, task)
        groups = await self.queue.dead_groups()
        found = await self.queue.dead_letters(limit=PAGE + 1, after=after, group=group or None)
        return Dead(groups, found[:PAGE], len(found) <= PAGE, self._bulks.shown())

    def shown(self, seen: Dead, _: Viewer) -> Mapping[str, Any]:
        return {
            "groups": seen.groups.groups[:GROUPS],
            "others": seen.groups.others + sum(group.count for group in seen.groups.groups[GROUPS:]),
            "going": {bulk.group for bulk in seen.bulks if not bulk.has_ended},
        }


def _after(at: str, user: str, task: str) -> DeadLetter | None:
    """The letter in the address of the next page."""
    if not (user and task and at.isascii() and at.isdecimal() and len(at) <= 15):
        return None
    return DeadLetter(
        user_id=user,
        task_id=task,
        name="",
        at=int(at) / 1000,
        attempt=0,
        kind=FailureKind.ERROR,
        type_name="",
        message="",
    )
