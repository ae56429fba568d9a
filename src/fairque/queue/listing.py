"""The tasks of a user, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fairque.checks import check_count
from fairque.errors import InvalidInput
from fairque.models import TaskInfo, TaskState
from fairque.queue.task_info import ended_info, living_info
from fairque.redis.delivery import StoredTask
from fairque.redis.replies import fields_in
from fairque.redis.store import Store
from fairque.tasks.message import Record

__all__ = ["MOST_LISTED", "list_tasks"]

MOST_LISTED = 1000
STEP = 250  # tasks that one call asks for by their ids
PLACES = {
    TaskState.STARTED: ("critical-stream", "normal-stream"),
    TaskState.QUEUED: ("critical", "normal", "held"),
    TaskState.SCHEDULED: ("scheduled",),
    TaskState.FAILED: ("dead",),
}
"""Where tasks of a state are in an order. Deferred ones are in a set, finished and canceled ones in results alone."""
LISTED_TOGETHER = (
    TaskState.STARTED,
    TaskState.QUEUED,
    TaskState.SCHEDULED,
    TaskState.DEFERRED,
    TaskState.FAILED,
)
_LETTERS = {b"F": TaskState.FINISHED, b"X": TaskState.FAILED, b"C": TaskState.CANCELED}


async def list_tasks(
    store: Store, user_id: str, state: TaskState | None, limit: int, after: TaskInfo | None
) -> list[TaskInfo]:
    """See `TaskQueue.tasks`."""
    check_count("limit", limit, 1, MOST_LISTED)
    states = _states(user_id, state, after)
    listing = _Listing(store, user_id)
    found: dict[str, TaskInfo] = {}  # one that moves meanwhile may come twice
    behind = after.task_id if after is not None else ""
    for each in states:
        if len(found) >= limit:
            break
        page = await listing.page(each, limit - len(found), behind)
        found.update((task.task_id, task) for task in page)
        behind = ""
    return list(found.values())


def _states(user_id: str, state: TaskState | None, after: TaskInfo | None) -> Sequence[TaskState]:
    """Those to be listed, the one of `after` first."""
    if state is not None and state not in set(TaskState):
        raise InvalidInput(f"there is no state {state!r}, only {', '.join(TaskState)}")
    states = LISTED_TOGETHER if state is None else (TaskState(state),)
    if after is None:
        return states
    if after.user_id != user_id or after.state not in states:
        wanted = f"a task of user {user_id!r} that is {' or '.join(states)}"
        raise InvalidInput(f"after must be {wanted}, not one of {after.user_id!r} that is {after.state}")
    return states[states.index(after.state) :]


class _Listing:
    def __init__(self, store: Store, user_id: str) -> None:
        self._store = store
        self._user_id = user_id

    async def page(self, state: TaskState, most: int, behind: str) -> list[TaskInfo]:
        if state in PLACES:
            return await self._in_order(PLACES[state], most, behind)
        return await self._by_id(state, most, behind)

    async def _in_order(self, places: Sequence[str], most: int, behind: str) -> list[TaskInfo]:
        found: list[TaskInfo] = []
        for at, place in enumerate(places):
            if behind and (page := await self._in_place(place, most, behind)) is not None:
                found, places = page, places[at + 1 :]
                break
        for place in places:
            if len(found) < most:
                found += await self._in_place(place, most - len(found), "") or []
        return found

    async def _in_place(self, place: str, most: int, behind: str) -> list[TaskInfo] | None:
        """None when `behind` is not there (any more)."""
        while True:
            rows = await self._store.tasks(self._user_id, place, most, behind)
            if rows is None:
                return None
            found = [task for row in rows if (task := self._made(row, place)) is not None]
            if found or not rows:
                return found
            behind = rows[-1][0].decode()  # all of these have expired

    async def _by_id(self, state: TaskState, most: int, behind: str) -> list[TaskInfo]:
        """What is not in order anywhere is looked through as a whole."""
        ids = sorted({task_id async for task_id in self._ids(state) if task_id > behind})
        found: list[TaskInfo] = []
        for at in range(0, len(ids), STEP):
            rows = await self._store.named_tasks(self._user_id, ids[at : at + STEP])
            made = (self._made(row, "") for row in rows)
            found += [task for task in made if task is not None and task.state is state]
            if len(found) >= most:
                break
        return found[:most]

    def _ids(self, state: TaskState) -> AsyncIterator[str]:
        if state is TaskState.DEFERRED:
            return self._store.deferred_ids(self._user_id)
        return self._store.ended_ids(self._user_id)

    def _made(self, row: list[Any], place: str) -> TaskInfo | None:
        """None for one that is gone from Redis."""
        task_id, score, head, name, fields, error, ended = row
        sealer = self._store.sealer
        known = StoredTask(
            fields=fields_in(fields),
            body=head,
            record=b"",
            errors=[error] if error else [],
            score=int(score) if place in PLACES[TaskState.QUEUED] else None,
            dependents=(),
            due_ms=int(score) if place == "scheduled" else None,
        )
        if ended and ended[0] in _LETTERS:
            return ended_info(self._user_id, task_id.decode(), _LETTERS[ended[0]], _record(*ended[1:]), known, sealer)
        if not head:
            return None
        return living_info(
            self._user_id,
            task_id.decode(),
            known,
            self._store.settings.priority_step_ms,
            sealer,
            name.decode("utf-8", "replace"),
        )


def _record(
    name: bytes, attempt: bytes, queued: bytes, started: bytes, run: bytes, worker: bytes, reason: bytes
) -> Record:
    return Record(
        name=name.decode("utf-8", "replace"),
        attempt=int(attempt),
        queued_ms=int(queued),
        started_ms=int(started),
        run_ms=float(run),
        worker=worker.decode("utf-8", "replace"),
        message=reason.decode("utf-8", "replace"),
    )
