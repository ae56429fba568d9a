"""What the scripts measure, of several partitions together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from fairque.metrics import HOUR_MS, RECENT_MS

__all__ = ["merged_metrics", "merged_usage"]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[float]).decode
_TOTALS, _RECENT, _AT, _AGE, _HOUR, _WAITS = slice(0, 6), slice(6, 9), 9, 10, slice(11, 14), 14
_HOURS_OF_DAY = 24


def merged_metrics(blobs: Sequence[bytes]) -> bytes:
    """As the scripts keep it, see `metrics_in`: at the latest moment of any, to which what is recent has faded."""
    measured = [_decode(blob) for blob in blobs if blob]
    if len(measured) < 2:
        return _encode(measured[0]) if measured else b""
    at = max(each[_AT] for each in measured)
    begun = min(each[_AT] - each[_AGE] for each in measured)
    totals = [math.fsum(column) for column in zip(*(each[_TOTALS] for each in measured), strict=True)]
    faded = [[part * math.exp((each[_AT] - at) / RECENT_MS) for part in each[_RECENT]] for each in measured]
    recent = [math.fsum(column) for column in zip(*faded, strict=True)]
    now = [each[_HOUR] for each in measured if each[_AT] // HOUR_MS == at // HOUR_MS]
    hour = [math.fsum(column) for column in zip(*now, strict=True)]
    waits: defaultdict[float, float] = defaultdict(float)
    for each in measured:
        for bucket, count in zip(each[_WAITS::2], each[_WAITS + 1 :: 2], strict=True):
            waits[bucket] += count
    flat = [part for pair in sorted(waits.items()) for part in pair]
    return _encode([*totals, *recent, at, at - begun, *hour, *flat])


def merged_usage(days: Sequence[int], replies: Sequence[Sequence[Any]]) -> list[Any]:
    """As usage.lua tells it. An hour that is over somewhere, and not written down yet, is: another one goes on."""
    blobs = [reply[1] for reply in replies]
    latest = max((_decode(blob)[_AT] // HOUR_MS for blob in blobs if blob), default=0)
    hours: defaultdict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for reply in replies:
        for day, flat in zip(days, reply[2:], strict=True):
            for hour, packed in zip(flat[::2], flat[1::2], strict=True):
                _add(hours[day, int(hour)], msgspec.msgpack.decode(packed))
    for blob in filter(None, blobs):
        values = _decode(blob)
        if (hour_at := int(values[_AT] // HOUR_MS)) < latest:
            _add(hours[divmod(hour_at, _HOURS_OF_DAY)], values[_HOUR])
    tables: list[list[bytes]] = [[] for _ in days]
    place = {day: at for at, day in enumerate(days)}
    for (day, hour), used in hours.items():
        if day in place:
            tables[place[day]] += [b"%d" % hour, _encode(used)]
    return [max(reply[0] for reply in replies), merged_metrics(blobs), *tables]


def _add(total: list[float], more: Sequence[float]) -> None:
    for at, value in enumerate(more):
        total[at] += value
