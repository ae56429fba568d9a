"""Replies of the scripts made into values."""

from __future__ import annotations

from typing import Any, NamedTuple

import hiredis

from fairque.errors import (
    BatchClosed,
    DependencyError,
    FairqueError,
    QueueFull,
    QueueUnavailable,
    QuotaExceeded,
    TaskExists,
)
from fairque.everybody import EVERYONE
from fairque.metrics import Metrics, metrics_in
from fairque.models import Enqueued, UserInfo, WorkerInfo
from fairque.policy import Policy, merged, policy_in
from fairque.redis.delivery import Claim, Delivery, Heads, Placed, Put, arrival_ms
from fairque.redis.keys import decode_user

__all__ = [
    "SeenUsers",
    "answer_in",
    "claim_in",
    "fields_in",
    "heads_in",
    "put_in",
    "refusal",
    "users_in",
    "worker_info",
]


def refusal(answers: list[Any]) -> FairqueError:
    """Why a call that puts tasks in wrote nothing."""
    code, user_id = answers[0].decode(), decode_user(answers[1])
    of_user = f"of user {user_id!r}"
    if code == "full":
        return QueueFull(f"the backlog {of_user} is full", answers[2] / 1000 if answers[2] >= 0 else None)
    if code == "heavy":
        used, limit, asked, retry_ms = answers[2:]
        text = f"user {user_id!r} has {used:,} of at most {limit:,} bytes, {asked:,} more do not fit: let tasks end and"
        text += " results expire, discard dead letters, clear XCom values, or raise its max_bytes"
        return QuotaExceeded(text, retry_ms / 1000, used, limit, asked)
    if code == "late":
        return QueueUnavailable(f"the call of user {user_id!r} came too late: it may have been made again meanwhile")
    ids = [answer.decode("utf-8", "replace") for answer in answers[2:]]
    if code == "exists":
        return TaskExists(f"a task {ids[0]!r} {of_user} lives, and was to be no other", user_id, ids[0])
    if code == "batch":
        return BatchClosed(f"batch {ids[0]!r} {of_user} takes no more tasks: it was never opened, or is closed or over")
    if code == "orphan":
        return DependencyError(f"task {ids[1]!r} {of_user} does not run any more, and puts in no child {ids[0]!r}")
    if code == "unknown":
        task_id, dependency = ids
        return DependencyError(
            f"task {task_id!r} {of_user} depends on {dependency!r}, never enqueued or its result has expired"
        )
    if code == "cycle":
        return DependencyError(f"tasks {of_user} would wait for each other: {' → '.join(ids)}")
    return DependencyError(f"task {ids[0]!r} {of_user} waits for too many tasks to look for a cycle")


def put_in(answer: int | list[Any]) -> Put:
    """What became of one task."""
    if isinstance(answer, int):
        return bool(answer)
    code, task_id = answer
    return Placed(_ENQUEUED[code], task_id.decode())


_ENQUEUED = {0: Enqueued.KEPT, 1: Enqueued.CREATED, 2: Enqueued.REPLACED, 3: Enqueued.DROPPED}

OUTDATED = -3
"""Instead of a time to sleep."""
UNREADABLE = b"\0not to be run: what is known of it beside its message is damaged"


def claim_in(reply: list[Any], priority_step_ms: int) -> Claim:
    sleep_ms = reply[1]
    heads = heads_in(reply[-1]) if isinstance(reply[-1], list) else None
    sleep = sleep_ms / 1000 if sleep_ms >= 0 else None
    return Claim(_deliveries_in(reply, priority_step_ms), sleep, heads, sleep_ms == OUTDATED)


def answer_in(message: bytes) -> tuple[int, list[Any]]:
    """Of a claim that rested: its number, and the reply. See lib/resting.lua."""
    number, _, reply = message.partition(b" ")
    reader = hiredis.Reader()
    reader.feed(reply)
    return int(number[1:]), reader.gets()


def heads_in(reply: list[Any]) -> Heads:
    head, time, mean, ready, workers, passed, forsaken, exchange_ms, revision = reply
    place = float(head) if head else None, float(time), float(mean)
    return Heads(*place, ready, workers, float(passed), bool(forsaken), exchange_ms, revision)


def _deliveries_in(reply: list[Any], priority_step_ms: int) -> list[Delivery]:
    """One that cannot be read is handed on as such: it must not take the others of its claim with it."""
    deliveries: list[Delivery] = []
    for at in range(2, len(reply) - 7, 8):
        user, task_id, lane, stream_id, attempt, score, history, body = reply[at : at + 8]
        made = Delivery(user, task_id, lane, stream_id, int(attempt), reply[0], reply[0], body)
        try:
            made.queued_ms = arrival_ms(int(score), body, priority_step_ms)
            if history and _tell_history(made, history) and deliveries:
                deliveries[-1].followers += (made,)
                continue
        except (ValueError, OverflowError):
            made.body = UNREADABLE
        deliveries.append(made)
    return deliveries


def _tell_history(delivery: Delivery, history: bytes) -> bool:
    """Whether it runs with the one before it."""
    failures, lost, returned, since, queued, canceling, deaths, alone_ms, snoozed, follows = map(int, history.split())
    delivery.failures, delivery.lost, delivery.returned, delivery.returned_since_ms = failures, lost, returned, since
    delivery.queued_ms = queued or delivery.queued_ms
    delivery.canceling, delivery.deaths = bool(canceling), deaths
    delivery.alone_ms, delivery.snoozed = alone_ms, snoozed
    return bool(follows)


def fields_in(flat: list[bytes]) -> dict[str, str]:
    names = iter(flat)
    return {name.decode(): value.decode("utf-8", "replace") for name, value in zip(names, names, strict=True)}


class SeenUsers(NamedTuple):
    """Some users, and what the whole queue had used at the same moment."""

    users: list[UserInfo]
    of_all: Metrics


def users_in(reply: list[Any], priority_step_ms: int) -> SeenUsers:
    now_ms, defaults, of_all, *rows = reply
    default = policy_in(defaults)
    return SeenUsers([_user_in(row, default, now_ms, priority_step_ms) for row in rows], metrics_in(of_all, now_ms))


def _user_in(row: list[Any], default: Policy, now_ms: int, priority_step_ms: int) -> UserInfo:
    user, critical, normal, started_critical, started_normal, scheduled, deferred, held, dead_letters = row[:9]
    tag, seen, parked, open_until, policy, metrics, next_ones, used = row[9:]
    governing = merged(own := policy_in(policy), default)
    measured = metrics_in(metrics, now_ms)
    return UserInfo(
        user_id=decode_user(user),
        weight=own.weight or default.weight or 1.0,
        policy=governing,
        critical=critical,
        normal=normal,
        held=held,
        started=started_critical + started_normal,
        scheduled=scheduled,
        deferred=deferred,
        dead_letters=dead_letters,
        finished=measured.finished,
        failed=measured.failed,
        canceled=measured.canceled,
        retried=measured.retried,
        metrics=measured,
        tag=float(tag) if tag else None,
        seen_at=float(seen) / 1000 or None,
        parked_until=float(parked) / 1000 if parked else None,
        breaker_open_until=float(open_until) / 1000 if open_until else None,
        bytes=int(used or 0) if governing.max_bytes is not None else None,
        wait_seconds=_longest_wait(next_ones, now_ms, priority_step_ms),
        at=now_ms / 1000,
    )


def _longest_wait(next_ones: list[list[bytes]], now_ms: int, priority_step_ms: int) -> float | None:
    waits = [
        now_ms - (int(queued) if queued else arrival_ms(int(score), head, priority_step_ms))
        for score, head, queued in next_ones
    ]
    return max(0, *waits) / 1000 if waits else None


def worker_info(name: str, entry: dict[str, str]) -> WorkerInfo:
    users = entry.get("users", EVERYONE)
    return WorkerInfo(
        worker_id=name,
        host=entry.get("host", ""),
        pid=int(entry.get("pid", 0)),
        version=entry.get("version", ""),
        concurrency=int(entry.get("concurrency", 0)),
        running=int(entry.get("running", 0)),
        started_at=float(entry.get("started_at", 0)),
        seen_at=float(entry.get("seen", 0)) / 1000,
        leftover_threads=int(entry.get("leftover", 0)),
        memory=int(entry.get("memory", 0)),
        draining=entry.get("draining") == "1",
        serves=None if users == EVERYONE else tuple(decode_user(user) for user in users.encode().split()),
    )
