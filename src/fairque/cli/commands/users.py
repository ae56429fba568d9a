"""Users: ``fairque users``, ``user``, ``pause``, ``resume`` and ``purge``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
import typer

from fairque import EVERYBODY, Policy, Purged, TaskQueue, UserInfo, UserStatus
from fairque.checks import check_seconds
from fairque.cli.errors import UNFINISHED, UNKNOWN, CommandError
from fairque.cli.input import confirm, parse_moment
from fairque.cli.options import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.output import make_console, moment, print_fields, print_json, shown
from fairque.cli.screens.overview import user_fields, users_table
from fairque.everybody import check_user, whom
from fairque.queue.user_status import user_statuses

__all__ = ["known_user", "list_users", "pause", "purge", "resume", "show_user"]

_COUNTED = ("queued", "started", "scheduled", "deferred", "dead_letters", "finished", "failed", "canceled", "retried")


def list_users(
    active: Annotated[bool, typer.Option("--active", help="Only those with something queued or started.")] = False,
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

    async def find(opened: TaskQueue) -> tuple[list[UserInfo], Mapping[str, UserStatus], float]:
        if active:
            users = (await opened.active_users(limit=min(1000, offset + limit)))[offset:]
        else:
            users = await opened.users(offset=offset, limit=limit)
        stats, shares = await opened.stats(), await opened.shares()
        return users, user_statuses(users, shares, stats.at, stats.slots), stats.at

    users, statuses, now = on_queue(make_queue(url, queue, config), find)
    if as_json:
        print_json([statuses[user.user_id].beside(user) for user in users])
    else:
        make_console().print(users_table(users, statuses, now))
    return 0


def show_user(
    user: Annotated[str, typer.Argument(metavar="USER", help="The id of the user.")],
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show one user: tasks, waits, what it used, what governs it.

    Example: fairque user acme

    Exit codes: 0 shown, 1 failed, 2 wrong usage, 4 no such user.
    """

    async def find(opened: TaskQueue) -> tuple[UserInfo, UserStatus, float]:
        info, shares, stats = await known_user(opened, user), await opened.shares(), await opened.stats()
        return info, user_statuses((info,), shares, stats.at, stats.slots)[user], stats.at

    info, status, now = on_queue(make_queue(url, queue, config), find)
    if as_json:
        print_json(status.beside(info))
    else:
        print_fields(user_fields(info, status, now))
    return 0


async def known_user(queue: TaskQueue, user_id: str) -> UserInfo:
    """Raises `CommandError` for one that nothing is known of."""
    info = await queue.user(user_id)
    is_new = info.seen_at is None and not any(getattr(info, name) for name in _COUNTED)
    if is_new and info.policy == await queue.get_policy(EVERYBODY):
        raise CommandError(f"no user {user_id!r} is known", "fairque users lists those that are", UNKNOWN)
    return info


Whose = Annotated[str, typer.Argument(metavar="USER", help="Whose tasks; '*' is everybody.")]


def pause(
    user: Whose,
    until: Annotated[
        str | None, typer.Option(metavar="ISO", help="Go on by itself then; local time unless it has an offset.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="Go on by itself after so long.")
    ] = None,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
) -> int:
    """Start no more tasks of a user, for a while or until resumed.

    What runs goes on, what waits keeps its place, and tasks can still be added.

    Example: fairque pause acme --until 2030-01-31T09:00

    Exit codes: 0 done, also when the user was paused before, 1 failed, 2 wrong usage.
    """
    end = _end(until, seconds)
    on_queue(make_queue(url, queue, config), lambda opened: opened.pause(whom(user), until=end), begins=True)
    typer.echo(f"{_whose(user)} is paused until {moment(end.timestamp()) if end else 'resumed'}")
    return 0


def resume(user: Whose, url: Url = None, queue: QueueName = None, config: ConfigFile = None) -> int:
    """Go on with the tasks of a user that is paused.

    Example: fairque resume acme

    Exit codes: 0 done, also when the user was not paused, 1 failed, 2 wrong usage.
    """

    async def go_on(opened: TaskQueue) -> str:
        who = whom(user)
        own, everybody = await opened.get_policy(who, defaults=False), await opened.get_policy(EVERYBODY)
        await opened.resume(who)
        if who is EVERYBODY:
            return "everybody goes on" if _is_paused(everybody) else "nobody was paused"
        if _is_paused(everybody):
            return f"user {shown(user)} is still paused, as everybody is"
        return f"user {shown(user)} {'goes on' if _is_paused(own) else 'was not paused'}"

    typer.echo(on_queue(make_queue(url, queue, config), go_on))
    return 0


def _is_paused(policy: Policy) -> bool:
    paused = policy.paused
    return paused > datetime.now(UTC) if isinstance(paused, datetime) else bool(paused)


def _whose(user: str) -> str:
    return "everybody" if whom(user) is EVERYBODY else f"user {shown(user)}"


def _end(until: str | None, seconds: float | None) -> datetime | None:
    if until is not None and seconds is not None:
        raise CommandError("--until and --for both say how long", "give one of them")
    if until is not None:
        return parse_moment("--until", until)
    if seconds is not None:
        return datetime.now().astimezone() + timedelta(seconds=check_seconds("--for", seconds))
    return None


def purge(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose things are erased.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long started tasks are given to stop.")] = 30.0,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Erase everything of a user.

    That is: queued, started and failed tasks, results, XCom values, schedules and the policy.
    It cannot be undone, and asks first.

    Example: fairque purge acme --yes

    Exit codes: 0 erased, 1 failed or not confirmed, 2 wrong usage,
    5 some tasks still run after --timeout: run it again.
    """
    check_user("user_id", user)
    check_seconds("timeout", timeout)

    async def erase(opened: TaskQueue) -> Purged:
        return await opened.purge(user, timeout=timeout)

    opened = make_queue(url, queue, config)
    confirm(f"Erase everything of user {user!r} in queue {opened.name!r}?", yes)
    purged = on_queue(opened, erase)
    if as_json:
        print_json(purged)
    else:
        counts = msgspec.structs.asdict(purged)
        print_fields((name.replace("_", " "), count) for name, count in counts.items() if name != "complete")
    if not purged.complete:
        raise CommandError(
            f"tasks of user {user!r} have not stopped within {timeout:g} s",
            "they were told to: run the command again",
            UNFINISHED,
        )
    return 0
