"""``fairque users``: the users of a queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from fairque import TaskQueue, UserInfo
from fairque.cli.output import make_console, print_json
from fairque.cli.overview import users_table
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.standing import Standing, standings

__all__ = ["command"]


def command(
    active: Annotated[
        bool, typer.Option("--active", help="Only those with something to serve or something running.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, metavar="N", help="Most users to show.")] = 100,
    offset: Annotated[int, typer.Option("--offset", min=0, metavar="N", help="Leave out so many in front.")] = 0,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """List users, the most recently active first.

    "wait" is how long the next task of a user has waited. "flags" say what holds it back, and whether it is served more
    or less than it is entitled to.

    Example: fairque users --limit 20

    Exit codes: 0 shown, 1 failed, 2 wrong usage.
    """

    async def find(opened: TaskQueue) -> tuple[list[UserInfo], Mapping[str, Standing], float]:
        if active:
            users = (await opened.active_users(limit=min(1000, offset + limit)))[offset:]
        else:
            users = await opened.users(offset=offset, limit=limit)
        now = (await opened.stats()).at
        return users, standings(users, await opened.shares(), now), now

    users, standing, now = on_queue(make_queue(url, queue, config), find)
    if as_json:
        print_json([standing[user.user_id].beside(user) for user in users])
    else:
        make_console().print(users_table(users, standing, now))
    return 0
