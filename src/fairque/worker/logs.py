"""What a worker process writes to its log: how each task ended, never its arguments or its result."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import PurePath
from typing import NamedTuple

from fairque.errors import InvalidInput
from fairque.tasks.failure import Failure, frames_in
from fairque.worker.hooks import Hook, TaskEvent, in_turn
from fairque.worker.json_lines import JsonLines

__all__ = ["LogLevel", "LogSettings", "level_of", "logged", "set_up_logging"]

logger = logging.getLogger("fairque.tasks")
_FORMAT = "%(asctime)s %(levelname)-7s [%(process)d] %(message)s"
_FRAME = re.compile(r'^[ |]+File "(.+)", line (\d+), in .+$', re.MULTILINE)
MOST_FRAMES = 30


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogSettings(NamedTuple):
    """From which level on lines are written, and whether as JSON."""

    level: LogLevel
    as_json: bool


def level_of(name: str) -> LogLevel:
    """Raises `InvalidInput`."""
    try:
        return LogLevel(name)
    except ValueError:
        raise InvalidInput(f"log_level must be one of {', '.join(LogLevel)}, not {name!r}") from None


def set_up_logging(how: LogSettings) -> None:
    """Log to stderr, unless the application has set logging up for itself."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if how.as_json else logging.Formatter(_FORMAT))
    logging.basicConfig(level=how.level.upper(), handlers=[handler])
    logging.getLogger("fairque").setLevel(how.level.upper())


def logged(hooks: Mapping[str, Hook | None]) -> dict[str, Hook | None]:
    """The hooks of a worker, with a line for each task that ends: a finished one is information, a retry a warning, a
    failure an error.

    Lines that nobody would see are left out: they would cost something for every task.
    """
    lines = {"success": _finished, "retry": _retried, "failure": _failed}
    levels = {"success": logging.INFO, "retry": logging.WARNING, "failure": logging.ERROR}
    seen = {event: in_turn(lines[event], hooks[event]) for event in lines if logger.isEnabledFor(levels[event])}
    return {**hooks, **seen}


def _finished(event: TaskEvent) -> None:
    logger.info("finished %s", _told(event), extra=_fields(event))


def _retried(event: TaskEvent) -> None:
    logger.warning("retried %s%s", _told(event), _reason(event), extra=_fields(event))
    _tell_all(event)


def _failed(event: TaskEvent) -> None:
    """With the frames, as one looks for them there: they are code."""
    logger.error("failed %s%s%s", _told(event), _reason(event), _frames(event.failure), extra=_fields(event))
    _tell_all(event)


def _tell_all(event: TaskEvent) -> None:
    """Only where it was asked for: the text of an error may quote arguments."""
    if event.failure is not None and logger.isEnabledFor(logging.DEBUG):
        text = f"{event.failure.type_name}: {event.failure.message}\n{event.failure.traceback}"
        logger.debug("the error of %s%s", _told(event), _indented(text.splitlines()), extra=_fields(event))


def _fields(event: TaskEvent) -> dict[str, object]:
    """As all lines about tasks have them; and how long it ran."""
    return {
        "user_id": event.user_id,
        "task_id": event.task_id,
        "task_name": event.name,
        "attempt": event.attempt,
        "run_seconds": event.run_seconds,
    }


def _told(event: TaskEvent) -> str:
    user, task, name = map(_shown, (event.user_id, event.task_id, event.name))
    return f"user={user} id={task} name={name} attempt={event.attempt} run={event.run_seconds:.3f}s"


def _reason(event: TaskEvent) -> str:
    """Kind, class and place of the failure. Its text may quote arguments: that is for `TaskHandle.info`."""
    failure = event.failure
    if failure is None:
        return ""
    frames = _FRAME.findall(failure.traceback)
    place = f" at {PurePath(frames[-1][0]).name}:{frames[-1][1]}" if frames else ""
    return f" kind={failure.kind} error={failure.type_name}{place}"


def _frames(failure: Failure | None) -> str:
    """Of the traceback, a line each; not the errors that stand between and behind them."""
    return _indented(frames_in(failure.traceback)[-MOST_FRAMES:]) if failure is not None else ""


def _indented(lines: Iterable[str]) -> str:
    """No line can be taken for one that this log begins anew."""
    return "".join(f"\n    {line if line.isprintable() else repr(line)}" for line in lines)


def _shown(text: str) -> str:
    """Ids are anything, a line of a log is a line."""
    return text if text.isprintable() and text and " " not in text else repr(text)
