"""The wire message: what lies in Redis for a task, and the record of how it ended.

A body is a head of 18 bytes that the scripts read (version, nonce, cost, priority) and a msgpack array behind it.
Behind the array of a callback, in the same array, are the id of the task that it follows, and the record of how that
ended: the scripts add them.
A result record starts with the same version and nonce, one letter for the state, and a msgpack array.
The nonce names the call that wrote it, so that a repeated call recognises its own work.
"""

from __future__ import annotations

import math
import os
import struct
from datetime import UTC, datetime
from typing import Any

import msgspec

from fairque.checks import check_count, check_seconds
from fairque.errors import MessageTooLarge, StoreError
from fairque.models import FailureKind, Priority, TaskState
from fairque.tasks.retry import MAX_RETRIES, RetryPolicy
from fairque.tasks.types.adapters import encode

__all__ = [
    "BadMessage",
    "Firing",
    "LimitKey",
    "Message",
    "Overrides",
    "Record",
    "cost_in",
    "decode_body",
    "decode_record",
    "encode_body",
    "encode_record",
    "encode_value",
    "follow_up_in",
    "head_of",
    "is_payload",
    "joined_follow_up",
    "name_in",
    "new_nonce",
    "parted_follow_up",
    "priority_in",
    "record_state",
]

VERSION = 1
NIL = msgspec.Raw(b"\xc0")
_HEAD = struct.Struct(">B8sdB")
_PRIORITY_AT = _HEAD.size - 1
_OF_FOUR, _OF_SIX = b"\x94", b"\x96"  # how the array of a message begins, and that of a callback
_PRIORITIES = {int(priority): priority for priority in Priority}
_STATES = {TaskState.FINISHED: b"F", TaskState.FAILED: b"X", TaskState.CANCELED: b"C"}
_LETTERS = {letter: state for state, letter in _STATES.items()}


class BadMessage(StoreError):
    """A body or a result in Redis that this version cannot read; the text says why."""


class Firing(msgspec.Struct, frozen=True):
    """Which firing of which schedule made a task.

    Attributes:
        schedule_id: Of the schedule.
        cron: Its cron expression, None where it has none.
        planned_ms: The moment that was planned, in ms since the epoch, without jitter and delay; of a run by hand, when
            that was asked for.
    """

    schedule_id: str
    cron: str | None
    planned_ms: int

    @property
    def planned_at(self) -> datetime:
        """The moment that was planned, as an aware datetime in UTC."""
        return datetime.fromtimestamp(self.planned_ms / 1000, UTC)


class Overrides(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What was decided at the call; what is missing comes from the function that the worker has registered.

    Checked when a message is read as well: what lies in Redis may be damaged or by another hand, and a timeout that is
    no time would harm the worker instead of the task. Raises `InvalidInput`.
    """

    max_retries: int | None = None
    retry: RetryPolicy | None = None
    timeout: float | None = None
    soft_timeout: float | None = None
    result_ttl: float | None = None
    depends_on: list[str] = []
    inputs: list[str] = []  # the tasks whose outputs stand in the arguments, by index
    runs_anyway: bool = False  # whatever became of what it depends on
    schedule: Firing | None = None
    headers: dict[str, str] = {}
    unsaid: list[str] = []  # what its code is to say, which its producer did not know: cost, limits, priority
    batch: str = ""  # that counts it
    parent: str = ""  # that put it in
    debounced: str = ""  # where contents are sealed: the hash of the key whose calls share an id

    def __post_init__(self) -> None:
        if self.max_retries is not None:
            check_count("max_retries", self.max_retries, 0, MAX_RETRIES)
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)
        if self.soft_timeout is not None:
            check_seconds("soft_timeout", self.soft_timeout)
        if self.result_ttl is not None:
            check_seconds("result_ttl", self.result_ttl)


class LimitKey(msgspec.Struct, frozen=True, array_like=True):
    """A limit key of a task, filled. `template`: what it was filled from, percent-encoded, or where each user counts
    for itself the text; the scripts look a limit up by it. See lua/lib/limits.lua.
    """

    text: str
    template: str | None = None
    each_user: bool = False


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One task. `args` and `kwargs` stay encoded until the function they are for is known.

    The arguments of a function are an array, the payload for a handler is a map. The heading is a name, or an array of
    the name and limit keys: it comes first, so that scripts need not read what is behind it.
    """

    heading: str | list[str | LimitKey]
    args: msgspec.Raw
    kwargs: msgspec.Raw = NIL
    overrides: Overrides | None = None

    @property
    def name(self) -> str:
        return self.heading if isinstance(self.heading, str) else str(self.heading[0])

    @property
    def limits(self) -> tuple[LimitKey, ...]:
        """Those beside its name."""
        return tuple(key for key in self.heading if isinstance(key, LimitKey))


class Record(msgspec.Struct, frozen=True, array_like=True):
    """How a task ended. Times are ms since the epoch on the server's clock. `value` stays encoded."""

    name: str
    attempt: int
    queued_ms: int
    started_ms: int
    run_ms: float
    worker: str
    value: msgspec.Raw = NIL
    kept: bool = True
    kind: FailureKind | None = None
    type_name: str = ""
    message: str = ""
    traceback: str = ""
    root: str = ""  # of one that a dependency ended: the task with which that began


class FollowUp(msgspec.Struct, frozen=True, array_like=True):
    """The message of a callback, with what the scripts add: whose end it follows, and the record of that."""

    heading: msgspec.Raw
    args: msgspec.Raw
    kwargs: msgspec.Raw
    overrides: msgspec.Raw
    follows: str = ""
    record: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_message_decoder = msgspec.msgpack.Decoder(Message)
_follow_up_decoder = msgspec.msgpack.Decoder(FollowUp)
_record_decoder = msgspec.msgpack.Decoder(Record)


def new_nonce() -> bytes:
    return os.urandom(8)


def encode_body(message: Message, nonce: bytes, cost: float, priority: int, limit: int) -> bytes:
    """Head and message, at most `limit` bytes; raises `MessageTooLarge`."""
    body = _HEAD.pack(VERSION, nonce, cost, priority) + _encoder.encode(message)
    if len(body) > limit:
        raise MessageTooLarge(f"the message of task {message.name!r} has {len(body)} bytes, the limit is {limit}")
    return body


def head_of(body: bytes) -> tuple[bytes, float, int]:
    """Nonce, cost and priority."""
    _, nonce, cost, priority = _HEAD.unpack_from(body)
    return nonce, cost, priority


def cost_in(body: bytes) -> float:
    """As the head says; a foreign message costs 1, and one whose cost is no cost."""
    if len(body) < _HEAD.size or body[0] != VERSION:
        return 1.0
    cost = head_of(body)[1]
    return cost if 0 <= cost < math.inf else 1.0


def priority_in(body: bytes) -> Priority | None:
    """None where the body is gone or foreign."""
    return _PRIORITIES.get(body[_PRIORITY_AT]) if len(body) >= _HEAD.size else None


def decode_body(body: bytes) -> Message:
    """Raises `BadMessage` for what is corrupt, foreign, truncated or was too large to be handed out."""
    if body.startswith(b"\0"):
        raise BadMessage(f"the message in Redis is {body[1:101].decode(errors='replace')}")
    if len(body) < _HEAD.size:
        raise BadMessage(f"the message in Redis is truncated: {len(body)} bytes")
    if body[0] != VERSION:
        raise BadMessage(f"the message in Redis has version {body[0]}, this worker reads version {VERSION}")
    try:
        return _message_decoder.decode(memoryview(body)[_HEAD.size :])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the message in Redis cannot be decoded: {exc}") from None


def follow_up_in(body: bytes) -> tuple[str, bytes]:
    """Of a callback, the id of the task that it follows and the record of how that ended; else both empty."""
    try:
        found = _follow_up_decoder.decode(memoryview(body)[_HEAD.size :])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "", b""
    return found.follows, found.record


def parted_follow_up(body: bytes) -> tuple[bytes, bytes]:
    """The body of a callback as its producer made it, and what the scripts added; nothing to that of another task.

    Raises `BadMessage`.
    """
    at = _HEAD.size
    if body[at : at + 1] != _OF_SIX:
        return body, b""
    try:
        found = _follow_up_decoder.decode(memoryview(body)[at:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the message in Redis cannot be decoded: {exc}") from None
    end = at + 1 + sum(len(bytes(part)) for part in (found.heading, found.args, found.kwargs, found.overrides))
    return b"".join((body[:at], _OF_FOUR, body[at + 1 : end])), body[end:]


def joined_follow_up(body: bytes, added: bytes) -> bytes:
    """See `parted_follow_up`."""
    return b"".join((body[: _HEAD.size], _OF_SIX, body[_HEAD.size + 1 :], added)) if added else body


def name_in(body: bytes) -> str:
    """The name of the task, empty where it cannot be read."""
    try:
        return decode_body(body).name
    except BadMessage:
        return ""


def is_payload(args: msgspec.Raw) -> bool:
    first = memoryview(args)[0]
    return first & 0xF0 == 0x80 or first in (0xDE, 0xDF)


def encode_record(body: bytes, state: TaskState, record: Record) -> bytes:
    return body[:9].ljust(9, b"\0") + _STATES[state] + _encoder.encode(record)


def decode_record(data: bytes) -> tuple[TaskState, Record]:
    try:
        return record_state(data), _record_decoder.decode(memoryview(data)[10:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the result in Redis cannot be decoded: {exc}") from None


def record_state(data: bytes) -> TaskState:
    try:
        return _LETTERS[data[9:10]]
    except KeyError:
        raise BadMessage(f"the result in Redis cannot be decoded: it begins with {data[:10]!r}") from None


def encode_value(value: Any) -> bytes:
    """Raises `TypeError`, `ValueError`, `OverflowError` or `RecursionError` for what cannot travel."""
    return encode(value)
