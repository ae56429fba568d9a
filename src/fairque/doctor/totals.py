"""Totals of a queue against what is there."""

from __future__ import annotations

from collections.abc import Iterable

from fairque.doctor.finding import Finding, FindingKind
from fairque.doctor.steps import batched
from fairque.redis.store import Store
from fairque.redis.store_checks import Counted, Span

__all__ = ["compare_totals"]

TRIES = 5
USERS = 100
"""Counted at one moment."""
SPAN = 500
"""Held tasks that are counted at one moment."""


async def compare_totals(store: Store, users: set[str], since_ms: int, *, repair: bool) -> list[Finding] | None:
    """What is wrong with them; None where the queue moved each time, so that nothing can be said.

    Up to 100 users are counted at one moment, which is right however busy the queue is. More take several looks, which
    count when the queue has not moved meanwhile. `users` grows by those who come.
    """
    for _ in range(TRIES):
        counted = await _count(store, users, since_ms)
        if counted is None:
            continue
        if all(int(counted.told[field] or 0) == number for field, number in counted.counted.items()):
            return []
        [wrong] = await store.check([("totals", "", "", counted.version, counted.counted)], repair=repair)
        if wrong:
            return [_finding(*row) for row in wrong]
    return None


async def _count(store: Store, users: set[str], since_ms: int) -> Counted | None:
    """Two rounds: how many are held is known after the first."""
    names, held = sorted(users), list[Span]()
    for _ in range(2):
        looks = await _looks(store, names, since_ms, held)
        if looks is None:
            return None
        if newcomers := {name for look in looks for name in look.newcomers} - users:
            users |= newcomers
            return None
        cards = [card for look in looks for card in look.held]
        found = [
            (name, first, first + SPAN - 1)
            for name, card in zip(names, cards, strict=True)
            for first in range(0, card, SPAN)
        ]
        if found == held:
            return _sum(looks)
        held = found
    return None


async def _looks(store: Store, names: list[str], since_ms: int, held: list[Span]) -> list[Counted] | None:
    chunks = list(batched(names, USERS)) or [()]
    is_little = len(held) == 1
    looks = [await store.count(since_ms, some, held if is_little and at == 0 else ()) for at, some in enumerate(chunks)]
    if not is_little:
        looks += [await store.count(since_ms, (), [span]) for span in held]
    found = [look for look in looks if look is not None]
    return found if len(found) == len(looks) else None


def _sum(looks: Iterable[Counted]) -> Counted | None:
    """None where something moved between two of them."""
    first, *others = looks
    if any(look.version != first.version for look in others):
        return None
    counted = {field: sum(look.counted[field] for look in (first, *others)) for field in first.counted}
    return first._replace(counted=counted)


def _finding(kind: bytes, key: bytes, detail: bytes, how: bytes) -> Finding:
    texts = [part.decode() for part in (kind, key, detail, how)]
    return Finding(kind=FindingKind(texts[0]), key=texts[1], detail=texts[2], mended=bool(texts[3]), how=texts[3])
