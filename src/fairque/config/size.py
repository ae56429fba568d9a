"""Sizes of memory as people write them: ``512M``, ``2G``."""

from __future__ import annotations

import re

from fairque.errors import InvalidInput

__all__ = ["parse_size"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15})(?:([KMGT])(?:i?B)?)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes, at least one, in a text like ``1000000``, ``512M`` or ``2GiB``; the units are powers of 1,024.

    Raises `InvalidInput`.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or not int(found[1]):
        raise InvalidInput(f"a size is bytes, as a number or like '512M' and '2G', not {text!r}")
    return int(found[1]) * _UNITS[(found[2] or "").upper()]
