"""What a record may hold: each of a kind is checked before anything of it is written, as a file may be by any hand."""

from __future__ import annotations

import math
import re
import struct
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from fairque.checks import check_id
from fairque.errors import BadExport, FairqueError
from fairque.metrics import metrics_in
from fairque.redis.delivery import NewCallback
from fairque.redis.keys import encode_user
from fairque.redis.store_schedules import decode_spec
from fairque.tasks.message import head_of, record_state
from fairque.tasks.options import MAX_COST, MIN_COST
from fairque.transfer.fields import LEFT_BEHIND
from fairque.transfer.kinds import KINDS, Part
from fairque.transfer.record import Record

__all__ = ["CHUNK_WORDS", "check_record"]

MOST_PARTS = 20_000
LONGEST_FIELD = 1 << 16
LATEST = 1 << 53
"""Of a moment or a number: a double holds it exactly."""
CHUNK_WORDS = 8
MEASURED, MEASURED_AT = 14, 9
DAY_MS = 86_400_000
_HEAD = 18
_callbacks_decoder = msgspec.msgpack.Decoder(tuple[NewCallback, ...])
_FIELD = re.compile(rb"[a-z_]{1,40}")
_STREAM_ID = re.compile(rb"(\d{1,15})-(\d{1,15})")
_HEX = re.compile(r"[0-9a-f]{1,128}")
_ENCODED = re.compile(r"[A-Za-z0-9._~%-]{1,1536}")
_LIMIT = re.compile(rb"(-|\d{1,15}) (-|\d{1,15}) (-|\d{1,15})")
_TASK_NUMBERS = (
    b"score priority attempt queued enqueued ended due delay waits failures lost returned snoozed since deaths came"
    b" expires"
)
_OTHER_NUMBERS = (
    b"tat tat_of open_until fails fails_since total finished failed canceled created complete ttl_ms keep_ms dead_ms"
    b" anchor slot runs skipped misfired last_run"
)
_NUMBERS = frozenset((*_TASK_NUMBERS.split(), *_OTHER_NUMBERS.split()))
"""Fields that scripts reckon with."""
_STATES = (b"queued", b"scheduled", b"deferred", b"failed")
_BATCH_STATES = (b"open", b"closed", b"canceled", b"abandoned")
_SCHEDULE_STATES = (b"active", b"paused", b"ended")


def check_record(record: Record, user_id: str) -> None:
    """Raises `BadExport`, which names the record and the rule."""
    kind = KINDS.get(record.kind)
    if kind is None:
        raise BadExport(f"there is no kind of records {record.kind[:40]!r}")
    try:
        _check_name(record.name, kind.part)
        _check_shape(record, kind.redis_type)
        _CHECKS.get(record.kind, _nothing)(record.parts)
        if record.kind == "schedule":
            _check_owner(record.parts, user_id)
    except BadExport as exc:
        raise BadExport(f"record {record.kind} {record.name[:80]!r}: {exc}") from None
    except (FairqueError, msgspec.MsgspecError, struct.error, ValueError, TypeError, RecursionError) as exc:
        raise BadExport(f"record {record.kind} {record.name[:80]!r} cannot be read: {exc}") from None


def _nothing(parts: Sequence[bytes]) -> None:
    """Any bytes are fine."""


def _must(is_so: object, rule: str) -> None:
    if not is_so:
        raise BadExport(rule)


def _number(text: bytes, least: float = -LATEST, most: float = LATEST) -> float:
    number = float(text)
    _must(math.isfinite(number) and least <= number <= most, f"{text[:40]!r} is no number of {least:g} to {most:g}")
    return number


def _id(text: bytes) -> str:
    return check_id("an id", text.decode())


# Names


def _check_name(name: str, part: Part) -> None:
    if part is Part.NONE:
        _must(not name, "there is one for each user, without a name")
    elif part in (Part.TASK, Part.BATCH, Part.SCHEDULE):
        check_id("its name", name)
    elif part is Part.LIMIT:
        _must(name[:1] in (":", "="), "a limit of a user begins with : or =")
        check_id("its name", name[1:])
    else:
        pattern = {Part.HASH: _HEX, Part.SPACE: _ENCODED, Part.DAY: re.compile(r"\d{1,7}")}[part]
        _must(pattern.fullmatch(name), "its name is none of that kind")


# Shapes


def _check_shape(record: Record, redis_type: str) -> None:
    parts = record.parts
    _must(parts, "it is empty")
    _must(len(parts) <= MOST_PARTS, f"it has {len(parts):,} parts, the limit is {MOST_PARTS:,}")
    _must(-1 <= record.expires_ms <= LATEST, f"it expires at {record.expires_ms}")
    if redis_type == "string":
        _must(len(parts) == 1, "it is one value")
    if redis_type in ("hash", "zset"):
        _must(len(parts) % 2 == 0, "it is made of pairs")
    if redis_type == "zset":
        for member, score in _pairs(parts):
            _id(member)
            _number(score, 0 if record.kind not in ("critical", "normal") else -LATEST)
    if redis_type == "set":
        for member in parts:
            _id(member)


def _pairs(parts: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(parts[::2], parts[1::2], strict=True)


def _check_fields(parts: Sequence[bytes], left_behind: Container[str] = ()) -> dict[bytes, bytes]:
    for name, value in _pairs(parts):
        _must(_FIELD.fullmatch(name), f"there is no field {name[:40]!r}")
        _must(name.decode() not in left_behind, f"field {name.decode()} does not go along")
        if name in _NUMBERS:
            _number(value)
    return dict(_pairs(parts))


# Tasks


def _check_task(parts: Sequence[bytes]) -> None:
    fields = _check_fields(parts, LEFT_BEHIND["task"])
    for name, value in fields.items():
        _must(
            len(value) <= LONGEST_FIELD,
            f"field {name.decode()} has {len(value):,} bytes, the limit is {LONGEST_FIELD:,}",
        )
    _must(fields.get(b"state", b"queued") in _STATES, f"there is no state {fields.get(b'state', b'')[:40]!r}")
    _must(fields.get(b"lane", b"normal") in (b"critical", b"normal"), "there is no such lane")
    _must((b"lane" in fields) == (b"score" in fields), "a lane and a score belong together")


def _check_body(body: bytes) -> None:
    """What shares go by is in the head; a body that is foreign behind it fails when it is run."""
    _must(len(body) >= _HEAD, f"a message has at least {_HEAD} bytes, not {len(body)}")
    _, cost, priority = head_of(body)
    _must(MIN_COST <= cost <= MAX_COST, f"a cost is from {MIN_COST:g} to {MAX_COST:g}, not {cost:g}")
    _must(1 <= priority <= 6, f"a priority is from 1 to 6, not {priority}")


def _check_result(parts: Sequence[bytes]) -> None:
    record_state(parts[0])


def _check_ends(parts: Sequence[bytes]) -> None:
    _check_packed_ends(parts[0])


def _check_packed_ends(packed: bytes, depth: int = 0) -> None:
    """As lib/ends.lua packs them, where texts may be any bytes."""
    life, callbacks, batch = _unpacked(packed)
    _must(isinstance(life, int) and 1 <= life <= LATEST and isinstance(batch, bytes), "its callbacks are none")
    _must(depth < 100 and len(callbacks) <= MOST_PARTS, "its callbacks are none")
    for kind, priority, when, body, after in callbacks.values() if isinstance(callbacks, dict) else callbacks:
        _must(kind in (b"on_success", b"on_failure", b"on_end", b"on_complete"), "it has a callback of no kind")
        _must(
            priority in range(1, 7) and re.fullmatch(rb"|\+?\d{1,15}|now\+\d{1,15}|collect \d{1,9} \d{1,15}", when),
            "it has a callback at no time",
        )
        _check_body(body)
        if after:
            _check_packed_ends(after, depth + 1)


def _unpacked(packed: bytes) -> Any:
    """What cmsgpack has packed: it knows texts alone, of any bytes, so each is read as bytes."""
    return _Reader(packed).whole()


class _Reader:
    """Of the few forms that cmsgpack writes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def whole(self) -> Any:
        value = self._value(0)
        _must(self._at == len(self._data), "it has something behind its end")
        return value

    def _take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        _must(len(found) == size, "it is broken off")
        self._at += size
        return found

    def _int(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "big", signed=signed)

    def _value(self, depth: int) -> Any:
        _must(depth < 50, "it is too deep")
        code = self._int(1)
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code <= 0x8F:
            return self._map(code & 0x0F, depth)
        if code <= 0x9F:
            return self._list(code & 0x0F, depth)
        if code <= 0xBF:
            return self._take(code & 0x1F)
        return self._long(code, depth)

    def _long(self, code: int, depth: int) -> Any:
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in (0xCA, 0xCB):
            return struct.unpack(">f" if code == 0xCA else ">d", self._take(4 if code == 0xCA else 8))[0]
        if 0xCC <= code <= 0xD3:
            return self._int(1 << (code & 3), signed=code >= 0xD0)
        if code in (0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB):
            size = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}[code]
            return self._take(self._int(size))
        if code in (0xDC, 0xDD):
            return self._list(self._int(2 if code == 0xDC else 4), depth)
        _must(code in (0xDE, 0xDF), "it has a value of no known form")
        return self._map(self._int(2 if code == 0xDE else 4), depth)

    def _list(self, size: int, depth: int) -> list[Any]:
        _must(size <= MOST_PARTS, "it has too many values")
        return [self._value(depth + 1) for _ in range(size)]

    def _map(self, size: int, depth: int) -> dict[Any, Any]:
        _must(size <= MOST_PARTS, "it has too many values")
        found = {}
        for _ in range(size):
            key = self._value(depth + 1)
            _must(isinstance(key, (bytes, int, float)), "it has a key of no known form")
            found[key] = self._value(depth + 1)
        return found


def _check_chunks(parts: Sequence[bytes]) -> None:
    at, before = 0, (0, 0)
    while at < len(parts):
        _must(len(parts) >= at + 2 + CHUNK_WORDS and parts[at + 1] == b"%d" % CHUNK_WORDS, "its entries are none")
        found = _STREAM_ID.fullmatch(parts[at])
        _must(found, f"{parts[at][:40]!r} names no chunk")
        number = tuple(map(int, found.groups())) if found else before
        _must(number > before, "its entries are not in order")
        before = number  # type: ignore[assignment]
        words = dict(_pairs(parts[at + 2 : at + 2 + CHUNK_WORDS]))
        _must(set(words) == {b"of", b"bytes", b"earlier", b"chunks"}, "its entries are none")
        _number(words[b"bytes"], 0)
        _number(words[b"earlier"], 0)
        at += 2 + CHUNK_WORDS


def _check_announcements(parts: Sequence[bytes]) -> None:
    for part in parts:
        id_, outcome = _unpacked(part)
        _id(id_)
        _must(outcome in (b"finished", b"failed", b"canceled", b"discarded"), "it tells of no end")


def _check_ids(parts: Sequence[bytes]) -> None:
    for part in parts:
        _id(part)


# What the user has beside


def _check_batch(parts: Sequence[bytes]) -> None:
    fields = _check_fields(parts)
    _must(fields.get(b"state") in _BATCH_STATES, "it has no state")
    _must({b"created", b"keep_ms", b"dead_ms", b"ttl_ms"} <= fields.keys(), "it lacks what it is made of")
    for name in (b"on_complete", b"on_success"):
        if name in fields:
            _check_packed_ends(fields[name])


def _check_xcom(parts: Sequence[bytes]) -> None:
    for key, value in _pairs(parts):
        _must(key, "a key is empty")
        [expiry] = struct.unpack_from(">d", value)
        _must(0 <= expiry <= LATEST, f"a value expires at {expiry}")


def _check_schedule(parts: Sequence[bytes]) -> None:
    fields = _check_fields(parts)
    _must(
        {b"user", b"name", b"spec", b"anchor", b"body", b"priority", b"revision", b"state"} <= fields.keys(),
        "it lacks what it is made of",
    )
    _must(fields[b"state"] in _SCHEDULE_STATES, "it has no state")
    decode_spec(fields[b"spec"])
    _check_body(fields[b"body"])
    if b"callbacks" in fields:
        _check_callbacks(fields[b"callbacks"])


def _check_callbacks(packed: bytes) -> None:
    """Of those that are sealed, or cannot be read, nothing comes that was not sealed for this user."""
    try:
        callbacks = _callbacks_decoder.decode(packed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    for callback in _all_of(callbacks):
        _check_body(callback.body)


def _all_of(callbacks: Iterable[NewCallback]) -> Iterator[NewCallback]:
    for callback in callbacks:
        yield callback
        yield from _all_of(callback.after)


def _check_owner(parts: Sequence[bytes], user_id: str) -> None:
    owner = dict(_pairs(parts)).get(b"user", b"")
    _must(owner == encode_user(user_id).encode(), f"it is of {owner[:80]!r}, not of the user")


def _check_user(parts: Sequence[bytes]) -> None:
    _check_fields(parts, LEFT_BEHIND["user"])


def _check_metrics(parts: Sequence[bytes]) -> None:
    values = _unpacked(parts[0])
    _must(isinstance(values, list) and len(values) >= MEASURED and len(values) % 2 == 0, "it is no list of numbers")
    for value in values:
        _must(
            isinstance(value, (int, float)) and math.isfinite(value) and abs(value) <= LATEST,
            "it is no list of numbers",
        )
    _must(0 <= values[MEASURED_AT] <= time.time() * 1000 + DAY_MS, "it was measured in a time that has not come")
    metrics_in(parts[0], int(values[MEASURED_AT]))


def _check_usage(parts: Sequence[bytes]) -> None:
    for hour, packed in _pairs(parts):
        _number(hour, 0, 23)
        _must(len(numbers := _unpacked(packed)) == 3, "an hour has three numbers")
        for number in numbers:
            _must(isinstance(number, (int, float)) and abs(number) <= LATEST, "an hour has three numbers")


def _check_limit(parts: Sequence[bytes]) -> None:
    for name, value in _pairs(parts):
        if name in (b"hand", b"code"):
            _must(_LIMIT.fullmatch(value), f"{value[:40]!r} is no limit")


_CHECKS: dict[str, Callable[[Sequence[bytes]], None]] = {
    "task": _check_task,
    "body": lambda parts: _check_body(parts[0]),
    "result": _check_result,
    "ends": _check_ends,
    "chunks": _check_chunks,
    "collected": _check_ids,
    "unique": _check_ids,
    "batch": _check_batch,
    "announcements": _check_announcements,
    "collecting": lambda parts: _check_ids(parts[1::2]),
    "xcom": _check_xcom,
    "schedule": _check_schedule,
    "user": _check_user,
    "metrics": _check_metrics,
    "usage": _check_usage,
    "limit": _check_limit,
}
