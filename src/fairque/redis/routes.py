"""To which partitions a call of each script goes, and how their answers become one.

What is about one user goes to the partition where that lives. What is about all is asked of all partitions at once, and
put together by a function of `merges`. A script that works on what one partition has, such as `claim`, is called of
that one: here it is refused.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from fairque.errors import QueueUnavailable
from fairque.redis import arguments as args
from fairque.redis.arguments import Arguments
from fairque.redis.asking import Answers, Part, first_answer, look, tell
from fairque.redis.dividing import at_once, divided
from fairque.redis.merges.demand import merged_demand
from fairque.redis.merges.explanations import merged_explanation
from fairque.redis.merges.governed import merged_governed
from fairque.redis.merges.letters import merged_kinds, merged_letters
from fairque.redis.merges.measures import merged_metrics, merged_usage
from fairque.redis.merges.schedules import merged_page, merged_schedules
from fairque.redis.merges.totals import merged_health, merged_stats
from fairque.redis.merges.users import merged_active, merged_holders, merged_names, merged_running
from fairque.redis.missing import note_missing
from fairque.redis.places import MembersApart, MovedUser, UserElsewhere, root_of
from fairque.redis.rulebook import rulebook_in

__all__ = ["ROUTES", "Route", "is_routed", "route"]

Route: TypeAlias = Callable[[Sequence[Part], Any, Sequence[bytes], float | None], Awaitable[Any]]
"""Given the partitions, the arguments, the values beside them, and seconds of patience. Returns the reply."""

EVERYONE = "*"
MOST_NAMES = 1000
"""Of one look at names in an order."""
LEAST_ELSEWHERE = 4
"""Users of each other partition who are looked at for an explanation."""


async def route(
    parts: Sequence[Part], arguments: Arguments, values: Sequence[bytes] = (), patience: float | None = None
) -> Any:
    """Run a script in a queue with partitions. Raises `InvalidInput` for what there is not in one."""
    return await ROUTES.get(arguments.script, to_user)(parts, arguments, values, patience)


def is_routed(kind: type[Arguments]) -> bool:
    """Whether it is said where a script with such arguments goes."""
    return kind.script in ROUTES or "user" in kind.__struct_fields__


async def to_user(
    parts: Sequence[Part], arguments: Any, values: Sequence[bytes] = (), patience: float | None = None
) -> Any:
    """What is about one user."""
    return await _home(parts, arguments.user).call(arguments, values, patience)


def to_users_of(field: str) -> Route:
    """What is about the users in a list. Whoever calls has divided it, so that they live in one partition."""

    async def routed(
        parts: Sequence[Part], arguments: Any, values: Sequence[bytes] = (), patience: float | None = None
    ) -> Any:
        homes = divided(getattr(arguments, field), lambda item: _at(parts, item.user))
        if len(homes) > 1:
            raise NotImplementedError(f"{arguments.script} is about users of several partitions, and was not divided")
        return await parts[next(iter(homes), 0)].call(arguments, values, patience)

    return routed


async def of_partition(parts: Sequence[Part], arguments: Any, *_: object) -> Any:
    """What only makes sense of one partition."""
    raise NotImplementedError(f"{arguments.script} is called of one partition, not of a queue with {len(parts)}")


def of_all(merge: Callable[[Any, Answers], Any]) -> Route:
    """What is read of the whole queue: partitions that do not answer are missing."""

    async def routed(parts: Sequence[Part], arguments: Any, _: object = (), patience: float | None = None) -> Any:
        return merge(arguments, await look(parts, dict.fromkeys(range(len(parts)), arguments), patience))

    return routed


def to_all(merge: Callable[[list[Any]], Any]) -> Route:
    """What all partitions have to be told, or none of them may be missing for."""

    async def routed(parts: Sequence[Part], arguments: Any, _: object = (), patience: float | None = None) -> Any:
        return merge(await _tell_all(parts, arguments, patience))

    return routed


def of_user_or(whole: Route, every: str = "") -> Route:
    """What is about one user, or about all where that is how none is named."""

    async def routed(
        parts: Sequence[Part], arguments: Any, values: Sequence[bytes] = (), patience: float | None = None
    ) -> Any:
        chosen = whole if arguments.user == every else to_user
        return await chosen(parts, arguments, values, patience)

    return routed


async def _users(parts: Sequence[Part], asked: args.Users, _: object = (), patience: float | None = None) -> list[Any]:
    """All partitions tell what the queue used at that moment, and some of them of users."""
    named = list(asked.named) or await _names_of_page(parts, asked.offset, asked.most, patience)
    if asked.strict:
        return list(await _home(parts, named[0]).call(asked, (), patience))
    replies = (await _look_for_users(parts, named, patience)).replies
    rows = {row[0].decode(): row for reply in replies for row in reply[3:]}
    of_all = merged_metrics([reply[2] for reply in replies])
    now, defaults = max(reply[0] for reply in replies), replies[0][1]
    return [now, defaults, of_all, *(rows[name] for name in named if name in rows)]


async def _look_for_users(parts: Sequence[Part], named: Sequence[str], patience: float | None) -> Answers:
    """Those who are on their way from one partition to another are passed over."""
    followed: set[MovedUser] = set()
    nobody, left_out = args.Users(0, 0, ()), set[str]()
    while True:
        shares = divided((name for name in named if name not in left_out), lambda name: _at(parts, name))
        wanted = {at: args.Users(0, 0, shares[at][1]) if at in shares else nobody for at in range(len(parts))}
        try:
            return await look(parts, wanted, patience)
        except UserElsewhere as exc:
            news = parts[0].places.news_in(exc, followed)
            followed.update(news)
            left_out.update(each.user for each in exc.moved if each not in news)


async def _names_of_page(parts: Sequence[Part], offset: int, most: int, patience: float | None) -> list[str]:
    names: list[str] = []
    after_ms, after = 0, ""
    while len(names) < offset + most:
        count = min(MOST_NAMES, offset + most - len(names))
        _, *flat = await _user_names(parts, args.UserNames(after_ms, after, count), (), patience)
        names += [name.decode() for name in flat[::2]]
        if len(flat) < 2 * count:
            break
        after_ms, after = int(float(flat[-1])), names[-1]
    return names[offset : offset + most]


async def _policies(
    parts: Sequence[Part], asked: args.Policies, _: object = (), patience: float | None = None
) -> list[bytes]:
    """What governs everybody is in each partition: it is asked where a user is asked for, or of whoever answers."""
    homes: defaultdict[int, list[str]] = defaultdict(list)
    of_each = [name for name in asked.names if name == EVERYONE]
    for name in asked.names:
        if name != EVERYONE:
            homes[_at(parts, _whose(name))].append(name)
    if not homes:
        return list(await first_answer(parts, asked, patience))
    wanted: dict[int, Arguments] = {at: args.Policies([*names, *of_each]) for at, names in homes.items()}
    found: dict[str, bytes] = {}
    for request, reply in zip(wanted.values(), await tell(parts, wanted, patience), strict=True):
        found.update(zip(request.names, reply, strict=True))  # type: ignore[attr-defined]
    return [found[name] for name in asked.names]


async def _policy(parts: Sequence[Part], asked: args.Policy, _: object = (), patience: float | None = None) -> Any:
    """Who is in a group lives where that does, so that all of it is served by one choice."""
    if asked.whose == EVERYONE:
        return await _tell_rules(parts, asked, patience)
    home = _at(parts, _whose(asked.whose))
    if "group" in asked.changes and (together := _at(parts, root_of(asked.changes["group"]))) != home:
        raise MembersApart(asked.whose, together)
    return await parts[home].call(asked, (), patience)


async def _limits(
    parts: Sequence[Part], asked: args.Limits, _: object = (), patience: float | None = None
) -> list[int]:
    """Those of one user go to its partition, those of each user, and pauses of tasks, to all."""
    shares = divided(asked.limits, _owner)
    of_all = shares.pop("", ([], []))[1]
    homes = divided(shares, lambda user: _at(parts, user))
    told = {at: [limit for user in users for limit in shares[user][1]] for at, (_, users) in homes.items()}
    await tell(parts, {at: args.Limits(asked.declared, limits) for at, limits in told.items()}, patience)
    if of_all:
        await _tell_rules(parts, args.Limits(asked.declared, of_all), patience)
    return [0, 0]


def _owner(limit: args.LimitRecord) -> str:
    """Whose a limit is; '' where it is of all."""
    return limit.record.partition("=" if "=" in limit.record.partition(":")[0] else ":")[0]


async def _tell_rules(parts: Sequence[Part], asked: Any, patience: float | None) -> list[int]:
    """What governs all users: the first partition numbers the change, the others take it. See lua/lib/revision.lua."""
    told: list[int] = await parts[0].call(msgspec.structs.replace(asked, revision=-1), (), patience)
    revision, has_changed = told
    if has_changed:
        change = msgspec.structs.replace(asked, revision=revision)
        answers = await tell(parts, dict.fromkeys(range(1, len(parts)), change), patience)
    else:
        answers = await tell(parts, dict.fromkeys(range(1, len(parts)), args.Rulebook(revision)), patience)
    behind = [at for at, answer in enumerate(answers, 1) if answer[0] < revision]
    if behind:
        book = rulebook_in(await parts[0].call(args.Rulebook(-1), (), patience))
        await asyncio.gather(*(parts[at].call(book.follow, [book.policy], patience) for at in behind))
    return told


async def _schedules(
    parts: Sequence[Part], asked: args.Schedules, _: object = (), patience: float | None = None
) -> list[Any]:
    """Named ones may be anywhere. One that nobody tells of is not there, so all have to answer."""
    if asked.ids:
        return merged_schedules(await _tell_all(parts, asked, patience))
    if asked.user:
        return list(await to_user(parts, asked, (), patience))
    return merged_page(asked, (await look(parts, dict.fromkeys(range(len(parts)), asked), patience)).replies)


async def _explain(
    parts: Sequence[Part], asked: args.Explain, _: object = (), patience: float | None = None
) -> list[Any]:
    """Who is ahead in other partitions is estimated from the first in line of each; those that are away have nobody."""
    at = _at(parts, asked.user)
    some = max(LEAST_ELSEWHERE, asked.most // len(parts))
    others = dict.fromkeys((each for each in range(len(parts)) if each != at), args.Explain("", "", some))
    home, beside = await at_once([parts[at].call(asked, (), patience), _look_beside(parts, others)])
    return merged_explanation(home, beside)


async def _look_beside(parts: Sequence[Part], asked: Mapping[int, Arguments]) -> Any:
    try:
        return await look(parts, asked, 0.0)
    except QueueUnavailable:
        note_missing(asked)
        return Answers([], tuple(asked))


async def _usage_of_all(
    parts: Sequence[Part], asked: args.Usage, _: object = (), patience: float | None = None
) -> list[Any]:
    """For bills: rather none than too little."""
    return merged_usage(asked.days, await _tell_all(parts, asked, patience))


async def _tell_all(parts: Sequence[Part], arguments: Arguments, patience: float | None) -> list[Any]:
    return await tell(parts, dict.fromkeys(range(len(parts)), arguments), patience)


def _home(parts: Sequence[Part], user: str) -> Part:
    return parts[_at(parts, user)]


def _at(parts: Sequence[Part], user: str) -> int:
    """Where a user lives. Who has moved is told of by the partition that was asked, and the call is routed again."""
    return parts[0].places.of(user)


def _whose(name: str) -> str:
    """By which name a policy is found: that of a user, or of the root of a group."""
    return root_of(name) if name.startswith("@") else name


_user_names = of_all(merged_names)

ROUTES: dict[str, Route] = {
    **dict.fromkeys(
        (
            *("claim", "settle", "turn", "renew", "sign", "leave", "append", "heads", "hand_on"),
            *(
                "exchange",
                "lend",
                "accept",
                "ripe",
                "expire",
                "leave_schedules",
                "declare",
                "adopt",
                "rulebook",
                "follow",
                "forfeit",
            ),
            *("check", "repair", "members", "totals", "agree", "denied", "forward"),
        ),
        of_partition,
    ),
    "enqueue": to_users_of("tasks"),
    "enqueue_linked": to_users_of("tasks"),
    "peek": to_users_of("tasks"),
    "fire": to_users_of("firings"),
    "schedule": to_users_of("schedules"),
    "stats": of_all(merged_stats),
    "demand": of_all(merged_demand),
    "health": of_all(merged_health),
    "active": of_all(merged_active),
    "holders": of_all(merged_holders),
    "running": of_all(merged_running),
    "user_names": _user_names,
    "users": _users,
    "dead": of_user_or(of_all(merged_letters)),
    "dead_kinds": of_user_or(of_all(merged_kinds)),
    "explain": _explain,
    "usage": of_user_or(_usage_of_all, EVERYONE),
    "governed": of_all(merged_governed),
    "policies": _policies,
    "policy": _policy,
    "limits": _limits,
    "schedules": _schedules,
    "unschedule": to_all(sum),
    "confirm": of_all(lambda _, answers: min(answers.replies)),  # where it is missed, receipts expire later
    "change_settings": to_all(max),
    "advance": to_all(lambda replies: [sum(each[0] for each in replies), replies[0][1]] if all(replies) else []),
}
"""Those that are not about one user, whose arguments name it as `user`."""
