"""The order in which the server served: a line of each worker for each delivery that it was handed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from fairque.redis.delivery import Delivery
from fairque.worker.settler import Settler


class Service(NamedTuple):
    """`queued_ms` and `claimed_ms` are on the server's clock, `handed_ms` on that of the machine."""

    user_id: str
    task_id: str
    queued_ms: int
    claimed_ms: int
    handed_ms: float
    attempt: int = 1


def note_deliveries(path: Path) -> None:
    """Have the workers of this process write what they are handed, before it runs: also what is no task of theirs."""
    hold = Settler.hold
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def noted(self: Settler, delivery: Delivery) -> None:
        fields = (
            delivery.user_id,
            delivery.id,
            delivery.queued_ms,
            delivery.started_ms,
            time.time() * 1000,
            delivery.attempt,
        )
        os.write(file, "\t".join(map(str, fields)).encode() + b"\n")
        hold(self, delivery)

    Settler.hold = noted  # type: ignore[method-assign]


def services_in(path: Path) -> list[Service]:
    return [
        Service(user, task, int(queued), int(claimed), float(handed), int(attempt))
        for user, task, queued, claimed, handed, attempt in (line.split("\t") for line in path.read_text().splitlines())
    ]


def services_before(of: Service, since_ms: float, logs: list[list[Service]]) -> int:
    """Services of others after a moment and before this one.

    The clock of the server tells milliseconds. What was claimed in that of the moment is left out, and so is what other
    workers claimed in that of the service: what is counted, was in between for sure.
    """
    found = 0
    for log in logs:
        own = log.index(of) if of in log else None
        before = log[:own] if own is not None else [each for each in log if each.claimed_ms < of.claimed_ms]
        found += sum(each.claimed_ms > since_ms and each.user_id != of.user_id for each in before)
    return found
