"""Figures as bytes, on their way from one process to another."""

from __future__ import annotations

import msgspec

from fairque import InvalidInput
from fairque.contrib.prometheus.catalogue import CATALOGUE, PROCESS
from fairque.contrib.prometheus.figures import Figures, Labels, Row

__all__ = ["figures_in", "snapshot_of"]

_decode = msgspec.msgpack.Decoder(dict[str, dict[Labels, Row]]).decode


def snapshot_of(figures: Figures) -> bytes:
    """As they are at one moment, whatever other threads write."""
    return msgspec.msgpack.encode(figures.rows)


def figures_in(snapshot: bytes) -> Figures:
    """Raises `InvalidInput` for what is no snapshot of this version."""
    figures = Figures(PROCESS)
    try:
        figures.rows |= _decode(snapshot)
    except msgspec.MsgspecError as exc:
        raise InvalidInput(f"this is no snapshot of metrics: {exc}") from None
    for name, rows in figures.rows.items():
        metric = CATALOGUE.get(name)
        length = len(metric.buckets) + 2 if metric is not None and metric.buckets else 1
        if metric not in PROCESS or any(len(row) != length for row in rows.values()):
            raise InvalidInput(f"this is no snapshot of metrics: {name!r} is not one that this version has")
    return figures
