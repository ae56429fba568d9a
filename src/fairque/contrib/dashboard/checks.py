"""What was looked at in a queue, with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from fairque.queue.health_checks import HealthCheck, Severity

__all__ = ["Check", "checks_in"]

_LEVELS: Mapping[Severity, Literal["ok", "warn", "bad"]] = {
    Severity.OK: "ok",
    Severity.WARNING: "warn",
    Severity.CRITICAL: "bad",
}
_ADVICE = {
    "backlog": "More slots bring it down: the overview says how many.",
    "wait": "More slots shorten it, or wider limits: the page of a user says what holds it back.",
    "dead": "Look at their errors, then requeue or discard them.",
    "blocking": "What waits for them cannot go on until then.",
    "silent": "Others take over what ran there: see what became of it.",
    "starved": "Look at what holds the slots.",
    "late": "Workers keep the times: see whether one is there with a free slot.",
    "memory": "Give the server more, or keep results for less time.",
    "eviction": "A server that evicts keys loses tasks without a word.",
    "reservations": "Reserve less, or add slots.",
    "served": "Start a worker that serves them.",
    "paused": "Resume them when that is over.",
    "damage": "Every key can be checked on the page Health.",
    "workers": "Without one, what waits goes on waiting.",
}


class Check(NamedTuple):
    """One thing that was looked at: how it stands, and what to do about it where it is not well."""

    name: str
    level: Literal["ok", "warn", "bad"]
    text: str
    advice: str


def checks_in(found: Sequence[HealthCheck]) -> list[Check]:
    """What is worst comes first."""
    checks = [
        Check(each.name, _LEVELS[each.status], _sentence(each.text), _ADVICE.get(each.name, "")) for each in found
    ]
    return sorted(checks, key=lambda check: ("bad", "warn", "ok").index(check.level))


def _sentence(text: str) -> str:
    """Names of options stay as they are."""
    is_name = text.startswith(("maxmemory", "min_running"))
    return text if is_name else text[:1].upper() + text[1:]
