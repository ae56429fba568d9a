"""What one limit of the model allows, and which one holds for a key."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fairque.policy import Rate, next_start_us, tat_after_start_us

__all__ = ["KeyLimit", "Rules"]

_FILLED = re.compile(r"([^:=]*)=([^:]*):(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class KeyLimit:
    """`is_counted`: what ran before there was this limit. `is_paused`: nothing starts, whatever else is set."""

    max_running: int | None = None
    rate: Rate | None = None
    is_counted: bool = True
    is_paused: bool = False

    @property
    def limits(self) -> bool:
        """Whether it does when it is not paused."""
        return self.max_running is not None or self.rate is not None


class Rules:
    """Limits by record: ``<u>:<text>``, or ``<u>=<template>`` for many keys ``<u>=<template>:<text>``.

    Attributes:
        of: By record.
    """

    def __init__(self) -> None:
        self.of: dict[str, KeyLimit] = {}
        self._tats: dict[str, tuple[int, int]] = {}  # by key, and with which interval it was counted

    def limit(self, key: str) -> KeyLimit | None:
        """What was set for that text goes before what was for its template."""
        return next((self.of[record] for record in _records(key) if record in self.of), None)

    def set(self, record: str, max_running: int | None, rate: Rate | None, *, is_counted: bool) -> bool:
        """False: nothing has changed. `is_counted`: where there was none."""
        known = self.of.get(record, KeyLimit())
        counted = known.is_counted if known.limits else is_counted
        changed = KeyLimit(max_running, rate, counted, known.is_paused)
        if not changed.limits:
            changed = replace(changed, is_counted=True)
            self._tats.pop(record, None)
        return self._change(record, changed)

    def pause(self, record: str, *, is_paused: bool) -> bool:
        """False: nothing has changed."""
        return self._change(record, replace(self.of.get(record, KeyLimit()), is_paused=is_paused))

    def _change(self, record: str, changed: KeyLimit) -> bool:
        known = self.of.pop(record, KeyLimit())
        if changed.limits or changed.is_paused:
            self.of[record] = changed
        return changed != known

    def count(self) -> None:
        """What runs counts for all of them."""
        self.of = {record: replace(limit, is_counted=True) for record, limit in self.of.items()}

    def room(self, now_us: int, key: str, running: int) -> float:
        """How many may start now."""
        limit = self.limit(key)
        if limit is None:
            return math.inf
        if not limit.is_counted or limit.is_paused:
            return 0
        room = math.inf if limit.max_running is None else limit.max_running - running
        if limit.rate is not None:
            ahead = max(0, self._tat(key, limit.rate) - now_us) / limit.rate.interval_us
            room = min(room, math.floor(limit.rate.burst - ahead))
        return room

    def _tat(self, key: str, rate: Rate) -> int:
        tat_us, of_us = self._tats.get(key, (0, 0))
        return tat_us if of_us == rate.interval_us else 0

    def note_start(self, now_us: int, key: str) -> bool:
        """Whether that changes when the next one may."""
        limit = self.limit(key)
        if limit is None or limit.rate is None:
            return False
        interval_us = limit.rate.interval_us
        self._tats[key] = tat_after_start_us(now_us, self._tat(key, limit.rate), interval_us), interval_us
        return True

    def opens_ms(self, key: str) -> int:
        """When its rate lets one start."""
        limit = self.limit(key)
        if limit is None or limit.rate is None:
            return 0
        rate = limit.rate
        return math.ceil(next_start_us(self._tat(key, rate), rate.interval_us, rate.burst) / 1000)


def _records(key: str) -> Iterator[str]:
    filled = _FILLED.fullmatch(key)
    if filled is None:
        yield key
        return
    user, template, text = filled.groups()
    yield f"{user}:{text}"
    if user:
        yield f"{user}={template}"
    yield f"={template}"
