"""Tasks for people: a table of several, the fields of one, its failed attempts, and why it waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import typer

from fairque import Attempt, Explanation, Reason, TaskInfo, TaskState
from fairque.cli.output import NOTHING, ago, moment, shown, span
from fairque.cli.table import names, numbers, print_table, words

__all__ = ["explanation_fields", "print_attempts", "print_tasks", "task_fields"]


def print_tasks(tasks: Sequence[TaskInfo], now: float) -> None:
    columns = (
        *(names("id", whole=5), words("state"), names("task", whole=2), numbers("attempt", 1), words("when")),
        names("error", 3),
    )
    print_table(columns, [_row(task, now) for task in tasks])


def _row(task: TaskInfo, now: float) -> tuple[object, ...]:
    error = f"{task.error.kind}: {task.error.type_name}" if task.error is not None else ""
    return (task.task_id, task.state, task.name or "?", task.attempt, _when(task, now), error)


def _when(task: TaskInfo, now: float) -> str:
    if task.due_at is not None:
        return f"in {span(task.due_at - now)}"
    if task.state is TaskState.STARTED:
        return f"runs {span(now - task.started_at)}" if task.started_at is not None else "-"
    if task.state is TaskState.QUEUED:
        return f"waits {span(now - task.queued_at)}" if task.queued_at is not None else "-"
    if task.state is TaskState.DEFERRED:
        return "waits for others"
    return ago(task.ended_at, now)


def task_fields(task: TaskInfo) -> list[tuple[str, object]]:
    """What is known of it; what is not is left out."""
    priority = task.priority.name.lower().replace("_", "-") if task.priority is not None else "-"
    given = [
        ("task", task.task_id),
        ("user", task.user_id),
        ("name", task.name or "?"),
        ("state", task.state),
        ("priority", priority),
        ("attempt", task.attempt),
        ("due at", moment(task.due_at)),
        ("queued at", moment(task.queued_at)),
        ("started at", moment(task.started_at)),
        ("ended at", moment(task.ended_at)),
        ("waited", span(task.wait_seconds)),
        ("ran", span(task.run_seconds)),
        ("worker", task.worker or "-"),
        ("progress", f"{task.progress:.0%}" if task.progress is not None else "-"),
        ("message", task.message or "-"),
        ("limits", ", ".join(map(shown, task.limits)) or "-"),
        ("held by", shown(task.held_by) if task.held_by is not None else "-"),
        ("headers", ", ".join(f"{shown(name)}={shown(value)}" for name, value in task.headers.items()) or "-"),
        ("depends on", ", ".join(_with_state(task, each) for each in task.dependencies) or "-"),
        ("waited for by", ", ".join(task.dependents) or "-"),
    ]
    return [(name, value) for name, value in given if value != NOTHING]


def _with_state(task: TaskInfo, dependency: str) -> str:
    state = task.dependency_states.get(dependency)
    return f"{shown(dependency)} ({state})" if state else shown(dependency)


def explanation_fields(found: Explanation) -> list[tuple[str, object]]:
    fields: list[tuple[str, object]] = [("user", found.user_id)]
    if found.task_id is not None:
        fields.append(("task", found.task_id))
    fields.append(("state", found.state or "nothing waits for its turn"))
    if found.worker is not None:
        fields.append(("worker", found.worker))
    fields += [
        ("because" if number == 0 else "and", held.text + (f", {moment(held.until)}" if held.until else ""))
        for number, held in enumerate(held for held in found.waiting if held.reason is not Reason.NOTHING)
    ]
    if found.dependencies:
        fields.append(("waits for", ", ".join(map(shown, found.dependencies))))
    if found.task_id is not None and found.waiting:
        fields.append(("ahead of it", f"{found.ahead_own} of its own user, {found.ahead_others} of others"))
        fields.append(("starts in", _estimate(found)))
    share = f", {found.share:.1%} of what is served now" if found.share is not None else ""
    fields.append(("its user", f"{found.running} started, {found.backlog} queued, weight {found.weight:g}{share}"))
    if found.max_bytes is not None:
        fields.append(("its bytes", f"{found.bytes or 0:,} of {found.max_bytes:,}"))
    return fields


def _estimate(found: Explanation) -> str:
    if found.starts_in is None:
        return "cannot be told"
    return f"about {span(found.starts_in)} ({found.certainty})"


def print_attempts(attempts: Iterable[Attempt]) -> None:
    """Each with its time, its error and its traceback."""
    for attempt in attempts:
        typer.echo(f"\n{_heading(attempt)}\n{_lines(attempt.traceback) or '(no traceback)'}")


def _heading(attempt: Attempt) -> str:
    error = shown(f"{attempt.type_name}: {attempt.message}" if attempt.message else attempt.type_name)
    return f"attempt {attempt.attempt}, {moment(attempt.at)}, {attempt.kind} on {shown(attempt.worker)}: {error}"


def _lines(text: str) -> str:
    return "\n".join(line if line.isprintable() else shown(line) for line in text.rstrip().splitlines())
