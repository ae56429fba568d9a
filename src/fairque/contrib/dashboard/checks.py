"""What is wrong with a queue, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from fairque import QueueHealth
from fairque.contrib.dashboard.words import brief, percent, span
from fairque.counted import counted

__all__ = ["Check", "checks_of"]

MOST_NAMED = 5
SILENT_SECONDS = 35.0
Level = Literal["ok", "warn", "bad"]


class Check(NamedTuple):
    """One thing that was looked at: how it stands, and what to do about it where it is not well."""

    name: str
    level: Level
    text: str
    advice: str = ""


def checks_of(health: QueueHealth, starved: Sequence[str]) -> list[Check]:
    """What is worst comes first.

    Args:
        health: As the queue tells it.
        starved: Users that wait, and got less than half of their part lately.
    """
    found = [*_workers(health), *_work(health), *_users(health, starved), *_server(health)]
    return sorted(found, key=lambda check: ("bad", "warn", "ok").index(check.level))


def _level(value: float, warns: float, is_bad: float) -> Level:
    return "bad" if value >= is_bad else "warn" if value >= warns else "ok"


def _workers(health: QueueHealth) -> Iterator[Check]:
    stats = health.stats
    silent = [worker.worker_id for worker in stats.workers if stats.at - worker.seen_at >= SILENT_SECONDS]
    alive, is_work = len(stats.workers) - len(silent), bool(stats.queued + stats.started)
    yield Check(
        "workers",
        "ok" if alive else "bad" if is_work else "warn",
        f"{counted(alive, 'worker')} at work" if alive else "No worker is there",
        "Start one: what waits goes on waiting until then.",
    )
    if silent:
        yield _named("silence", silent, "Workers that fell silent", "", "Others take over what they ran.")


def _work(health: QueueHealth) -> Iterator[Check]:
    wait, late = health.longest_wait, max(health.late, health.schedule_late)
    yield Check(
        "waits",
        _level(wait, 300, 3600),
        f"The longest wait of a next task is {span(wait)}",
        "More slots shorten it, or wider limits: the page of its user says what holds it back.",
    )
    yield Check(
        "times",
        _level(late, 60, 600),
        f"What is due is {span(late)} late" if late >= 1 else "What is due starts in time",
        "Workers keep the times: see whether one is there with a free slot.",
    )
    yield Check(
        "dead letters",
        _level(health.dead_letters, 100, 10_000),
        f"{counted(health.dead_letters, 'task')} failed for good",
        "Look at their errors, then requeue or discard them.",
    )
    if health.blocking:
        yield Check(
            "blocking",
            "warn",
            f"Other tasks wait for {counted(health.blocking, 'dead letter')}",
            "Requeue or discard these: what waits for them cannot go on.",
        )


def _users(health: QueueHealth, starved: Sequence[str]) -> Iterator[Check]:
    yield _named(
        "starved users",
        starved,
        "Users that wait, and got less than half of their part lately",
        "Nobody is starved",
        "Look at what holds the slots.",
    )
    yield _named(
        "reservations",
        health.min_running_users,
        "Users that together reserve all slots, by min_running",
        "Reservations leave slots to others",
        "Reserve less, or add slots.",
    )
    yield _named(
        "service",
        health.unserved_users,
        "Users that no worker serves",
        "All users with tasks are served",
        "Start a worker that serves them.",
    )
    if health.stats.paused_tasks:
        yield _named(
            "paused tasks", health.stats.paused_tasks, "Tasks that are paused for all users", "", "Resume them in time."
        )
    if health.damaged_users:
        yield _named(
            "damage",
            health.damaged_users,
            "Users with damaged keys",
            "",
            "Check every key below, then run fairque doctor --repair.",
        )


def _named(name: str, users: Sequence[str], bad: str, good: str, advice: str) -> Check:
    names = ", ".join(brief(user, 40) for user in users[:MOST_NAMED]) + (", …" if len(users) > MOST_NAMED else "")
    return Check(name, "warn", f"{bad}: {names}", advice) if users else Check(name, "ok", good)


def _server(health: QueueHealth) -> Iterator[Check]:
    evicts = health.memory_policy != "noeviction"
    yield Check(
        "eviction",
        ("bad" if health.memory_limit else "warn") if evicts else "ok",
        f"The server evicts keys: {health.memory_policy}" if evicts else "The server evicts nothing",
        "Set its maxmemory-policy to noeviction: else it loses tasks without a word.",
    )
    if health.memory_limit:
        used = health.memory_used / health.memory_limit
        yield Check(
            "memory",
            _level(used, 0.8, 0.95),
            f"{percent(used)} of the server's memory is in use",
            "Give it more, or keep results for less time.",
        )
