"""How the command line says what went wrong: one line and a hint, never a traceback."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import typer

from fairque.cli.output import say
from fairque.errors import (
    FairqueError,
    InvalidInput,
    NotPermitted,
    QueueUnavailable,
    SealError,
    UnknownSchedule,
    UnknownTask,
    UserFrozen,
)

__all__ = ["ENDED", "FAILED", "UNFINISHED", "UNKNOWN", "USAGE", "CommandError", "describe", "report"]

FAILED = 1
USAGE = 2
ENDED = 3
"""The task had ended before, or in another way than wanted."""
UNKNOWN = 4
"""No such task."""
UNFINISHED = 5
"""It has not ended in the time that was given."""
TRACEBACK_VARIABLE = "FAIRQUE_TRACEBACK"
_SEE_LOG = "the log of the server may say more"
_STANDS_STILL = "try again when that is over; `fairque purge` gives up an import"
_LOCKED_OUT = ("Authentication required", "invalid username-password pair")


class CommandError(Exception):
    """Ends a command.

    Args:
        message: What is wrong, in one line.
        hint: What to do about it.
        code: Exit code: `USAGE` for what the caller can write better, else `FAILED` or one of those below it.
    """

    def __init__(self, message: str, hint: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


def report(error: Exception) -> int:
    """Say it on stderr; returns the exit code."""
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    first = _first(error)
    problem = first if isinstance(first, CommandError) else _as_problem(first)
    if str(problem):  # without arguments, the help was shown, and that is all there is to say
        say(f"error: {_one_line(str(problem))}", "red")
        say(f"hint: {_one_line(problem.hint)}")
    return problem.code


def describe(error: BaseException) -> str:
    """Class, text and place of an exception, for a line of its own."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _first(error: BaseException) -> BaseException:
    """What a task group gathered has one cause."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _as_problem(error: BaseException) -> CommandError:
    if isinstance(error, typer.TyperException):
        return CommandError(error.format_message(), _help_hint(error), error.exit_code)
    if isinstance(error, FairqueError) and any(sign in str(error) for sign in _LOCKED_OUT):
        return CommandError(str(error), "give user and password in the URL, as in redis://user:password@host", FAILED)
    if isinstance(error, QueueUnavailable):
        return CommandError(str(error), "start that server, or name one that runs: --url redis://host:6379", FAILED)
    if isinstance(error, UnknownTask):
        return CommandError(str(error), "ids are unique per user, and per queue: see --queue", UNKNOWN)
    if isinstance(error, UnknownSchedule):
        return CommandError(str(error), "`fairque schedule list` shows what there is; see --queue", UNKNOWN)
    if isinstance(error, SealError):
        return CommandError(str(error), "give the keys in the section codec of a file: --config FILE", FAILED)
    if isinstance(error, NotPermitted):
        hint = "who administers the server loads the functions, and permits what `fairque acl` prints"
        return CommandError(str(error), hint, FAILED)
    if isinstance(error, InvalidInput):
        return CommandError(str(error), "change that value and start the command again")
    if isinstance(error, FairqueError):
        return CommandError(str(error), _STANDS_STILL if isinstance(error, UserFrozen) else _SEE_LOG, FAILED)
    return CommandError(f"unexpected {describe(error)}", f"{TRACEBACK_VARIABLE}=1 shows the traceback", FAILED)


def _help_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context is not None else 'fairque'} --help shows what there is"


def _one_line(text: str) -> str:
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())
