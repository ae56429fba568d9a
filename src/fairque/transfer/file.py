"""Records of an export in a file: a mark, then each record behind its length, so that one that is broken off shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from fairque.errors import BadExport

__all__ = ["MARK", "framed", "records_in"]

MARK = b"fairque export\n"
_LENGTH = 4
_LARGEST = 1 << 30


def framed(record: bytes) -> bytes:
    """As it stands in a file, behind `MARK`."""
    return len(record).to_bytes(_LENGTH, "big") + record


def records_in(file: BinaryIO) -> Iterator[bytes]:
    """Raises `BadExport` for a file that is none, or is broken off within a record."""
    if file.read(len(MARK)) != MARK:
        raise BadExport("the file is no export of a user")
    while head := file.read(_LENGTH):
        length = int.from_bytes(head, "big")
        if len(head) < _LENGTH or length > _LARGEST:
            raise BadExport("the file is broken off, or was changed")
        record = file.read(length)
        if len(record) < length:
            raise BadExport("the file is broken off, or was changed")
        yield record
