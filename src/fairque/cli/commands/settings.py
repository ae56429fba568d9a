"""``fairque settings``: what all processes of a queue have to agree about."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from fairque import QueueSettings, TaskQueue
from fairque.cli.errors import CommandError
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.output import print_fields, print_json
from fairque.config.config import QueueConfig
from fairque.config.duration import parse_duration, shown_duration

__all__ = ["command"]

_COUNTS = ("max_message_bytes", "partitions")
_NAMES = tuple(field for field in QueueConfig.__struct_fields__ if field != "name")


def command(
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help=f"To be changed: {', '.join(_NAMES)}.")
    ] = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show or change the settings that all processes of a queue share.

    A change is for all who open the queue from then on.
    The first process that opens a queue stores its settings there, and who asks for others later is refused.
    Processes that run keep what they know: restart them after a change, with the new values where they name any.
    The number of partitions is said when a queue is made, and never changed.

    Example: fairque settings lease=30s

    Exit codes: 0 done, 1 failed, 2 wrong usage.
    """
    wanted = dict(map(_change, changes or ()))
    made = make_queue(url, queue, config, asks=False, partitions=wanted.get("partitions"))
    settings = on_queue(made, lambda opened: _settings(opened, wanted), begins=bool(wanted))
    if as_json:
        print_json(settings)
    else:
        print_fields(_fields(settings))
    return 0


async def _settings(queue: TaskQueue, changes: dict[str, Any]) -> QueueSettings:
    """Those that hold for whoever opens the queue next."""
    if not changes:
        return queue.settings
    if others := {name: value for name, value in changes.items() if name != "partitions"}:
        await queue.change_settings(**others)
    else:
        await queue.reader.agree()  # where there is none yet, it is made
    await queue.close()
    await queue.open()
    return queue.settings


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or name not in _NAMES:
        raise CommandError(f"{text!r} changes no setting", f"write NAME=VALUE, with one of {', '.join(_NAMES)}")
    if name == "fairness":
        return name, value
    number = int(value) if name in _COUNTS and value.isdecimal() else parse_duration(value)
    if number is None:
        raise CommandError(f"{name} cannot be {value!r}", "write a duration, such as 30s or 7d")
    return name, number


def _fields(settings: QueueSettings) -> list[tuple[str, str]]:
    """As `fairque settings` takes them."""
    values = msgspec.structs.asdict(settings).items()
    return [
        (name.removesuffix("_ms"), shown_duration(value / 1000) if name.endswith("_ms") else str(value))
        for name, value in values
    ]
