"""Frames: what a worker, its fork server and its subprocesses tell each other over sockets: length, kind, body."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec

from fairque.errors import WrongType
from fairque.models import BatchProgress
from fairque.tasks.cause import Cause
from fairque.tasks.message import NIL, Firing

__all__ = [
    "HEAD",
    "REQUEST",
    "Ended",
    "Entered",
    "Job",
    "Kind",
    "Logged",
    "Report",
    "Request",
    "Start",
    "Started",
    "entered",
    "frame",
]

HEAD = struct.Struct(">Ic")
REQUEST = struct.Struct(">cI")
"""Of a `Request` and the number of a subprocess. A socket comes with that of a new one."""


class Request(Enum):
    """To the fork server."""

    FORK = b"F"
    KILL = b"K"


class Kind(Enum):
    """Of a frame: to a subprocess come `START` and then `JOB`s, everything else goes to the worker."""

    START = b"S"
    JOB = b"J"
    TAKEN = b"B"
    """The body begins: until then, a subprocess that dies has done nothing of it."""
    REPLY = b"R"
    PROGRESS = b"P"
    LOG = b"L"
    ERROR = b"E"
    """Why a subprocess or the fork server could not start: the text of a traceback."""
    STARTED = b"T"
    ENDED = b"X"


class Start(msgspec.Struct, frozen=True):
    """What a subprocess takes over from its worker.

    Attributes:
        argv: Of the worker.
        path: Where it imports from.
        main_file, main_name: Its script, and the name of that as a module where it has one.
        levels: Of the loggers that have one, by name; that of the root logger is ''.
    """

    argv: list[str]
    path: list[str]
    main_file: str | None
    main_name: str | None
    levels: dict[str, int]


class Entered(msgspec.Struct, frozen=True):
    """A context manager that a body runs within: where its function is, and what that is called with."""

    module: str
    qualname: str
    given: dict[str, str]


class Job(msgspec.Struct, frozen=True):
    """A body to run: where its function is, what it is called with, and what `current_task()` is to say."""

    module: str
    qualname: str
    name: str
    args: msgspec.Raw
    kwargs: msgspec.Raw
    user_id: str
    task_id: str
    task_name: str
    attempt: int
    worker_id: str
    schedule: Firing | None
    inputs: msgspec.Raw = NIL
    headers: dict[str, str] = {}
    snoozed: int = 0
    soft_timeout: float | None = None
    cause: Cause | None = None
    ended_batch: BatchProgress | None = None
    queue_name: str = ""
    entered: list[Entered] = []


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What the body told by `progress`."""

    fraction: float
    message: str


class Logged(msgspec.Struct, frozen=True, array_like=True):
    """A log record.

    Attributes:
        fields: Of the record.
        is_handled: By handlers of its logger in the subprocess. Its module has set them up there as in the worker, so
            only those of the root logger are left.
    """

    fields: dict[str, Any]
    is_handled: bool


class Started(msgspec.Struct, frozen=True, array_like=True):
    """A subprocess is there, and has its socket."""

    number: int
    pid: int


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """A subprocess is gone: its number, and its exit code, or the signal that ended it as a negative one."""

    number: int
    code: int


def entered(manager: object, given: Mapping[str, str]) -> Entered:
    """Raises `WrongType` for what a subprocess could not find, or not be told."""
    module, qualname = getattr(manager, "__module__", None), getattr(manager, "__qualname__", "<")
    if not callable(manager) or not isinstance(module, str) or "<" in qualname:
        raise WrongType(f"what a body is to run within is a function at the top of a module, not {manager!r}")
    texts = dict(given)
    if not all(isinstance(each, str) for each in (*texts, *texts.values())):
        raise WrongType(f"what {qualname} is given in a subprocess must be texts by name, not {given!r}")
    return Entered(module, qualname, texts)


def frame(kind: Kind, body: Any) -> bytes:
    """Of a struct, or of bytes that are packed already."""
    packed = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
    return HEAD.pack(len(packed), kind.value) + packed
