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
    found = [*_work(health), *_people(health, starved), *_server(health)]
    return sorted(found, key=lambda check: ("bad", "warn", "ok").index(check.level))


def _level(value: float, warns: float, is_bad: float | None = None) -> Level:
    if is_bad is not None and value >= is_bad:
        return "bad"
    return "warn" if value >= warns else "ok"


def _work(health: QueueHealth) -> Iterator[Check]:
    stats = health.stats
    silent = [worker for worker in stats.workers if stats.at - worker.seen_at >= SILENT_SECONDS]
    alive, is_work = len(stats.workers) - len(silent), bool(stats.queued + stats.started)
    yield Check(
        "workers",
        "ok" if alive else "bad" if is_work else "warn",
        f"{counted(alive, 'worker')} at work" if alive else "no worker is there",
        "Start one: what waits goes on waiting until then.",
    )
    if silent:
        names = ", ".join(brief(worker.worker_id, 40) for worker in silent[:MOST_NAMED])
        yield Check(
            "silence", "warn", f"{counted(len(silent), 'worker')} fell silent: {names}", "Others take over what it ran."
        )
    yield Check(
        "waits",
        _level(health.longest_wait, 300, 3600),
        f"the longest wait of a next task is {span(health.longest_wait)}",
        "More slots, or fewer limits.",
    )
    late = max(health.late, health.schedule_late)
    yield Check(
        "times",
        _level(late, 60, 600),
        f"what is due is {span(late)} late" if late >= 1 else "what is due starts in time",
        "Times are kept by workers: is one there that has a free slot?",
    )
    yield Check(
        "dead letters",
        _level(health.dead_letters, 100, 10_000),
        counted(health.dead_letters, "dead letter"),
        "Look at their errors, then requeue or discard them.",
    )
    if health.blocking:
        yield Check(
            "blocking",
            "warn",
            f"other tasks wait for {counted(health.blocking, 'dead letter')}",
            "Requeue or discard these: what waits for them cannot go on.",
        )


def _people(health: QueueHealth, starved: Sequence[str]) -> Iterator[Check]:
    yield _named(
        "starved users",
        starved,
        "got less than half of their part lately",
        "nobody is starved",
        "Look at what holds the slots.",
    )
    yield _named(
        "reservations",
        health.min_running_users,
        "reserve all slots together by min_running",
        "reservations leave slots to others",
        "Reserve less, or add slots.",
    )
    yield _named(
        "service",
        health.unserved_users,
        "are served by no worker",
        "all users with tasks are served",
        "Start a worker that serves them.",
    )
    if health.stats.paused_tasks:
        yield _named(
            "paused tasks",
            health.stats.paused_tasks,
            "are started for nobody",
            "",
            "Resume these names when that is over.",
        )
    if health.damaged_users:
        yield _named(
            "damage",
            health.damaged_users,
            "have damaged keys",
            "",
            "Check the queue on the page Health, then run fairque doctor --repair.",
            "bad",
        )


def _named(name: str, users: Sequence[str], bad: str, good: str, advice: str, level: Level = "warn") -> Check:
    names = ", ".join(brief(user, 40) for user in users[:MOST_NAMED]) + (", …" if len(users) > MOST_NAMED else "")
    return Check(name, level, f"{names} {bad}", advice) if users else Check(name, "ok", good)


def _server(health: QueueHealth) -> Iterator[Check]:
    evicts = health.memory_policy != "noeviction"
    yield Check(
        "eviction",
        ("bad" if health.memory_limit else "warn") if evicts else "ok",
        f"the server's maxmemory-policy is {health.memory_policy}",
        "Set it to noeviction: a server that evicts keys loses tasks without a word.",
    )
    if health.memory_limit:
        used = health.memory_used / health.memory_limit
        yield Check(
            "memory",
            _level(used, 0.8, 0.95),
            f"{percent(used)} of the server's memory is in use",
            "Give it more, or keep results for less time.",
        )
