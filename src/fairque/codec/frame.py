"""Contents within what is sealed: compressed where they are large, and unpacked within bounds."""

from __future__ import annotations

import zlib

from fairque.checks import check_count
from fairque.errors import BrokenSeal

__all__ = ["check_above", "packed", "unpacked"]

_PLAIN, _ZLIB = b"\0", b"\1"
LEVEL = 1  # of zlib: three times as fast as its default for a few percent of size


def check_above(name: str, above: int | None) -> int | None:
    """Raises `InvalidInput`."""
    return None if above is None else check_count(name, above, 0, 1 << 30)


def packed(plain: bytes, above: int | None) -> bytes:
    """With a byte in front that says whether it is compressed; it is beyond `above` bytes, where that helps."""
    if above is not None and len(plain) > above:
        smaller = zlib.compress(plain, LEVEL)
        if len(smaller) < len(plain):
            return _ZLIB + smaller
    return _PLAIN + plain


def unpacked(frame: bytes, most: int) -> bytes:
    """Raises `BrokenSeal` for what has more than `most` bytes: memory for more than that is never taken."""
    if frame[:1] == _PLAIN:
        return frame[1:]
    if frame[:1] != _ZLIB:
        raise BrokenSeal("what is sealed cannot be unpacked: it is in a format that is not known here")
    unpacking = zlib.decompressobj()
    try:
        plain = unpacking.decompress(memoryview(frame)[1:], most + 1)
    except zlib.error as exc:
        raise BrokenSeal(f"what is compressed cannot be unpacked: {exc}") from None
    if len(plain) > most:
        raise BrokenSeal(f"what is compressed has more than {most} bytes, the limit of the queue")
    if not unpacking.eof or unpacking.unused_data:
        raise BrokenSeal("what is compressed cannot be unpacked: it is not whole")
    return plain
