"""`QueueSettings`: what all processes that use a queue have to agree on."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fairque.checks import MAX_SECONDS, Duration, check_count, check_seconds
from fairque.errors import InvalidInput

__all__ = ["MAX_MESSAGE_BYTES", "MOST_MESSAGE_BYTES", "QueueSettings", "checked_settings"]

MAX_MESSAGE_BYTES = 256 * 1024
MOST_MESSAGE_BYTES = 512 * 1024 * 1024  # what Redis takes
LEAST_USAGE_TTL, MOST_USAGE_TTL = 3600, 40 * 86400


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a queue. They are stored in it when it is first opened; who opens it later is given them.

    Attributes:
        priority_step_ms: Milliseconds of head start that one level of priority is worth.
        lease_ms: Milliseconds without a sign of life after which a worker's tasks are given to others.
        result_ttl_ms: How long a result is kept, unless the task says otherwise.
        dead_letter_ttl_ms: How long a failed task is kept, and the record of a canceled one.
        max_message_bytes: Limit for the message of a task, and for its result.
        fairness: What a service costs: what the task says, or the seconds that it runs times that.
        usage_ttl_ms: How long is kept what a user used: the numbers after its last task, and each hour for bills.
        partitions: Over how many its users are spread, for good.
    """

    priority_step_ms: int = 300_000
    lease_ms: int = 10_000
    result_ttl_ms: int = 86_400_000
    dead_letter_ttl_ms: int = 604_800_000
    max_message_bytes: int = MAX_MESSAGE_BYTES
    fairness: Literal["cost", "time"] = "cost"
    usage_ttl_ms: int = 3_456_000_000
    partitions: int = 1

    def stored(self) -> dict[str, Any]:
        """As they are written. Of a queue without partitions nothing is said of them."""
        fields = msgspec.structs.asdict(self)
        if self.partitions == 1:
            del fields["partitions"]
        return fields


def checked_settings(
    *,
    priority_step: Duration | None = None,
    lease: Duration | None = None,
    result_ttl: Duration | None = None,
    dead_letter_ttl: Duration | None = None,
    max_message_bytes: int | None = None,
    fairness: str | None = None,
    usage_ttl: Duration | None = None,
) -> dict[str, Any]:
    """Fields of `QueueSettings` from what a caller gives, in seconds; what is None is left out.

    Raises:
        InvalidInput: A value breaks a rule.
    """
    if fairness not in (None, "cost", "time"):
        raise InvalidInput(f"fairness must be 'cost' or 'time', not {fairness!r}")
    if max_message_bytes is not None:
        check_count("max_message_bytes", max_message_bytes, 1, MOST_MESSAGE_BYTES)
    found = {
        "priority_step_ms": _milliseconds("priority_step", priority_step, 0),
        "lease_ms": _milliseconds("lease", lease, 0.1),
        "result_ttl_ms": _milliseconds("result_ttl", result_ttl, 0),
        "dead_letter_ttl_ms": _milliseconds("dead_letter_ttl", dead_letter_ttl, 1),
        "max_message_bytes": max_message_bytes,
        "fairness": fairness,
        "usage_ttl_ms": _milliseconds("usage_ttl", usage_ttl, LEAST_USAGE_TTL, MOST_USAGE_TTL),
    }
    return {name: value for name, value in found.items() if value is not None}


def _milliseconds(name: str, seconds: Duration | None, least: float, most: float = MAX_SECONDS) -> int | None:
    return None if seconds is None else round(check_seconds(name, seconds, least, most) * 1000)
