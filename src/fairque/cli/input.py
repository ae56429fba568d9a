"""What users say: JSON, moments, priorities, and a yes before something is erased."""

from __future__ import annotations

import difflib
import sys
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import typer

from fairque import Priority
from fairque.checks import check_seconds
from fairque.cli.errors import FAILED, CommandError

__all__ = ["check_timeout", "confirm", "parse_json", "parse_moment", "parse_priority"]

T = TypeVar("T")
_STDIN = "-"


def check_timeout(timeout: float | None, wait: bool) -> None:
    """How long ``--wait`` waits. Raises `CommandError` and `InvalidInput`."""
    if timeout is None:
        return
    if not wait:
        raise CommandError("--timeout says how long to wait, and nobody waits", "add --wait")
    check_seconds("--timeout", timeout)


def parse_json(option: str, text: str, kind: type[T], example: str) -> T:
    """What `text` holds as JSON, read from stdin where it is ``-``. Raises `CommandError` unless it is a `kind`."""
    data = sys.stdin.buffer.read() if text == _STDIN else text.encode(errors="surrogateescape")
    hint = f"write it like {option} {example}"
    try:
        value: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        source = "stdin" if text == _STDIN else option
        raise CommandError(f"{source} is not JSON: {error}", hint) from None
    if not isinstance(value, kind):
        wanted = "an array" if kind is list else "an object"
        raise CommandError(f"{option} takes {wanted}, not {_kind(value)}", hint)
    return value


def parse_moment(option: str, text: str) -> datetime:
    """A date and time in ISO 8601; without an offset, local time. Raises `CommandError`."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        raise CommandError(
            f"{option} {text!r} is not a date and time in ISO 8601",
            f"write it like {option} 2030-01-31T09:00 (local time), or with an offset: …T09:00Z, …T09:00+01:00",
        ) from None


def parse_priority(text: str) -> Priority:
    """A number or a name, in any case. Raises `CommandError`."""
    name = text.strip().upper().replace("-", "_")
    if name in Priority.__members__:
        return Priority[name]
    if name in map(str, range(1, 7)):
        return Priority(int(name))
    names = [priority.name.lower().replace("_", "-") for priority in Priority]
    near = difflib.get_close_matches(text.lower(), names, 1)
    raise CommandError(
        f"there is no priority {text!r}",
        f"did you mean {near[0]!r}?" if near else f"1 to 6, or {', '.join(names)}",
    )


def confirm(question: str, yes: bool) -> None:
    """Ask, unless `yes` says that the answer is known; it has to where nobody can answer. Raises `CommandError`."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError("this cannot be undone, and there is no terminal to ask on", "add --yes")
    typer.echo(f"{question} [y/N] ", nl=False, err=True)  # stdout is for what a program reads
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("not confirmed", "nothing was changed", FAILED)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")
