"""What Redis has of a task made into a `TaskInfo`."""

from __future__ import annotations

from collections.abc import Iterable

from fairque.codec.codec import Kind, Sealer
from fairque.limit import key_in
from fairque.models import Attempt, TaskInfo, TaskState
from fairque.redis.delivery import StoredTask, arrival_ms
from fairque.tasks.message import BadMessage, Overrides, Record, decode_body, priority_in
from fairque.tasks.sealed import read_attempt, read_reason, read_text

__all__ = ["attempts_in", "ended_info", "living_info", "states_in", "told_by"]


def attempts_in(sealer: Sealer | None, user_id: str, task_id: str, errors: list[bytes]) -> tuple[Attempt, ...]:
    return tuple(read_attempt(sealer, user_id, task_id, error) for error in errors)


def told_by(body: bytes) -> tuple[str, tuple[str, ...], tuple[str, ...], dict[str, str]]:
    """Name, dependencies, limit keys, and headers; nothing where the body cannot be read."""
    try:
        message = decode_body(body)
    except BadMessage:
        return "", (), (), {}
    overrides = message.overrides or Overrides()
    limits = tuple(key.text for key in message.limits)
    return message.name, tuple(overrides.depends_on), limits, overrides.headers


def living_info(
    user_id: str,
    task_id: str,
    known: StoredTask,
    priority_step_ms: int,
    sealer: Sealer | None,
    name: str,
    dependencies: tuple[str, ...] = (),
    limits: tuple[str, ...] = (),
    headers: dict[str, str] | None = None,
) -> TaskInfo:
    """Of a task without a result: it has not ended, or it failed and its result has expired before itself."""
    fields = known.fields
    state = TaskState(fields.get("state", TaskState.QUEUED))
    queued, started = _seconds(fields.get("queued")), _seconds(fields.get("started"))
    score = known.score if known.score is not None else fields.get("score")
    arrived = arrival_ms(int(score), known.body, priority_step_ms) / 1000 if score is not None else None
    if queued is None:  # it never waited anywhere but in its lane
        queued = arrived
    has_started = state in (TaskState.STARTED, TaskState.FAILED)
    attempt = int(fields.get("attempt", state is TaskState.STARTED))  # the first one is not written down
    has_told = fields.get("progress_of") == f"{fields.get('stream_id')} {attempt}"  # not an attempt before it
    return TaskInfo(
        user_id=user_id,
        task_id=task_id,
        name=name,
        state=state,
        priority=priority_in(known.body),
        attempt=attempt,
        due_at=known.due_ms / 1000 if known.due_ms is not None else None,
        queued_at=queued,
        started_at=started if has_started else None,
        ended_at=_seconds(fields.get("ended")) if state is TaskState.FAILED else None,
        worker=fields.get("worker") if has_started else None,
        wait_seconds=started - queued if has_started and started is not None and queued is not None else None,
        errors=attempts_in(sealer, user_id, task_id, known.errors),
        dependencies=dependencies,
        dependency_states=states_in(known.dependencies),
        dependents=known.dependents,
        progress=float(fields["progress"]) if has_told else None,
        message=_last_words(sealer, user_id, task_id, fields) if has_told else "",
        limits=limits,
        held_by=key_in(fields["held"]) if "held" in fields else None,
        headers=headers or {},
        expires_at=_seconds(fields.get("expires")),
        unique=fields["unique"].partition(" ")[0] if "unique" in fields else None,
        snoozed=int(fields.get("snoozed", 0)),
        parent=known.fields.get("parent"),
        children=known.children,
        enqueued_at=_seconds(fields.get("enqueued")) or _came(fields) or arrived,
        chunks=known.chunks,
    )


def _came(fields: dict[str, str]) -> float | None:
    """Seconds, of one that had to wait for others."""
    return int(fields["came"]) // 1000 / 1000 if "came" in fields else None


def states_in(found: Iterable[tuple[str, str]]) -> dict[str, TaskState | None]:
    """By id; None where nothing is known."""
    return {task_id: TaskState(state) if state else None for task_id, state in found}


def ended_info(
    user_id: str,
    task_id: str,
    state: TaskState,
    record: Record,
    known: StoredTask,
    sealer: Sealer | None,
    headers: dict[str, str] | None = None,
) -> TaskInfo:
    started = record.started_ms / 1000
    run_seconds = record.run_ms / 1000
    return TaskInfo(
        user_id=user_id,
        task_id=task_id,
        name=record.name,
        state=state,
        priority=priority_in(known.body),
        attempt=record.attempt,
        queued_at=record.queued_ms / 1000,
        started_at=started,
        ended_at=started + run_seconds,
        worker=record.worker,
        wait_seconds=(record.started_ms - record.queued_ms) / 1000,
        run_seconds=run_seconds,
        errors=attempts_in(sealer, user_id, task_id, known.errors),
        dependents=known.dependents,
        message=read_reason(sealer, user_id, task_id, record.message) if state is TaskState.CANCELED else "",
        headers=headers or {},
        parent=known.fields.get("parent"),
        children=known.children,
        chunks=known.chunks,
    )


def _last_words(sealer: Sealer | None, user_id: str, task_id: str, fields: dict[str, str]) -> str:
    return read_text(sealer, Kind.PROGRESS, user_id, task_id, fields["message"], fields["progress_of"].encode())


def _seconds(milliseconds: str | None) -> float | None:
    return int(milliseconds) / 1000 if milliseconds else None
