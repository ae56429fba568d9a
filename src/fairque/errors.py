"""The error tree of fairque.

::

    FairqueError
    ├── InvalidInput (ValueError)        a value breaks a rule; nothing was written
    │   ├── ConfigError                  an option, a URL or a server that cannot be used
    │   │   └── SettingsMismatch         the queue has other settings, or data of another layout
    │   ├── BadArguments                 arguments that do not fit the function
    │   │   └── NotEncodable             arguments of a type that cannot be sent
    │   ├── MessageTooLarge              a message above `max_message_bytes`
    │   ├── BadExport                    records of a user that cannot be imported
    │   ├── BatchClosed                  a batch takes no more tasks
    │   ├── DependencyError              a task would wait for what is not known, or for itself
    │   ├── DuplicateTask                two functions under one name
    │   └── WrongType                    another kind of object than what is taken
    ├── UnknownTask (LookupError)        no task with this id, or its result has expired
    ├── UnknownBatch (LookupError)       no batch with this id, or it ended long ago
    ├── UnknownSchedule (LookupError)    no schedule with this id
    ├── XComMissing (LookupError)        no XCom value under this key, or it has expired
    ├── Restarted                        another run of a task begins, what was read of it counts no more
    ├── TaskExists                       a task with this id lives, and was to be no other
    ├── QueueFull                        a user has as many tasks waiting as its policy allows
    │   └── QuotaExceeded                a user has as many bytes as its policy allows
    ├── QueueUnavailable (ConnectionError)  Redis did not answer in time, or refuses to work
    ├── UserFrozen                       a user stands still, as it is exported, imported or moved
    ├── PipelineBlocked                  a run cannot end before a task that failed is requeued or discarded
    ├── StoreError                       Redis answered with an error that waiting does not cure
    │   └── NotPermitted                 the user of Redis may not run a command, or use a key or a channel
    ├── SealError                        what is sealed in Redis cannot be read here
    │   ├── UnknownKey (LookupError)     its key is not known here
    │   └── BrokenSeal                   it was changed, or moved from elsewhere, or is not sealed at all
    └── TaskEnded
        ├── TaskFailed                   the task failed; carries type name, message and traceback text
        ├── TaskCanceled                 the task was canceled; carries the reason
        └── ResultNotKept                the task finished, and was told to keep no result
    ResultTimeout (FairqueError, TimeoutError)  the task has not ended within the time one was ready to wait
    Retry, Snooze, Fail (Exception)      not errors of fairque: raised inside a task, to be run again, later, or never
    SoftTimeout (asyncio.CancelledError) raised into a task, that it may come to an end before its time is over
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

__all__ = [
    "BadArguments",
    "BadExport",
    "BatchClosed",
    "BrokenSeal",
    "ConfigError",
    "DependencyError",
    "DuplicateTask",
    "Fail",
    "FairqueError",
    "InvalidInput",
    "MessageTooLarge",
    "NotEncodable",
    "NotPermitted",
    "PipelineBlocked",
    "QueueFull",
    "QueueUnavailable",
    "QuotaExceeded",
    "Restarted",
    "ResultNotKept",
    "ResultTimeout",
    "Retry",
    "SealError",
    "SettingsMismatch",
    "Snooze",
    "SoftTimeout",
    "StoreError",
    "TaskCanceled",
    "TaskEnded",
    "TaskExists",
    "TaskFailed",
    "UnknownBatch",
    "UnknownKey",
    "UnknownSchedule",
    "UnknownTask",
    "UserFrozen",
    "WrongType",
    "XComMissing",
]


class _Whole(Exception):
    """Survives pickle and copy whatever its `__init__` takes, which is not called again."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[_Whole], args: tuple[Any, ...], attributes: dict[str, Any]) -> _Whole:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class FairqueError(_Whole):
    """The base of every error that fairque raises."""


class InvalidInput(FairqueError, ValueError):
    """A value breaks a rule. Nothing was written."""


class ConfigError(InvalidInput):
    """An option, a URL or a server that cannot be used."""


class SettingsMismatch(ConfigError):
    """The queue has other settings than those asked for, or data of another layout. Nothing was written."""


class BadArguments(InvalidInput):
    """Arguments that do not fit the function's annotations, or cannot be encoded."""


class NotEncodable(BadArguments):
    """Arguments of a type that cannot be sent: a mistake of the code that calls, never of its input."""


class MessageTooLarge(InvalidInput):
    """A message is larger than `max_message_bytes`."""


class BadExport(InvalidInput):
    """Records of a user that cannot be imported: broken off, changed, of another version, or of another queue. The call
    wrote nothing of the step in which it was found.
    """


class BatchClosed(InvalidInput):
    """A batch takes no more tasks: it was never opened, is closed, canceled or abandoned, or has ended."""


class DependencyError(InvalidInput):
    """A task would wait for one that is not known, for one of another user, or for itself."""


class WrongType(InvalidInput):
    """Another kind of object than what is taken, such as a function where a task is: a mistake of the code that calls,
    never of its input.
    """


class DuplicateTask(InvalidInput):
    """Two functions were registered under one name."""


class UnknownTask(FairqueError, LookupError):
    """No task with this id is known: never enqueued, or its result has expired."""


class UnknownBatch(FairqueError, LookupError):
    """No batch has this id: never opened, or it ended long ago."""


class UnknownSchedule(FairqueError, LookupError):
    """No schedule has this id: never added, removed, or ended long ago."""


class XComMissing(FairqueError, LookupError):
    """No XCom value is under this key in the namespaces asked: never pushed, or expired."""


class TaskExists(FairqueError):
    """A task with this id lives, and the call was to add a new one or none. Nothing was written.

    Attributes:
        user_id, task_id: Of the one that lives.
    """

    def __init__(self, message: str, user_id: str, task_id: str) -> None:
        super().__init__(message)
        self.user_id = user_id
        self.task_id = task_id


class QueueFull(FairqueError):
    """A user has as many tasks waiting as its policy allows. Nothing was written.

    Attributes:
        retry_after: Seconds after which there may be room, judged by how fast the user's tasks went lately, or by the
            end of its pause. None while it is paused without an end.
    """

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QuotaExceeded(QueueFull):
    """A user has as many bytes in Redis as its policy allows (`max_bytes`). Nothing was written.

    Attributes:
        used: Bytes of its bodies, results, errors, chunks, XCom values and schedules.
        limit: Most that it may have.
        asked: Bytes that would have been added.
        retry_after: Seconds after which something of it expires, at most a minute. Tasks that end make room as well.
    """

    def __init__(self, message: str, retry_after: float, used: int, limit: int, asked: int) -> None:
        super().__init__(message, retry_after)
        self.used = used
        self.limit = limit
        self.asked = asked


class QueueUnavailable(FairqueError, ConnectionError):
    """Redis did not answer within the timeout, or refuses to work (loading, read-only, out of memory, …)."""


class UserFrozen(FairqueError):
    """A user stands still, as it is exported or moved, or its import is not complete. Nothing was written.

    Attributes:
        user_id: Whose things were to change.
    """

    def __init__(self, message: str, user_id: str) -> None:
        super().__init__(message)
        self.user_id = user_id


class StoreError(FairqueError):
    """Redis answered with an error that waiting does not cure."""


class NotPermitted(StoreError):
    """The user of Redis may not run a command, or use a key or a channel of the queue.

    Args:
        message: What it may not.
        missing: The rules of its ACL that it lacks, such as ``"+zadd"``; empty where the server does not tell.

    Attributes:
        missing: The same.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class SealError(FairqueError):
    """What is sealed in Redis cannot be read here."""


class UnknownKey(SealError, LookupError):
    """The key that sealed it is not known here, or there is none to seal with: another process may have it."""


class BrokenSeal(SealError):
    """It was changed, or sealed for another user, id or queue, or it is not sealed although it must be."""


class PipelineBlocked(FairqueError):
    """A run of a pipeline cannot end before somebody requeues, or discards, a task that failed. The run is as it was.

    Attributes:
        task_ids: Ids of those that failed, at most 5.
    """

    def __init__(self, message: str, task_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.task_ids = task_ids


class TaskEnded(FairqueError):
    """A task ended without a value to return."""


class TaskFailed(TaskEnded):
    """A task failed. The error comes as data: the class that was raised is never rebuilt.

    Attributes:
        kind: Why it failed: ``error``, ``timeout``, ``lost``, ``bad-arguments``, ``unknown-task``,
            ``bad-message`` or ``quota``.
        type_name: Name of the exception's class, e.g. ``"ValueError"``.
        message: Text of the exception.
        traceback: The traceback as text, empty where there is none.
    """

    def __init__(self, kind: str, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(kind, type_name, message, traceback)
        self.kind = kind
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class TaskCanceled(TaskEnded):
    """A task was canceled.

    Attributes:
        reason: As given to `cancel`, or the dependency that ended it.
        root: Where a dependency did: the id of the task with which that began, which failed, or was canceled, discarded
            or expired itself; else None. Of one that failed, and is still kept, `__cause__` is its `TaskFailed`.
    """

    def __init__(self, reason: str = "", root: str | None = None) -> None:
        super().__init__(reason or "canceled")
        self.reason = reason
        self.root = root


class ResultNotKept(TaskEnded):
    """The task finished, but its `result_ttl` of 0 says that nothing is kept."""


class ResultTimeout(FairqueError, TimeoutError):
    """The task has not ended within the time the caller was ready to wait. The task goes on."""


class Restarted(FairqueError):
    """The run of a task whose chunks were read is over, and another one yields from the beginning: what was read counts
    no more. Read on from the same stream.

    Attributes:
        attempt: The attempt that yields now. It may be the same number again: one that is put back as its worker stops
            keeps it.
    """

    def __init__(self, message: str, attempt: int) -> None:
        super().__init__(message)
        self.attempt = attempt


class Retry(_Whole):
    """Raise it inside a task to have the task run again.

    Args:
        delay: Seconds to wait, or a timedelta; None takes the delay of the task's retry policy.
        reason: Kept with the attempt.
        at: The earliest moment of the next attempt, instead of `delay`; naive datetimes are local time.

    Counts as a failed attempt: when `max_retries` are used up, the task fails.
    """

    def __init__(self, delay: float | timedelta | None = None, reason: str = "", *, at: datetime | None = None) -> None:
        super().__init__(reason or "retry requested")
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if seconds is not None and not (isinstance(seconds, (int, float)) and 0 <= seconds < math.inf):
            raise InvalidInput(f"the delay of a Retry must be a finite number of at least 0 seconds, not {delay!r}")
        if at is not None and (delay is not None or not isinstance(at, datetime)):
            raise InvalidInput(f"a Retry takes a delay or a datetime to wait for, not delay={delay!r}, at={at!r}")
        self.delay = seconds
        self.at = at


class Snooze(_Whole):
    """Raise it inside a task that has nothing to do yet, to have it run again later.

    Args:
        delay: Seconds to wait, or a timedelta.
        at: The earliest moment of the next run, instead of `delay`; naive datetimes are local time.

    It counts as no attempt and as no failure, however often, and its user is charged for what it ran:
    `current_task().snoozed` says how often that was, for a task that does not want to wait for ever.
    """

    def __init__(self, delay: float | timedelta | None = None, *, at: datetime | None = None) -> None:
        super().__init__("put off by itself")
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if (seconds is None) == (at is None) or (at is not None and not isinstance(at, datetime)):
            raise InvalidInput(f"a Snooze takes a delay or a datetime to wait for, not delay={delay!r}, at={at!r}")
        if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < math.inf):
            raise InvalidInput(f"the delay of a Snooze must be a finite number above 0 seconds, not {delay!r}")
        self.delay = seconds
        self.at = at


class Fail(_Whole):
    """Raise it inside a task to give the task up: there are no more attempts, whatever its retries say.

    Args:
        reason: What the task failed for.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "given up")


class SoftTimeout(asyncio.CancelledError):
    """Raised into an async task, once, when the first of the two times of its ``timeout=(soft, hard)`` has passed.

    It is a kind of cancellation, so what the task is waiting for is ended and cleaned up as by one, and
    ``except Exception`` does not swallow it. A task that lets it through has failed by a timeout.
    """

    def __init__(self, text: str = "ran longer than its soft timeout") -> None:
        super().__init__(text)
