"""``fairque purge``: erase everything of a user."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from fairque import Purged, TaskQueue
from fairque.checks import check_id, check_seconds
from fairque.cli.consent import insist
from fairque.cli.output import print_fields, print_json
from fairque.cli.problem import UNFINISHED, Problem
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue

__all__ = ["command"]


def command(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose things are erased.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long running tasks are given to stop.")] = 30.0,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Erase everything of a user.

    That is: waiting, running and failed tasks, results, XCom values, schedules and the policy.
    It cannot be undone, and asks first.

    Example: fairque purge acme --yes

    Exit codes: 0 erased, 1 failed or not confirmed, 2 wrong usage,
    5 some tasks still run after --timeout: run it again.
    """
    check_id("user_id", user)
    check_seconds("timeout", timeout)

    async def erase(opened: TaskQueue) -> Purged:
        return await opened.purge(user, timeout=timeout)

    opened = make_queue(url, queue, config)
    insist(f"Erase everything of user {user!r} in queue {opened.name!r}?", yes)
    purged = on_queue(opened, erase)
    if as_json:
        print_json(purged)
    else:
        counts = msgspec.structs.asdict(purged)
        print_fields((name.replace("_", " "), count) for name, count in counts.items() if name != "complete")
    if not purged.complete:
        raise Problem(
            f"tasks of user {user!r} have not stopped within {timeout:g} s",
            "they were told to: run the command again",
            UNFINISHED,
        )
    return 0
