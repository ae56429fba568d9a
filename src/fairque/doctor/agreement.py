"""What a queue with partitions says of all of them: it is kept twice."""

from __future__ import annotations

import time

from fairque.doctor.finding import Finding, FindingKind, QueueCheck
from fairque.redis.store import Store

__all__ = ["TIMES_KEPT", "check_agreement"]

TIMES_KEPT = 2
"""The settings of a queue with partitions: under its own tag, and once more."""


async def check_agreement(store: Store, *, repair: bool) -> QueueCheck:
    """Whether both are there. Where both were lost, the store has them from its process, or from a partition."""
    began = time.monotonic()
    lost = await store.lost_settings()
    if lost and repair:
        store.backend.agreed = False
        await store.agree()
    return QueueCheck(
        findings=tuple(_finding(store, tag, repair=repair) for tag in lost),
        keys=TIMES_KEPT - len(lost),
        users=0,
        totals_compared=True,
        complete=True,
        seconds=time.monotonic() - began,
    )


def _finding(store: Store, tag: str, *, repair: bool) -> Finding:
    """Nothing but these says under which tags the partitions are."""
    settings = store.settings
    detail = f"of {tag!r}, which say that there are {settings.partitions} partitions; they are kept twice"
    how = "as they are known elsewhere" if repair else ""
    return Finding(kind=FindingKind.LOST_SETTINGS, key="settings", detail=detail, mended=repair, how=how)
