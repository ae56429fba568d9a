"""Places of limits over all users, whoever carries what partitions say of them, however late, twice or never."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from fairque import Limit, TaskQueue, task
from fairque.redis import arguments
from fairque.redis.delivery import Delivery, Outcome
from fairque.redis.partitions import partition_of
from fairque.redis.store_loans import tells_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.servers import Server

pytestmark = [pytest.mark.damages, pytest.mark.leaves_keys()]
PARTITIONS, KEY = 3, "places"
GAMES = max(2, int(os.environ.get("FAIRQUE_GAMES", "100")) // 20)
USERS = [
    next(f"u{n}" for n in itertools.count() if partition_of(f"u{n}", PARTITIONS) == at) for at in range(PARTITIONS)
]
KINDS = [
    *["enqueue"] * 2,
    *["claim"] * 2,
    "settle",
    *["exchange"] * 2,
    *["deliver"] * 3,
    "again",
    "lose",
    "set",
    "forfeit",
]
STEPS = 120
OF_PARTITIONS = ("enqueue", "claim", "exchange", "forfeit")


@task(limits=[Limit(KEY)])
async def take_a_place() -> None: ...


class Game:
    """Tasks of one key in three partitions, and all that was said between them and has not arrived."""

    def __init__(self, server: Server, queue: TaskQueue) -> None:
        self.server, self.queue, self.parts = server, queue, queue.reader.parts
        self.most = 2
        self.running: list[tuple[int, Delivery]] = []
        self.said: list[tuple[str, int, Any]] = []
        self.put_in = self.ended = 0
        self.given_up: list[Delivery] = []

    def key(self, partition: int, name: str) -> str:
        return f"{self.parts[partition].keys.prefix}{name}"

    def counted(self) -> int:
        return sum(self.server.execute("SCARD", self.key(at, f"running::{KEY}")) for at in range(PARTITIONS))

    async def set(self, most: int) -> None:
        self.most = most
        await self.queue.set_limit(KEY, max_running=most)

    async def enqueue(self, partition: int) -> None:
        await self.queue.enqueue(take_a_place(), user_id=USERS[partition])
        self.put_in += 1

    async def claim(self, partition: int) -> None:
        part = self.parts[partition]
        claim = await part.claim("w", 10, latest=0.0, floor=0.0, steal=False)
        self.running += [(partition, of) for of in claim.deliveries]
        assert self.counted() == len(self.running)
        if claim.deliveries:
            assert len([of for _, of in self.running if of not in self.given_up]) <= self.most

    async def settle(self, number: int) -> None:
        if self.running:
            partition, of = self.running.pop(number % len(self.running))
            assert await self.parts[partition].settle("w", [Outcome(of, "finished", 1000, 0, b"")]) == [True]
            self.ended += 1

    async def forfeit(self, partition: int) -> None:
        """What runs there is not counted any more; the partition hears of it before it serves."""
        home = int(hashlib.sha1(f":{KEY}".encode(), usedforsecurity=False).hexdigest()[:8], 16) % PARTITIONS
        if partition == home:
            return
        self.given_up += [of for at, of in self.running if at == partition]
        await self.parts[0].call(arguments.Forfeit(partition, [], -1))
        _, _, tells = await self.parts[home].call(arguments.Forfeit(partition, [f":{KEY}"]))
        self.say(tells_in(tells))
        for part in self.parts[1:]:
            await part.follow(await self.parts[0].rulebook())

    async def exchange(self, partition: int) -> None:
        """As if time had passed."""
        exchanges = self.key(partition, "exchanges")
        for name in self.server.execute("ZRANGE", exchanges, 0, -1):
            self.server.execute("ZADD", exchanges, 0, name)
        at_us, asks, tells = await self.parts[partition].exchange(10)
        self.said += [("lend", home, (partition, at_us, asked)) for home, asked in asks.items()]
        self.say(tells)

    def say(self, tells: dict[int, list[Any]]) -> None:
        self.said += [("accept", partition, (told,)) for partition, told in tells.items()]

    async def deliver(self, number: int, *, keeps: bool = False) -> None:
        if self.said:
            at = number % len(self.said)
            what, partition, words = self.said[at] if keeps else self.said.pop(at)
            answer = await getattr(self.parts[partition], what)(*words)
            if what == "lend":
                self.say(answer)

    async def again(self, number: int) -> None:
        await self.deliver(number, keeps=True)

    async def lose(self, number: int) -> None:
        if self.said:
            self.said.pop(number % len(self.said))

    async def play(self, steps: Sequence[tuple[str, int]]) -> None:
        await self.set(self.most)
        for step, value in steps:
            await getattr(self, step)(value % PARTITIONS if step in OF_PARTITIONS else value)
        await self.end()

    async def end(self) -> None:
        """Once what is said arrives, all places are found again, and every task has its turn."""
        late, self.said = self.said, []
        await self.drain()
        self.said = late
        while self.said:
            await self.deliver(0)
        for partition in [*range(PARTITIONS)] * 4:
            await self.enqueue(partition)
        await self.drain()
        for _ in range(6):
            await self.talk()
        left = [key for at in range(PARTITIONS) for key in self.server.execute("KEYS", glob(self.key(at, "*")))]
        assert not [key for key in left if any(name in key for name in (b":loan:", b":loans:", b":exchanges"))]
        for at in range(PARTITIONS):
            await self.parts[at].leave("w", [()])

    async def drain(self) -> None:
        for _ in range(40 * (self.put_in + 1)):
            if self.ended == self.put_in:
                break
            for partition in range(PARTITIONS):
                await self.claim(partition)
            await self.talk()
            await self.settle(0)
        assert self.ended == self.put_in

    async def talk(self) -> None:
        for partition in range(PARTITIONS):
            await self.exchange(partition)
            while self.said:
                await self.deliver(0)


def glob(text: str) -> str:
    return text.replace("[", "\\[")


def steps_of(chance: random.Random) -> Iterator[tuple[str, int]]:
    for _ in range(STEPS):
        kind = chance.choice(KINDS)
        if kind in ("set", "forfeit") and chance.random() < 0.7:
            continue
        yield kind, chance.randint(1, 4) if kind == "set" else chance.randrange(1000)


@pytest.mark.parametrize("seed", range(5))
async def test_no_place_is_ever_used_twice_or_lost(server: Server, queue_name: str, seed: int) -> None:
    for game in range(GAMES):
        name, steps = f"{queue_name}-{game}", list(steps_of(random.Random(f"{seed} {game}")))
        async with TaskQueue(server.url, name=name, partitions=PARTITIONS, lease=600) as queue:
            try:
                await Game(server, queue).play(steps)
            except AssertionError as exc:
                exc.add_note(f"game {game}: {steps}")
                raise
        for key in server.execute("KEYS", f"fairque:{{{name}/*"):
            server.execute("DEL", key)
