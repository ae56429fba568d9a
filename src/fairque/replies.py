"""Replies of the scripts made into values."""

from __future__ import annotations

from typing import Any

from fairque.delivery import Delivery, arrival_ms
from fairque.errors import DependencyError
from fairque.keys import decode_user
from fairque.models import UserInfo, WorkerInfo

__all__ = ["deliveries_in", "fields_in", "refusal", "user_info", "worker_info"]


def refusal(code: str, user: str, *ids: str) -> DependencyError:
    of_user = f"of user {decode_user(user.encode())!r}"
    if code == "unknown":
        task_id, dependency = ids
        return DependencyError(
            f"task {task_id!r} {of_user} depends on {dependency!r}, never enqueued or its result has expired"
        )
    if code == "cycle":
        return DependencyError(f"tasks {of_user} would wait for each other: {' → '.join(ids)}")
    return DependencyError(f"task {ids[0]!r} {of_user} waits for too many tasks to look for a cycle")


def deliveries_in(reply: list[Any], priority_step_ms: int) -> list[Delivery]:
    now = reply[0]
    deliveries = []
    for at in range(2, len(reply), 8):
        user, task_id, lane, stream_id, attempt, score, history, body = reply[at : at + 8]
        queued_ms = arrival_ms(int(score), body, priority_step_ms)
        made = Delivery(user, task_id, lane, stream_id, int(attempt), queued_ms, now, body)
        if history:
            made.failures, made.lost, made.returned, made.returned_since_ms, queued, canceling = map(
                int, history.split()
            )
            made.queued_ms = queued or queued_ms
            made.canceling = bool(canceling)
        deliveries.append(made)
    return deliveries


def fields_in(flat: list[bytes]) -> dict[str, str]:
    names = iter(flat)
    return {name.decode(): value.decode("utf-8", "replace") for name, value in zip(names, names, strict=True)}


def user_info(
    user: bytes,
    critical: int,
    normal: int,
    started_critical: int,
    started_normal: int,
    scheduled: int,
    deferred: int,
    dead_letters: int,
    tag: bytes,
    seen: bytes,
    user_fields: list[bytes],
    policy_fields: list[bytes],
) -> UserInfo:
    fields, policy = fields_in(user_fields), fields_in(policy_fields)
    return UserInfo(
        user_id=decode_user(user),
        weight=float(policy.get("weight", 1.0)),
        critical=critical,
        normal=normal,
        started=started_critical + started_normal,
        scheduled=scheduled,
        deferred=deferred,
        dead_letters=dead_letters,
        finished=int(fields.get("finished", 0)),
        failed=int(fields.get("failed", 0)),
        canceled=int(fields.get("canceled", 0)),
        retried=int(fields.get("retried", 0)),
        tag=float(tag) if tag else None,
        seen_at=float(seen) / 1000 or None,
    )


def worker_info(name: str, entry: dict[str, str]) -> WorkerInfo:
    return WorkerInfo(
        worker_id=name,
        host=entry.get("host", ""),
        pid=int(entry.get("pid", 0)),
        version=entry.get("version", ""),
        concurrency=int(entry.get("concurrency", 0)),
        running=int(entry.get("running", 0)),
        started_at=float(entry.get("started_at", 0)),
        seen_at=float(entry.get("seen", 0)) / 1000,
    )
