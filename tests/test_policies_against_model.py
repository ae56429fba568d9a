"""Policies and limits in the scripts against their model: whatever is set, done and lost, both go the same way.

What is delivered depends on the time here, which is real, so that a state machine of hypothesis could not play a game
twice. And a game says little unless a few things are set from its start and much is served under them. So the games are
drawn from plain random numbers; one that fails tells its number.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from fairque import Breaker, Rate
from fairque.fairness.model_task import Kind
from fairque.models import ANY_USER, EVERYONE, UserGroup
from tests.support.core import LONG_LEASE_MS
from tests.support.mirror import Held, Mirror, Order
from tests.support.play import IDS, LATE_MS, SHORT_LEASE_MS, SOON_MS, USERS, WORKERS, finish, robbery
from tests.support.servers import Server
from tests.support.timed import TimedCore

GAMES = int(os.environ.get("FAIRQUE_GAMES", "100"))
FIRST = int(os.environ.get("FAIRQUE_FIRST_GAME", "0"))
STEPS = 50
NAMES = ["api", "b:c *\n"]
GROUPS = ["plan", "{é}:*"]
SERVED: list[tuple[UserGroup, ...]] = [
    ANY_USER,
    ANY_USER,
    ANY_USER,
    (("a", "b:c"),),
    (("b:c",), ()),
    (("a", "a"), tuple(USERS)),
]
RATES = [None, Rate(1000), Rate(500, burst=3), Rate(500, burst=3), Rate(1, per=60, burst=2)]

# Costs and weights are sums of powers of two: a tie is a tie, however it is computed.
FIELDS: dict[str, list[Any]] = {
    "weight": [None, 0.5, 4.0, 8.0],
    "max_running": [None, 1, 2, 4],
    "min_running": [None, 1, 2, 3],
    "rate": RATES,
    "max_queued": [None, 2, 4, 6],
    "overflow": ["reject", "drop_oldest", "drop_oldest"],
    "paused": [None, None, None, True, timedelta(milliseconds=SOON_MS), timedelta(milliseconds=LATE_MS)],
    "group": [None, *GROUPS, *GROUPS],
    "breaker": [
        None,
        Breaker(failures=1, window=60, cooldown=0.002),
        Breaker(failures=2, window=0.004, cooldown=0.005),
        Breaker(failures=2, window=60, cooldown=0.002),
        Breaker(failures=2, window=60, cooldown=60),
    ],
}


class Game:
    """Producers, workers that come, go and fall silent, and an operator who changes a few things over and over."""

    def __init__(self, number: int, mirror: Mirror) -> None:
        self.draw = Random(number)
        self.mirror = mirror
        self.fields = self.draw.sample(list(FIELDS), self.draw.randint(1, 4))
        self.names = ["t", *NAMES] if self.draw.random() < 0.4 else ["t"]
        self.delays = [0] * 9 + [SOON_MS] + [LATE_MS] * (self.draw.random() < 0.2)
        self.calls: list[tuple[list[Order], bytes]] = []

    async def play(self) -> None:
        for user_id in [*USERS, EVERYONE]:
            if self.draw.random() < 0.6:
                await self.change_policy(user_id)
        for name in self.names[1:]:
            await self.limit(name)
        moves = self.moves()
        for move in self.draw.choices(list(moves), weights=list(moves.values()), k=STEPS):
            await move()
        await finish(self.mirror)

    def moves(self) -> dict[Callable[[], Awaitable[None]], int]:
        return {
            self.enqueue: 10,
            self.enqueue_again: 1,
            self.claim: 14,
            self.settle: 12,
            self.renew: 1,
            self.rob: 1,
            self.change_policy: 3,
            self.clear_policy: 1,
            self.weigh_group: int("group" in self.fields),
            self.limit: len(self.names) - 1,
            self.wait: 2,
        }

    # Producers and workers

    async def enqueue(self) -> None:
        batch = [self.order() for _ in range(self.draw.randint(1, 6))]
        self.calls.append((batch, len(self.calls).to_bytes(8)))
        await self.mirror.enqueue(*self.calls[-1])

    def order(self) -> Order:
        choice = self.draw.choice
        cost, priority = choice([1.0, 1.0, 0.25, 7.25]), choice([3, 3, 3, 1, 6])
        return Order(choice(USERS), choice(IDS), priority, cost, choice(self.delays), choice(self.names))

    async def enqueue_again(self) -> None:
        """The reply was cut."""
        if self.calls:
            await self.mirror.enqueue(*self.draw.choice(self.calls[-3:]))

    async def claim(self) -> None:
        lease = self.draw.choice([SHORT_LEASE_MS, LONG_LEASE_MS, LONG_LEASE_MS])
        steal = self.draw.random() < 0.8
        worker, want = self.draw.choice(WORKERS), self.draw.randint(1, 6)
        await self.mirror.claim(worker, want, lease, self.draw.choice(SERVED), steal=steal)

    async def settle(self) -> None:
        kind: Kind = self.draw.choice(["finished", "finished", "failed", "retry", "released"])
        delay_ms = self.draw.choice(self.delays) if kind in ("retry", "released") else 0
        if picked := self.picked():
            await self.mirror.settle(picked, kind, delay_ms, self.draw.choice([0.0, 0.0, 2.5, -0.25]))

    async def renew(self) -> None:
        if picked := self.picked():
            self.mirror.renew(self.draw.choice(WORKERS), picked)

    async def rob(self) -> None:
        kinds: list[Kind] = ["finished", "failed", "retry", "released"]
        want, stolen = self.draw.randint(1, 4), self.draw.randint(1, 4)
        await robbery(self.mirror, want, stolen, self.draw.choice(kinds), self.draw.choice(kinds))

    def picked(self) -> list[Held]:
        """Mostly deliveries that are out; some that are settled or lost to others."""
        out = [held for held in self.mirror.held if held.is_out] or self.mirror.held[-3:]
        picked = self.draw.sample(out, min(len(out), self.draw.randint(1, 4)))
        return picked + self.mirror.held[-1:] * (self.draw.random() < 0.1)

    # The operator

    async def change_policy(self, user_id: str = "") -> None:
        user_id = user_id or self.draw.choice([*USERS, *USERS, EVERYONE])
        fields = {name: self.draw.choice(FIELDS[name]) for name in self.fields if self.draw.random() < 0.7}
        if isinstance(pause := fields.get("paused"), timedelta):
            fields["paused"] = datetime.fromtimestamp(self.mirror.core.now_us() / 1_000_000, UTC) + pause
        if user_id == EVERYONE:
            fields.pop("group", None)
        await self.mirror.set_policy(user_id, **fields)

    async def clear_policy(self) -> None:
        await self.mirror.clear_policy(self.draw.choice([*USERS, EVERYONE]))

    async def weigh_group(self) -> None:
        await self.mirror.set_group(self.draw.choice(GROUPS), self.draw.choice([None, 0.25, 2.0]))

    async def limit(self, name: str = "") -> None:
        most, rate = self.draw.choice([None, 1, 1, 2]), self.draw.choice([None, *RATES])
        await self.mirror.set_limit(name or self.draw.choice(NAMES), most, rate)

    async def wait(self) -> None:
        core = self.mirror.core
        core.wait_until_ms(core.now_us() // 1000 + SOON_MS)


@pytest.mark.parametrize("part", range(4))
async def test_scripts_and_model_agree_whatever_is_set(server: Server, queue_name: str, part: int) -> None:
    for number in range(FIRST + part, FIRST + GAMES, 4):
        async with TimedCore(server.url, f"{queue_name}/{number}") as core:
            try:
                await Game(number, Mirror(core)).play()
            except BaseException as exc:
                exc.add_note(f"in game {number}")
                raise
            finally:
                core.forget()
