"""`Tenants`: what governs the users of a queue, and what they used."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from fairque.checks import Duration, check_count, check_id, check_kind
from fairque.config.config import FairQueueConfig
from fairque.errors import InvalidInput, UnknownTask
from fairque.everybody import EVERYBODY, EVERYONE, Everybody, check_user, whom
from fairque.limit import Limit, LimitInfo, limit_in, record_of
from fairque.listed import Listed, ListedByName
from fairque.policy import (
    Breaker,
    Policy,
    Rate,
    changes_of,
    group_in,
    legible,
    merged,
    packed_group,
    policy_in,
    stored_in,
)
from fairque.queue.demand import COOLDOWN, Demand, look_at_demand
from fairque.queue.explain import explain
from fairque.queue.explanation import Explanation
from fairque.queue.shares import Shares, look_at_shares
from fairque.queue.usage import UsageHour, usage_days, usage_in
from fairque.redis.keys import decode_user, encode_user
from fairque.redis.missing import noting_missing
from fairque.redis.partitions import MOST_PARTITIONS
from fairque.redis.store import Store
from fairque.transfer.membership import write_policy

__all__ = ["Tenants"]

LOOKED_AT = 250
MOST_LISTED = 1000


class Tenants:
    """The part of a `TaskQueue` that is about its users: policies, explanations, usage."""

    _reader: Store
    _bulk: Store

    async def set_policy(
        self,
        user_id: str | Everybody,
        *,
        weight: float | UnsetType | None = UNSET,
        max_running: int | UnsetType | None = UNSET,
        max_share: float | UnsetType | None = UNSET,
        min_running: int | UnsetType | None = UNSET,
        rate: Rate | str | UnsetType | None = UNSET,
        max_queued: int | UnsetType | None = UNSET,
        overflow: Literal["reject", "drop_oldest"] | UnsetType | None = UNSET,
        max_bytes: int | UnsetType | None = UNSET,
        paused: bool | datetime | UnsetType | None = UNSET,
        group: str | UnsetType | None = UNSET,
        breaker: Breaker | str | UnsetType | None = UNSET,
    ) -> Policy:
        """Change what governs a user, or with `EVERYBODY` what governs all who does not say otherwise.

        What is not given stays as it is; None forgets it. See `Policy` for the fields. It holds from the next claim on,
        for tasks that wait already as well. Returns what governs the user then.
        """
        given = {
            "weight": weight,
            "max_running": max_running,
            "max_share": max_share,
            "min_running": min_running,
            "rate": rate,
            "max_queued": max_queued,
            "overflow": overflow,
            "max_bytes": max_bytes,
            "paused": paused,
            "group": group,
            "breaker": breaker,
        }
        changes, forgotten = changes_of({name: value for name, value in given.items() if value is not UNSET})
        if user_id is EVERYBODY and "group" in changes:
            raise InvalidInput("not everybody can be in one group: set the group of each user")
        await self._write_policy(_policy_name(user_id), changes, forgotten)
        return await self.get_policy(user_id)

    async def _write_policy(self, whose: str, changes: Mapping[str, Any], forgotten: Sequence[str] = ()) -> None:
        await write_policy(self._reader, self._bulk, whose, changes, forgotten)

    async def get_policy(self, user_id: str | Everybody, *, defaults: bool = True) -> Policy:
        """What governs a user: its own policy, and the one of `EVERYBODY` where that says nothing.

        Without `defaults`: its own alone.
        """
        own, default = await self._reader.policies([_policy_name(user_id), EVERYONE])
        return merged(policy_in(own), policy_in(default)) if defaults else policy_in(own)

    async def policies(self, *, limit: int = 100, after: str = "") -> ListedByName[Policy]:
        """The users that have a policy of their own, in the order of their encoded ids, each without the defaults.

        One whose key is damaged is left out: `check` names it.

        Args:
            limit: Most users, up to 1,000.
            after: The user behind whom to begin, for the next page.
        """
        count = check_count("limit", limit, 1, MOST_LISTED)
        with noting_missing() as missing:
            rows = await self._reader.governed("policy-users", encode_user(after), count)
        found = {decode_user(name): legible(packed, policy_in) for name, packed in rows}
        return ListedByName({name: policy for name, policy in found.items() if policy is not None}, missing.numbers)

    async def groups(self, *, limit: int = 100, after: str = "") -> ListedByName[float]:
        """The groups whose weight was set, in the order of their encoded names; see `policies`."""
        count = check_count("limit", limit, 1, MOST_LISTED)
        with noting_missing() as missing:
            rows = await self._reader.governed("policy-groups", after and _group_name(after), count)
        found = {group_in(name[1:].decode()): legible(packed, policy_in) for name, packed in rows}
        weights = {name: policy.weight or 1.0 for name, policy in found.items() if policy is not None}
        return ListedByName(weights, missing.numbers)

    async def limits(self, *, limit: int = 100, after: LimitInfo | None = None) -> Listed[LimitInfo]:
        """The limits that are set, by code or by hand, in the order of their names in Redis.

        Args:
            limit: Most of them, up to 1,000.
            after: The one behind which to begin, for the next page.
        """
        count = check_count("limit", limit, 1, MOST_LISTED)
        behind = record_of(after.key, after.user_id, after.shared) if after is not None else ""
        with noting_missing() as missing:
            rows = await self._reader.governed("limit-keys", behind, count)
        return Listed((limit_in(name, row) for name, row in rows), missing.numbers)

    async def clear_policy(self, user_id: str | Everybody) -> None:
        """Back to what governs everybody; with `EVERYBODY`, back to no limits."""
        await self._write_policy(_policy_name(user_id), {}, [EVERYONE])

    async def set_group(self, group: str, *, weight: float | None) -> None:
        """The share of a group in relation to what stands beside it, groups and users; None is the default of 1.

        ``"acme/europe"`` is a group in a group.
        """
        changes, forgotten = changes_of({"weight": weight})
        await self._write_policy(_group_name(group), changes, forgotten)

    async def get_group(self, group: str) -> float:
        """The weight of a group."""
        [found] = await self._reader.policies([_group_name(group)])
        return policy_in(found).weight or 1.0

    async def apply_policies(self, config: FairQueueConfig) -> None:
        """Set what the sections `policies`, `groups` and `limits` of a configuration say, and leave everything else.

        A rule that a file says no longer stays in Redis until it is taken back there. Nothing is written for users and
        groups for whom all of it holds already.
        """
        check_kind("config", config, FairQueueConfig)
        named = [(_policy_name(whom(policy.user)), policy.rules()) for policy in config.policies]
        named += [(_group_name(group.name), group.rules()) for group in config.groups]
        before = await self._reader.policies([name for name, _ in named]) if named else []
        for (name, rules), packed in zip(named, before, strict=True):
            changes, _ = changes_of(rules)
            if not changes.items() <= stored_in(packed).items():
                await self._write_policy(name, changes)
        for limit in config.limits:
            await self.set_limit(limit.key, **limit.rules())

    async def pause(self, user_id: str | Everybody, *, until: datetime | None = None) -> None:
        """Start nothing more of a user, or with `EVERYBODY` nothing at all.

        What runs goes on, what waits keeps its place.
        """
        await self.set_policy(user_id, paused=until if until is not None else True)

    async def resume(self, user_id: str | Everybody) -> None:
        """Go on after `pause`. The user has saved up nothing meanwhile."""
        await self.set_policy(user_id, paused=None)

    async def explain(self, user_id: str, task_id: str | None = None) -> Explanation:
        """Why a task waits, what is ahead of it, and when it may start; without an id, the first one in line.

        Looks at the 250 users that are served next, in a queue with partitions at some of each; changes nothing.

        Raises:
            UnknownTask: Nothing is known of the task.
        """
        check_user("user_id", user_id)
        if task_id is not None:
            check_id("task_id", task_id)
        with noting_missing() as missing:
            found = explain(user_id, await self._reader.explain(user_id, task_id or "", LOOKED_AT))
        if found is None:
            raise UnknownTask(f"user {user_id!r} has no task {task_id!r}, or its result has expired")
        return msgspec.structs.replace(found, missing=missing.numbers)

    async def set_limit(
        self,
        key: str,
        *,
        max_running: int | None = None,
        rate: Rate | str | None = None,
        user_id: str | None = None,
        shared: bool | None = None,
    ) -> None:
        """Limit the tasks that have a key, from now on, for tasks that wait already as well.

        It goes before what code says, until `clear_limit`. Without `max_running` and `rate` nothing is limited,
        whatever the code says.

        Args:
            key: The name of a task, a limit key, a template with braces (for all keys that are made of it that have no
                limit of their own), or what one was filled to: ``"crm:acme"``.
            max_running: Most that run at once, on all workers together.
            rate: How often they may start, see `Rate`.
            user_id: Of keys that are of each user: for this one alone.
            shared: False: of a key without braces that is of each user, see `Limit`.
        """
        record = record_of(check_id("limit key", key), _checked_user(user_id), shared)
        await self._reader.set_limits([(record, Limit("key", max_running=max_running, rate=rate))], declared=False)

    async def clear_limit(
        self, key: str, *, user_id: str | None = None, shared: bool | None = None, declared: bool = False
    ) -> None:
        """Forget what `set_limit` said: what code says holds again.

        Args:
            key, user_id, shared: As in `set_limit`.
            declared: Forget what code said as well, until a worker starts that says it again.
        """
        record = record_of(check_id("limit key", key), _checked_user(user_id), shared)
        await self._reader.set_limits([(record, None)], declared=False)
        if declared:
            await self._reader.set_limits([(record, None)], declared=True)

    async def forfeit_places(self, partition: int) -> int:
        """Have others use the places of limits over all users that a partition has which is gone: for an outage that
        lasts. It says nothing of limits whose own partition that is. Returns how many places.

        What runs there, where workers still can, is not counted any more. When the partition is back, it starts nothing
        with what it had.

        Args:
            partition: Its number, as `missing` of `QueueStats` tells it; not the first.

        Raises:
            InvalidInput: There is no such partition, it is the first one, or it answers.
            QueueUnavailable: The first one does not answer either.
        """
        return await self._reader.forfeit(check_count("partition", partition, 0, MOST_PARTITIONS))

    async def pause_task(self, name: str) -> None:
        """Start no more tasks of a name, of no user, on no worker, until `resume_task`.

        What runs goes on, and what waits keeps its place: it waits apart, so that it blocks nothing behind it. Limits
        of the name stay as they are.

        Args:
            name: Of the task, known to a worker or not: ``"billing.invoice"``.
        """
        await self._reader.set_paused(f":{check_id('name', name)}", True)

    async def resume_task(self, name: str) -> None:
        """Go on after `pause_task`, for tasks that wait already as well."""
        await self._reader.set_paused(f":{check_id('name', name)}", False)

    async def usage(self, user_id: str | Everybody, since: datetime | None = None) -> list[UsageHour]:
        """What a user (`EVERYBODY`: all together) used, hour by hour, for bills; the current hour so far included.

        Hours are kept for 40 days, or for the queue's `usage_ttl`.

        Args:
            user_id: Whose.
            since: The first hour is the one with this moment in it; default: a day ago. Naive datetimes are local time.
        """
        if since is not None:
            check_kind("since", since, datetime)
        first = since if since is not None else datetime.now(UTC) - timedelta(days=1)
        days = usage_days(first)
        return usage_in(await self._reader.usage(_policy_name(user_id), days), days, first)

    async def shares(self, *, limit: int = 1000) -> Shares:
        """How evenly the most recently active users were served over the last minute or so."""
        count = check_count("limit", limit, 1, MOST_LISTED)
        with noting_missing() as missing:
            seen, stats = await asyncio.gather(self._reader.seen_users(0, count), self._reader.stats())
            shares = await look_at_shares(self._reader, seen.users, stats, seen.of_all)
        return msgspec.structs.replace(shares, missing=missing.numbers)

    async def demand(self, *, target_wait: Duration = 10.0, cooldown: Duration = COOLDOWN) -> Demand:
        """How many slots it takes so that what runs goes on and what waits starts in time, for an autoscaler.

        Args:
            target_wait: Seconds within which all that waits now should have started.
            cooldown: Seconds within which what is due keeps a slot: no less than an autoscaler waits before it scales
                to zero, as schedules fire in workers only.
        """
        return await look_at_demand(self._reader, target_wait, cooldown)


def _policy_name(user_id: str | Everybody) -> str:
    return EVERYONE if user_id is EVERYBODY else encode_user(check_user("user_id", user_id))


def _checked_user(user_id: str | None) -> str | None:
    return None if user_id is None else check_user("user_id", user_id)


def _group_name(group: str) -> str:
    return "@" + packed_group(group)
