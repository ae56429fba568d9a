"""How messages, results and errors look that a codec has sealed.

What scripts and listings read stays where it is, readable; of a message that is all but the arguments. It cannot be
changed all the same: what is sealed is bound to all that stands around it. Sealed bytes are a msgpack extension of
their own; where a text is expected, they are a text.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import struct
from collections.abc import Callable
from typing import TypeVar

import msgspec

from fairque.codec.codec import Kind, Sealer
from fairque.errors import BrokenSeal, MessageTooLarge, SealError, UnknownKey
from fairque.models import Attempt, FailureKind, TaskState
from fairque.tasks.message import (
    NIL,
    BadMessage,
    Message,
    Record,
    decode_body,
    decode_record,
    encode_body,
    encode_record,
    head_of,
    joined_follow_up,
    parted_follow_up,
)

__all__ = [
    "chunks_place",
    "encode_attempt",
    "open_body",
    "open_record",
    "open_task",
    "open_value",
    "read_attempt",
    "read_reason",
    "read_record",
    "read_text",
    "seal_body",
    "seal_callback",
    "seal_reason",
    "seal_record",
    "seal_task",
    "seal_text",
    "seal_value",
]

SEALED = 83  # the msgpack extension
_HEADERS = {
    0xC7: 3,
    0xC8: 4,
    0xC9: 6,
}  # bytes in front of an extension: by its first one, for how its length is written
_MARK = msgspec.Raw(b"\xc1" * 16)  # stands for what is sealed until it is: neither a text nor a number contains it
_TEXT = "\x1dsealed:"
_QUIET = "(sealed)"
_UNSEALED = "(not shown: it is not sealed)"
_LEFT_OUT = "not kept: there was no key to seal it with"
_OF_SCRIPTS = frozenset(
    ("", _LEFT_OUT, "not kept: its user has no bytes left (max_bytes)", "not told: too large for a message")
)
_PRIORITY_AT = 17  # in a body
_reasons_of_scripts = re.compile(
    r"expired|purge|the next run of its schedule|its message was lost|dropped: the backlog of its user is full"
    r"|its parent .+ was canceled|dependency .+ (?:failed|canceled|discarded|expired)(?:, which began with .+)?",
    re.DOTALL,
)
_numbers = re.compile(r"(\.on_(?:success|failure|end|complete))(?:-\d+)+")  # of ids of callbacks
HasTexts = TypeVar("HasTexts", Record, Attempt)
_encode = msgspec.msgpack.Encoder().encode
_pair = msgspec.msgpack.Decoder(tuple[msgspec.Raw, msgspec.Raw])
_texts = msgspec.msgpack.Decoder(tuple[str, str])
_attempt_decoder = msgspec.msgpack.Decoder(Attempt)


# Messages


def seal_body(sealer: Sealer | None, kind: Kind, user_id: str, name: str, body: bytes, limit: int) -> bytes:
    """An encoded body with its arguments sealed. Raises `UnknownKey` and `MessageTooLarge`."""
    if sealer is None:
        return body
    return _seal_body(sealer, kind, user_id, name, body, decode_body(body), limit)


def seal_task(sealer: Sealer | None, user_id: str, task_id: str, body: bytes, limit: int) -> bytes:
    """The same for a task of this id; for a callback, with what the scripts added."""
    if sealer is None:
        return body
    body, added = parted_follow_up(body)
    message = decode_body(body)
    kind, name = _bound_to(message, added, task_id)
    made = _seal_body(sealer, kind, user_id, name, body, message, limit - len(added))
    return joined_follow_up(made, added)


def seal_callback(sealer: Sealer | None, user_id: str, task_id: str, body: bytes, limit: int) -> bytes:
    """The same for a callback, whose id will be this one, but for numbers."""
    return seal_body(sealer, Kind.CALLBACK, user_id, _without_numbers(task_id), body, limit)


def _seal_body(sealer: Sealer, kind: Kind, user_id: str, name: str, body: bytes, message: Message, limit: int) -> bytes:
    arguments = b"".join((b"\x92", message.args, message.kwargs))
    shell = msgspec.structs.replace(message, args=_MARK, kwargs=NIL)
    before, after = _around(encode_body(shell, *head_of(body), limit))
    sealed = sealer.seal(kind, user_id, name, arguments, _joined(_without_priority(before), after))
    if sealed is None:
        return body
    made = b"".join((before, _extension(sealed), after))
    if len(made) > limit:
        raise MessageTooLarge(
            f"the message of task {message.name!r} has {len(made)} bytes when it is sealed, the limit is {limit}"
        )
    return made


def open_body(sealer: Sealer | None, kind: Kind, user_id: str, name: str, body: bytes) -> Message:
    """The message with its arguments. Raises `BadMessage`, `UnknownKey` and `BrokenSeal`."""
    message = decode_body(body)
    if _sealed_in(message.args) is None and (sealer is None or sealer.accepts_plain):
        return message
    return _open_body(sealer, kind, user_id, name, body, message)


def open_task(sealer: Sealer | None, user_id: str, task_id: str, body: bytes) -> Message:
    """The same for the task of this id."""
    message = decode_body(body)
    if sealer is None and memoryview(message.args)[0] not in _HEADERS:  # the most of them, for which it is to be fast
        return message
    if _sealed_in(message.args) is None and (sealer is None or sealer.accepts_plain):
        return message
    body, added = parted_follow_up(body)
    kind, name = _bound_to(message, added, task_id)
    return _open_body(sealer, kind, user_id, name, body, message)


def _open_body(sealer: Sealer | None, kind: Kind, user_id: str, name: str, body: bytes, message: Message) -> Message:
    sealed = _sealed_in(message.args)
    opened = _opened(sealer, kind, user_id, name, sealed, _beside(message.args, _without_priority(body)))
    try:
        args, kwargs = _pair.decode(opened)
    except msgspec.MsgspecError as exc:
        raise BadMessage(f"the arguments in Redis cannot be decoded: {exc}") from None
    return msgspec.structs.replace(message, args=args, kwargs=kwargs)


def _bound_to(message: Message, added: bytes, task_id: str) -> tuple[Kind, str]:
    if added:
        return Kind.CALLBACK, _without_numbers(task_id)
    if message.overrides is not None and message.overrides.debounced:
        return Kind.DEBOUNCED, message.overrides.debounced
    return Kind.ARGUMENTS, task_id


def _without_numbers(task_id: str) -> str:
    """Which the scripts give to a second callback of a kind, to one of a second life, or where the id is taken."""
    return _numbers.sub(r"\1", task_id)


def _without_priority(body: bytes) -> bytes:
    """Which may be changed while a task waits."""
    return b"".join((body[:_PRIORITY_AT], b"\0", body[_PRIORITY_AT + 1 :]))


# Values


def seal_value(
    sealer: Sealer | None, kind: Kind, user_id: str, name: str, value: bytes, associated: bytes = b""
) -> bytes:
    """Raises `UnknownKey`."""
    sealed = sealer.seal(kind, user_id, name, value, associated) if sealer is not None else None
    return value if sealed is None else _extension(sealed)


def open_value(
    sealer: Sealer | None, kind: Kind, user_id: str, name: str, value: bytes, associated: bytes = b""
) -> bytes:
    """Raises `UnknownKey` and `BrokenSeal`."""
    sealed = _sealed_in(value)
    if sealed is None and (sealer is None or sealer.accepts_plain):
        return value
    return _opened(sealer, kind, user_id, name, sealed, associated)


def chunks_place(delivery: bytes, last: int) -> bytes:
    """What a batch of chunks is bound to beside its task: its delivery, and the number of its last chunk."""
    return b"%s %d" % (delivery, last)


# Records


def seal_record(
    sealer: Sealer | None, user_id: str, task_id: str, body: bytes, state: TaskState, record: Record
) -> bytes:
    """A record with its value, or its texts, sealed. Texts that cannot be are left out.

    Raises `UnknownKey` for a value.
    """
    if sealer is None or not (record.kept and state in (TaskState.FINISHED, TaskState.FAILED)):
        return encode_record(body, state, record)
    if state is TaskState.FAILED:
        return _with_texts(
            sealer, Kind.FAILURE, user_id, task_id, record, lambda shell: encode_record(body, state, shell)
        )
    before, after = _around(encode_record(body, state, msgspec.structs.replace(record, value=_MARK)))
    sealed = sealer.seal(Kind.RESULT, user_id, task_id, bytes(record.value), _joined(before, after))
    return b"".join((before, bytes(record.value) if sealed is None else _extension(sealed), after))


def read_record(sealer: Sealer | None, user_id: str, task_id: str, data: bytes) -> tuple[TaskState, Record]:
    """How a task ended. Its value stays as it is; a text that cannot be opened is one that says so."""
    state, record = decode_record(data)
    if state is TaskState.CANCELED:
        message = read_reason(sealer, user_id, task_id, record.message)
        return state, msgspec.structs.replace(record, message=message)
    if state is not TaskState.FAILED:
        return state, record
    return state, _with_read_texts(sealer, Kind.FAILURE, user_id, task_id, data, record)


def open_record(sealer: Sealer | None, user_id: str, task_id: str, data: bytes) -> tuple[TaskState, Record]:
    """The same with its value. Raises `UnknownKey` and `BrokenSeal`."""
    state, record = read_record(sealer, user_id, task_id, data)
    sealed = _sealed_in(record.value)
    if sealed is None and (
        sealer is None or sealer.accepts_plain or not record.kept or state is not TaskState.FINISHED
    ):
        return state, record
    value = _opened(sealer, Kind.RESULT, user_id, task_id, sealed, _beside(record.value, data))
    return state, msgspec.structs.replace(record, value=msgspec.Raw(value))


def encode_attempt(sealer: Sealer | None, user_id: str, task_id: str, attempt: Attempt) -> bytes:
    """With its texts sealed."""
    if sealer is None:
        return _encode(attempt)
    return _with_texts(sealer, Kind.ATTEMPT, user_id, task_id, attempt, _encode)


def read_attempt(sealer: Sealer | None, user_id: str, task_id: str, data: bytes) -> Attempt:
    """A text that cannot be opened is one that says so."""
    attempt = _attempt_decoder.decode(data)
    return _with_read_texts(sealer, Kind.ATTEMPT, user_id, task_id, data, attempt)


# Texts


def seal_text(sealer: Sealer | None, kind: Kind, user_id: str, name: str, text: str, associated: bytes) -> str:
    """Without a key to seal it with, nothing is left of it."""
    if sealer is None or not text:
        return text
    try:
        sealed = sealer.seal(kind, user_id, name, text.encode(), associated)
    except UnknownKey:
        return ""
    return text if sealed is None else _as_text(sealed)


def read_text(sealer: Sealer | None, kind: Kind, user_id: str, name: str, text: str, associated: bytes) -> str:
    """One that cannot be opened is a text that says so."""
    if not text.startswith(_TEXT):
        return text if sealer is None or sealer.accepts_plain or not text else _UNSEALED
    if sealer is None:
        return _QUIET
    try:
        return sealer.open(kind, user_id, name, _from_text(text), associated).decode()
    except SealError as exc:
        return f"({exc})"


def seal_reason(sealer: Sealer | None, user_id: str, task_id: str, reason: str) -> str:
    """Why a task is canceled; without an id, many of the user. Without a key to seal it with, nothing is left of it."""
    return seal_text(sealer, Kind.CANCELLATION, user_id, task_id, reason, b"")


def read_reason(sealer: Sealer | None, user_id: str, task_id: str, text: str) -> str:
    """One that cannot be opened is a text that says so. What scripts give as a reason of their own is not sealed."""
    if text in _OF_SCRIPTS or _reasons_of_scripts.fullmatch(text):
        return text
    if sealer is not None and text.startswith(_TEXT):
        with contextlib.suppress(SealError):
            return sealer.open(Kind.CANCELLATION, user_id, "", _from_text(text)).decode()
    return read_text(sealer, Kind.CANCELLATION, user_id, task_id, text, b"")


def _with_texts(
    sealer: Sealer, kind: Kind, user_id: str, name: str, of: HasTexts, encode: Callable[[HasTexts], bytes]
) -> bytes:
    """What has a message and a traceback, encoded, with both sealed as its message."""
    before, after = _around(encode(msgspec.structs.replace(of, message=_MARK, traceback="")))
    try:
        sealed = sealer.seal(kind, user_id, name, _encode((of.message, of.traceback)), _joined(before, after))
    except UnknownKey:
        return encode(msgspec.structs.replace(of, message=_LEFT_OUT, traceback=""))
    return encode(of) if sealed is None else b"".join((before, _encode(_as_text(sealed)), after))


def _with_read_texts(sealer: Sealer | None, kind: Kind, user_id: str, name: str, data: bytes, of: HasTexts) -> HasTexts:
    message = of.message
    if not message.startswith(_TEXT):
        is_readable = sealer is None or sealer.accepts_plain or of.kind is FailureKind.QUOTA
        if is_readable or (message in _OF_SCRIPTS and not of.traceback):
            return of
        return msgspec.structs.replace(of, message=_UNSEALED, traceback="")
    if sealer is None:
        return msgspec.structs.replace(of, message=_QUIET)
    try:
        opened = _opened(sealer, kind, user_id, name, _from_text(message), _beside(_encode(message), data))
        message, traceback = _texts.decode(opened)
    except (SealError, msgspec.MsgspecError) as exc:
        return msgspec.structs.replace(of, message=f"({exc})")
    return msgspec.structs.replace(of, message=message, traceback=traceback)


def _as_text(sealed: bytes) -> str:
    return _TEXT + base64.b64encode(sealed).decode()


def _from_text(text: str) -> bytes:
    try:
        return base64.b64decode(text[len(_TEXT) :], validate=True)
    except (binascii.Error, ValueError):
        raise BrokenSeal("a sealed text is damaged") from None


# What is sealed within what is not


def _around(encoded: bytes) -> tuple[bytes, bytes]:
    before, _, after = encoded.partition(bytes(_MARK))
    return before, after


def _beside(part: bytes | msgspec.Raw, whole: bytes) -> bytes:
    """All of it but for the part that is sealed, which is bound to that."""
    before, _, after = whole.partition(bytes(part))
    return _joined(before, after)


def _joined(before: bytes, after: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(before)), before, after))


def _extension(sealed: bytes) -> bytes:
    size = len(sealed)
    if size < 1 << 8:
        return struct.pack(">BBB", 0xC7, size, SEALED) + sealed
    if size < 1 << 16:
        return struct.pack(">BHB", 0xC8, size, SEALED) + sealed
    return struct.pack(">BIB", 0xC9, size, SEALED) + sealed


def _sealed_in(value: bytes | msgspec.Raw) -> bytes | None:
    """None: it is not sealed."""
    view = memoryview(value)
    try:
        header = _HEADERS.get(view[0])
    except IndexError:
        return None
    if header is None or len(view) < header or view[header - 1] != SEALED:
        return None
    return bytes(view[header:])


def _opened(
    sealer: Sealer | None,
    kind: Kind,
    user_id: str,
    name: str,
    sealed: bytes | None,
    associated: bytes,
) -> bytes:
    if sealed is None:
        raise BrokenSeal(f"the {kind} of {name!r}, of user {user_id!r}: not sealed, as they must be in this queue")
    if sealer is None:
        raise UnknownKey(f"the {kind} of {name!r}, of user {user_id!r}: sealed, and this queue has no codec here")
    return sealer.open(kind, user_id, name, sealed, associated)
