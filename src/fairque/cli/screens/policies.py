"""What governs users and groups, and limits, read and printed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import typer

from fairque import Breaker, LimitInfo, Policy, TaskQueue
from fairque.cli.output import NOTHING, print_fields
from fairque.cli.table import names, numbers, print_table, words
from fairque.counted import counted
from fairque.everybody import EVERYBODY, EVERYONE, whom
from fairque.queue.tenants import MOST_LISTED

__all__ = [
    "Governed",
    "Rules",
    "fields_of",
    "print_governed",
    "print_limits",
    "print_rules",
    "read_limits",
    "shown_rule",
]

T = TypeVar("T")
_FIELDS = Policy.__struct_fields__


class Governed(msgspec.Struct, frozen=True, kw_only=True):
    """What governs a user: `policy`, of which `own` was set for it. `group_weight` is that of its group."""

    user_id: str
    policy: Policy
    own: Policy
    group_weight: float | None

    @classmethod
    async def read(cls, queue: TaskQueue, user_id: str) -> Governed:
        policy = await queue.get_policy(whom(user_id))
        return cls(
            user_id=user_id,
            policy=policy,
            own=await queue.get_policy(whom(user_id), defaults=False),
            group_weight=await queue.get_group(policy.group) if policy.group is not None else None,
        )


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """All that was set in a queue. `has_more`: there are more users, groups or limits than were asked for."""

    default: Policy
    users: dict[str, Policy]
    groups: dict[str, float]
    limits: list[LimitInfo]
    has_more: bool

    @classmethod
    async def read(cls, queue: TaskQueue, most: int) -> Rules:
        users = await _pages(queue.policies, most + 1)
        groups = await _pages(queue.groups, most + 1)
        limits = await read_limits(queue, most + 1)
        return cls(
            default=await queue.get_policy(EVERYBODY),
            users=_first(users, most),
            groups=_first(groups, most),
            limits=limits[:most],
            has_more=max(len(users), len(groups), len(limits)) > most,
        )


def print_governed(governed: Governed) -> None:
    rows = [
        (name.replace("_", " "), shown_rule(value), _source(governed, name))
        for name, value in _set_fields(governed.policy)
    ]
    if governed.group_weight is not None:
        rows.append(("weight of the group", f"{governed.group_weight:g}", "the group"))
    print_fields((("user", governed.user_id),))
    if rows:
        print_table((words("field"), words("value"), words("from")), rows)
    else:
        typer.echo("no limits, a weight of 1")


def print_rules(rules: Rules) -> None:
    governed = {EVERYONE: rules.default, **rules.users}
    print_table((names("user", whole=1), words("rules")), [(user, _told(policy)) for user, policy in governed.items()])
    if rules.groups:
        typer.echo()
        print_table(
            (names("group"), numbers("weight")), [(group, f"{weight:g}") for group, weight in rules.groups.items()]
        )
    if rules.limits:
        typer.echo()
        print_limits(rules.limits)
    if rules.has_more:
        typer.echo("there are more: see --limit", err=True)


def print_limits(limits: Sequence[LimitInfo]) -> None:
    columns = (
        *(names("limit", whole=2), names("of"), numbers("running", 3), numbers("max running"), words("rate")),
        words("set by", 1),
    )
    print_table(columns, [_limit_row(each) for each in limits])


def fields_of(rules: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), shown_rule(value)) for name, value in rules.items()]


def shown_rule(value: Any) -> str:
    """One field of a policy, for people."""
    if value is None:
        return NOTHING
    if isinstance(value, datetime):
        return f"until {value.astimezone().isoformat(sep=' ', timespec='seconds')}"
    if isinstance(value, Breaker):
        return f"{counted(value.failures, 'failure')} in {value.window:g} s: {value.cooldown:g} s of rest"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _set_fields(policy: Policy) -> list[tuple[str, Any]]:
    return [(name, value) for name in _FIELDS if (value := getattr(policy, name)) is not None]


def _told(policy: Policy) -> str:
    """A column for each field would be more columns than a terminal has room for, and most of them empty."""
    return ", ".join(f"{name.replace('_', ' ')} {shown_rule(value)}" for name, value in _set_fields(policy)) or NOTHING


def _source(governed: Governed, field: str) -> str:
    return "its own" if getattr(governed.own, field) is not None else EVERYONE


def _limit_row(limit: LimitInfo) -> Sequence[object]:
    whose = limit.user_id if limit.user_id is not None else "all" if limit.shared else "each user"
    running = limit.running if limit.running is not None else NOTHING
    rules = (shown_rule(limit.max_running), shown_rule(limit.rate))
    said_by = "code" if limit.declared else "hand"
    return (limit.key, whose, running, *rules, f"{said_by}, paused" if limit.paused else said_by)


async def read_limits(queue: TaskQueue, most: int) -> list[LimitInfo]:
    """At most so many of those that are set, in order."""
    found: list[LimitInfo] = []
    while len(found) < most:
        page = await queue.limits(limit=min(MOST_LISTED, most - len(found)), after=found[-1] if found else None)
        if not page:
            break
        found += page
    return found


async def _pages(listing: Callable[..., Awaitable[dict[str, T]]], most: int) -> dict[str, T]:
    found: dict[str, T] = {}
    while len(found) < most:
        wanted = min(MOST_LISTED, most - len(found))
        page = await listing(limit=wanted, after=next(reversed(found), ""))
        found |= page
        if len(page) < wanted:
            break
    return found


def _first(found: Mapping[str, T], most: int) -> dict[str, T]:
    return dict(list(found.items())[:most])
