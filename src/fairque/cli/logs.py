"""What a worker process writes to its log: how each task ended, never its arguments or its result."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import PurePath

from fairque import TaskEvent

__all__ = ["LogLevel", "log_hooks", "set_up_logging"]

logger = logging.getLogger("fairque.tasks")
_FORMAT = "%(asctime)s %(levelname)-7s [%(process)d] %(message)s"
_FRAME = re.compile(r'^  File "(.+)", line (\d+)', re.MULTILINE)


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def set_up_logging(level: LogLevel) -> None:
    """Log to stderr, unless the application has set logging up for itself."""
    logging.basicConfig(level=level.upper(), format=_FORMAT)
    logging.getLogger("fairque").setLevel(level.upper())


def log_hooks() -> dict[str, Callable[[TaskEvent], None]]:
    """Hooks of a `Worker`: a finished task is information, a retry a warning, a failure an error.

    A hook whose lines nobody would see is left out: it would be called for every task.
    """
    levels = {"on_success": logging.INFO, "on_retry": logging.WARNING, "on_failure": logging.ERROR}
    calls = {"on_success": _finished, "on_retry": _retried, "on_failure": _failed}
    return {name: calls[name] for name, level in levels.items() if logger.isEnabledFor(level)}


def _finished(event: TaskEvent) -> None:
    logger.info("finished %s", _told(event))


def _retried(event: TaskEvent) -> None:
    logger.warning("retried %s %s", _told(event), _reason(event))


def _failed(event: TaskEvent) -> None:
    logger.error("failed %s %s", _told(event), _reason(event))


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
    return f"kind={failure.kind} error={failure.type_name}{place}"


def _shown(text: str) -> str:
    """Ids are anything, a line of a log is a line."""
    return text if text.isprintable() and text and " " not in text else repr(text)
