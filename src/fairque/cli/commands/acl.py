"""``fairque acl``: what a user of Redis has to be permitted."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

import typer

from fairque.cli.errors import CommandError
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, load_config, make_queue
from fairque.cli.output import print_json, say
from fairque.redis.keys import Keys, encode_user
from fairque.redis.partitions import MOST_PARTITIONS
from fairque.redis.role import Rules, rules_of

__all__ = ["command"]


class RoleName(StrEnum):
    PRODUCER = "producer"
    WORKER = "worker"
    SCHEDULER = "scheduler"
    READER = "reader"
    ADMIN = "admin"


_BEGIN_ANEW = "on resetkeys resetchannels clearselectors"
"""What a user may do from now on; its passwords stay."""
_PLAIN_WORD = re.compile(r"[^\s'\"\\$`*?\[{&|~%]+")


def command(
    role: Annotated[
        list[RoleName],
        typer.Option(
            metavar="ROLE",
            help="producer, worker, scheduler, reader or admin. Repeatable: a user may be several.",
        ),
    ],
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the user of Redis. Default: fairque-QUEUE-ROLE.")
    ] = None,
    may_load: Annotated[
        bool, typer.Option("--may-load", help="It may load functions as well: what it loads, others run.")
    ] = False,
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_PARTITIONS, metavar="N", help="How many the queue has. Default: what the files say."
        ),
    ] = None,
    aclfile: Annotated[bool, typer.Option("--aclfile", help="Print a line of an ACL file.")] = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Print the rules that a user of Redis needs, and no others.

    As a command for redis-cli (end the line with: | redis-cli), which begins the rules of that user anew and leaves
    its passwords alone.
    It keeps users out of other queues, and readers from writing. It does not tell tenants apart: whoever may use the
    queue may read and write all of it.
    Nothing is asked of a server.

    Example: fairque acl --role worker --user app --queue emails

    Exit codes: 0 printed, 1 failed, 2 wrong usage.
    """
    if aclfile and as_json:
        raise CommandError("--aclfile and --json are two ways to print the rules", "leave one out")
    roles = list(dict.fromkeys(role))
    made = make_queue(url, queue, config, asks=False)
    spread = _partitions(made.name, partitions or load_config(config or ()).queue.partitions or 1)
    name = _checked("-".join(("fairque", encode_user(made.name), *roles)) if user is None else user)
    rules = rules_of(roles, made.keys, made.connector.scheme, partitions=spread, loads=may_load)
    if as_json:
        print_json(_facts(name, roles, made.name, rules))
    elif aclfile:
        typer.echo(" ".join(("user", name, "on", "resetchannels", *rules.words)))
    else:
        typer.echo(" ".join(("ACL SETUSER", _quoted(name), _BEGIN_ANEW, *map(_quoted, rules.words))))
    if "function|load" not in rules.commands:
        say("it may not load functions: `fairque functions load` does, as a user who may, before each deploy")
    return 0


def _partitions(queue: str, count: int) -> list[Keys]:
    return [Keys(queue, (at, count)) for at in range(count)] if count > 1 else []


def _checked(name: str) -> str:
    if not name or not name.isprintable() or " " in name:
        raise CommandError(f"--user: {name!r} is no name of a user of Redis", "it has no spaces, such as --user app")
    return name


def _facts(name: str, roles: list[RoleName], queue: str, rules: Rules) -> dict[str, object]:
    return {
        "user": name,
        "roles": roles,
        "queue": queue,
        "keys": rules.keys,
        "channels": rules.channels,
        "commands": rules.commands,
        "rules": rules.words,
    }


def _quoted(word: str) -> str:
    """For a shell and for redis-cli, which agree about this."""
    if _PLAIN_WORD.fullmatch(word):
        return word
    if "'" not in word:
        return f"'{word}'"
    return '"{}"'.format(re.sub(r'(["\\$`])', r"\\\1", word))
