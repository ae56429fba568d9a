"""``fairque user``: what is known of one user."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from fairque import TaskQueue, UserInfo
from fairque.cli.output import print_fields, print_json
from fairque.cli.policy_view import shown_rule
from fairque.cli.problem import UNKNOWN, Problem
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.standing import Standing, standings
from fairque.cli.times import NOTHING, ago, moment, span

__all__ = ["command", "known_user"]

_COUNTED = ("queued", "started", "scheduled", "deferred", "dead_letters", "finished", "failed", "canceled", "retried")


def command(
    user: Annotated[str, typer.Argument(metavar="USER", help="The id of the user.")],
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Show what is known of one user: tasks by state, waits, what it used and what governs it.

    Example: fairque user acme

    Exit codes: 0 shown, 1 failed, 2 wrong usage, 4 no such user.
    """

    async def find(opened: TaskQueue) -> tuple[UserInfo, Standing, float]:
        info, shares, now = await known_user(opened, user), await opened.shares(), (await opened.stats()).at
        return info, standings((info,), shares, now)[user], now

    info, standing, now = on_queue(make_queue(url, queue, config), find)
    if as_json:
        print_json(standing.beside(info))
    else:
        print_fields(_fields(info, standing, now))
    return 0


async def known_user(queue: TaskQueue, user_id: str) -> UserInfo:
    """Raises `Problem` for one that nothing is known of."""
    info = await queue.user(user_id)
    is_new = info.seen_at is None and not any(getattr(info, name) for name in _COUNTED)
    if is_new and info.policy == await queue.get_policy("*"):
        raise Problem(f"no user {user_id!r} is known", "fairque users lists those that are", UNKNOWN)
    return info


def _fields(user: UserInfo, standing: Standing, now: float) -> list[tuple[str, object]]:
    waits = user.metrics.waits
    return [
        ("user", user.user_id),
        ("weight", f"{user.weight:g}"),
        ("running", user.started),
        ("waiting", f"{user.queued} (critical {user.critical}, normal {user.normal}, held {user.held})"),
        ("wait of the next", span(user.wait_seconds)),
        ("scheduled", user.scheduled),
        ("deferred", user.deferred),
        ("dead letters", user.dead_letters),
        ("finished", user.finished),
        ("failed", user.failed),
        ("canceled", user.canceled),
        ("retried", user.retried),
        ("waits", f"median {span(waits.p50)}, 95 % {span(waits.p95)}, 99 % {span(waits.p99)}" if waits.count else "-"),
        ("cost", f"{user.metrics.cost:.12g}"),
        ("busy", span(user.metrics.busy_seconds)),
        ("share lately", _share(standing)),
        ("flags", standing.text),
        ("last active", ago(user.seen_at, now)),
        *(
            (f"policy: {name}", shown_rule(value))
            for name, value in msgspec.structs.asdict(user.policy).items()
            if value is not None
        ),
        ("parked until", moment(user.parked_until)),
    ]


def _share(standing: Standing) -> str:
    share = standing.share
    return NOTHING if share is None else f"{share.share:.1%}, entitled to {share.entitled:.1%}"
