"""Schedules that ``@task(cron=…)`` declares: registered, changed, and missed when they vanish from the code."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any

from fairque.errors import FairqueError, InvalidInput, QuotaExceeded
from fairque.queue.enqueue_call import EnqueueDoor
from fairque.redis.store_schedules import Declared, ScheduleStore, StoredSchedule, Write, encode_spec
from fairque.schedule.spec import ScheduleState
from fairque.scheduler.changes import Wanted, anew, changed, new
from fairque.scheduler.firing import Template
from fairque.tasks.schedule import declared_schedules
from fairque.tasks.task import Task

__all__ = ["Declarations"]

logger = logging.getLogger("fairque.scheduler")
TTL_MS = 200_000
"""For how long a declaration counts. It is repeated each minute, so this is three that failed."""
MOST_REMEMBERED = 20


class Declaration:
    """What the code says of one schedule. Its id is the name of the task."""

    def __init__(self, task: Task[Any], wanted: Wanted) -> None:
        self.schedule_id = wanted.schedule_id
        self.task = task
        self.wanted = wanted
        template = wanted.template
        definition = [encode_spec(wanted.spec), template.user_id.encode(), *map(_bytes, template.fields.values())]
        self.fingerprint = hashlib.sha256(b"\0".join(definition)).hexdigest()[:16]


class Declarations:
    """The declarations of this process, brought to Redis at its start and each minute after.

    A definition that is new replaces the one before. That one is remembered, so that a process with older code which
    is started in the middle of a deploy does not bring it back, unless nobody with the newer code is left.

    Args:
        store: Where they go.
        make_template: Makes a task storable.
        door: What is written goes through it. Middlewares may add what differs from call to call, so what they make of
            a definition does not count as a new one.
    """

    def __init__(
        self,
        store: ScheduleStore,
        make_template: Callable[[str, Task[Any], str | None], Template],
        door: EnqueueDoor | None = None,
    ) -> None:
        self._store = store
        self._door = door
        self._make_template = make_template
        self._told: set[str] = set()  # what was warned of

    async def declare(self) -> None:
        own = {made.schedule_id: made for made in self._own()}
        said = [Declared(each.schedule_id, each.fingerprint, each.wanted.template.user_id) for each in own.values()]
        verdicts, orphans = await self._store.declare(said, TTL_MS)
        changed = False
        for declaration, verdict in zip(own.values(), verdicts, strict=True):
            if verdict in ("absent", "differs"):
                changed = True
                await self._register_or_warn(declaration)
            elif verdict == "older":
                self._warn(declaration.schedule_id, "this process declares an older definition, which is not used")
            elif verdict == "taken":
                self._warn(declaration.schedule_id, "@task declares it, but its id is that of another schedule")
            else:
                self._told.discard(declaration.schedule_id)
        for orphan in orphans:
            self._warn(orphan, "no code declares it any more, and it still fires: remove or pause it")
        if changed:  # what was written is declared now
            await self._store.declare(said, TTL_MS)

    def _own(self) -> list[Declaration]:
        found = []
        for function, spec in declared_schedules():
            try:
                task = function()
                template = self._make_template(function.name, task, None)
            except FairqueError as exc:
                self._warn(function.name, f"it cannot be declared: {exc}")
            else:
                found.append(Declaration(task, Wanted(function.name, spec, template)))
        return found

    async def _register_or_warn(self, declaration: Declaration) -> None:
        """Those of other users are declared all the same."""
        try:
            await self._register(declaration)
        except (InvalidInput, QuotaExceeded) as exc:
            self._warn(declaration.schedule_id, f"it cannot be declared: {exc}")
        except FairqueError:
            raise
        except Exception as exc:  # of a middleware
            self._warn(declaration.schedule_id, f"it cannot be declared: {type(exc).__name__}: {exc}")

    async def _register(self, declaration: Declaration) -> None:
        if self._door is None:
            await self._write(declaration, declaration.wanted)
            return

        async def put_in(tasks: list[Task[Any]]) -> tuple[list[str], None]:
            template = self._make_template(declaration.schedule_id, tasks[0], None)
            await self._write(declaration, declaration.wanted._replace(template=template))
            return [declaration.schedule_id], None

        await self._door.through("schedules", [declaration.task], put_in)

    async def _write(self, declaration: Declaration, wanted: Wanted) -> None:
        """Whoever is faster wrote the same, or something newer: the next look tells."""
        now_ms, found = await self._store.look([declaration.schedule_id])
        known = found.get(declaration.schedule_id)
        if known is not None and await self._store.are_apart(known.schedule.user_id, wanted.template.user_id):
            await self._store.remove(declaration.schedule_id)  # it cannot be moved to another partition
            known = None
        write = new(wanted, now_ms) if known is None else _replacing(declaration, wanted, known)
        fields = {**write.fields, "declared": declaration.fingerprint}
        await self._store.write(write._replace(user_id=wanted.template.user_id, fields=fields))

    def _warn(self, schedule_id: str, problem: str) -> None:
        if schedule_id not in self._told:
            self._told.add(schedule_id)
            logger.warning("schedule %r: %s", schedule_id, problem, extra={"schedule_id": schedule_id})


def _replacing(declaration: Declaration, wanted: Wanted, known: StoredSchedule) -> Write:
    name = declaration.schedule_id
    logger.info("schedule %r: the definition in the code is new", name, extra={"schedule_id": name})
    older = [each for each in [known.declared, *known.older.split()] if each != declaration.fingerprint]
    has_ended = known.schedule.state is ScheduleState.ENDED
    write = anew(wanted, known) if has_ended else changed(known, wanted.spec, wanted.template.fields)
    return write._replace(fields={**write.fields, "older": " ".join(older[:MOST_REMEMBERED])})


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
