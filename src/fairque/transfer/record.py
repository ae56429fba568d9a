"""The records of a stream, each a msgpack array of its own, and how they are read.

A stream is a `Header`, any number of `Record`, ordered by kind and name, and an `End`.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import msgspec

from fairque.errors import BadExport

__all__ = ["VERSION", "AnyRecord", "Digest", "End", "Header", "Record", "decode", "encode"]

VERSION = 1
LARGEST = 1 << 30
_encoder = msgspec.msgpack.Encoder()


class Header(msgspec.Struct, array_like=True, frozen=True, tag="fairque.user", gc=False):
    """Whose records follow.

    Attributes:
        version: Of the records.
        layout: Of the data of the queue, see `redis.keys.LAYOUT`.
        export_id: Names the export: an import that was broken off goes on with records of the same one.
        queue, user_id: Where they come from.
        realm: What their sealed contents are bound to; "": they are not sealed.
        priority_step_ms: By which the scores of tasks are made.
        ahead: How far the user was ahead of the virtual time of its line.
        made_ms: When the export began, in ms since the epoch.
    """

    version: int
    layout: int
    export_id: str
    queue: str
    user_id: str
    realm: str
    priority_step_ms: int
    ahead: float
    made_ms: int


class Record(msgspec.Struct, array_like=True, frozen=True, tag="key", gc=False):
    """A page of a key.

    Attributes:
        kind: See `KINDS`.
        name: What stands behind the user in its name: a task id, a namespace, a day; or "".
        expires_ms: When it goes, in ms since the epoch; -1: never.
        parts: A string; members of a set or list; pairs of a hash, and of a sorted set: member and score; of a stream
            the id, the number of words and the words of each entry.
    """

    kind: str
    name: str
    expires_ms: int
    parts: list[bytes]

    def __repr__(self) -> str:  # without the contents
        return f"<Record {self.kind} {self.name!r}, {len(self.parts)} parts>"

    @property
    def size(self) -> int:
        """Bytes of its parts."""
        return sum(map(len, self.parts))


class End(msgspec.Struct, array_like=True, frozen=True, tag="end", gc=False):
    """Nothing is missing: so many records, and the SHA-256 of all before this."""

    records: int
    digest: bytes


AnyRecord: TypeAlias = Header | Record | End
_decoder = msgspec.msgpack.Decoder(AnyRecord)


def encode(record: AnyRecord) -> bytes:
    return _encoder.encode(record)


def decode(data: bytes) -> AnyRecord:
    """Raises `BadExport`."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise BadExport(f"a record is bytes, as export_user() yields them, not {type(data).__name__}")
    if len(data) > LARGEST:
        raise BadExport(f"a record has {len(data):,} bytes, the limit is {LARGEST:,}")
    try:
        record: AnyRecord = _decoder.decode(data)
        return record
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadExport(f"a record cannot be read: {exc}") from None


class Digest:
    """Over the bytes of records, each with its length."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self._hash.update(len(data).to_bytes(8, "big"))
        self._hash.update(data)

    @property
    def value(self) -> bytes:
        return self._hash.digest()
