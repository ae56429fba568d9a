"""A queue with partitions beside a model of each: what is about a user goes through the queue, to where that lives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from fairque.errors import InvalidInput
from fairque.everybody import EVERYONE
from fairque.limit import Limit
from fairque.models import ANY_USER, UserGroup
from fairque.policy import Policy
from fairque.redis.backend import Backend
from fairque.redis.connector import DEFAULT_TIMEOUT
from fairque.redis.keys import decode_user, encode_user
from fairque.redis.partitions import partition_of
from fairque.redis.store import Store
from tests.support.mirror import Held, Mirror
from tests.support.mirror_view import changed
from tests.support.play import BothMachine, finish
from tests.support.resp import RespClient
from tests.support.timed import IDLE_US, START_US, STEP_US, TimedCore, TimedStore

if TYPE_CHECKING:
    from fairque.policy import Rate
    from fairque.redis.scripts import Script
    from tests.support.order import Order

COUNT = 4
_OF_PARTITION = {"claim", "settle", "leave", "settings"}
"""What workers call of one partition. All else goes through the queue."""


class Clock:
    """One for all partitions."""

    us = START_US


class SpreadStore(TimedStore):
    core: TimedCore | None = None  # type: ignore[assignment]
    """Of a partition. What the queue says of all of them has no time."""

    async def _run(self, script: Script, args: Sequence[Any], patience: float | None = None) -> Any:
        if self.core is None:
            return await Store._run(self, script, args, patience)
        return await super()._run(script, args, patience)


class _ThroughQueue:
    """A store as a worker of one partition, and everybody else, has it."""

    def __init__(self, root: SpreadStore, part: SpreadStore) -> None:
        self._root, self._part = root, part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part if name in _OF_PARTITION else self._root, name)


class PartitionCore(TimedCore):
    """One partition of a queue.

    Attributes:
        ahead_us: By how much its clock is ahead of that of the game.
    """

    ahead_us = 0

    def __init__(self, url: str, root: SpreadStore, number: int, clock: Clock) -> None:
        part = root.parts[number]
        part.core = self
        self.number = number
        self.backend = part.backend
        self.keys = part.keys
        self.root = root
        self.store = _ThroughQueue(root, part)  # type: ignore[assignment]
        self.on_tick: Callable[[int], object] = int
        self._clock = clock
        self._client = RespClient(url)
        self._now_us = clock.us

    async def __aenter__(self) -> PartitionCore:
        await self.backend.connector.open()
        return self

    def tick(self, us: int = STEP_US) -> None:
        self._now_us = self._clock.us + self.ahead_us
        super().tick(us)
        self._clock.us = self._now_us - self.ahead_us

    def wait_until_ms(self, moment: float) -> None:
        super().wait_until_ms(moment)
        self._clock.us = max(self._clock.us, self._now_us)

    def rest(self) -> None:
        self._now_us = self._clock.us = self._clock.us + IDLE_US

    def close(self) -> None:
        self.forget()
        self.execute("DEL", ":told", ":told-expiry", ":told-idle")
        self._client.close()


class SpreadQueue:
    """A queue with partitions, and the core of each."""

    def __init__(
        self, url: str, name: str, count: int = COUNT, new_store: Callable[[Backend], SpreadStore] = SpreadStore
    ) -> None:
        self._backend = Backend(url, name, timeout=DEFAULT_TIMEOUT, given={**TimedCore.settings, "partitions": count})
        self.store = new_store(self._backend)
        self.clock = Clock()
        self.cores = [PartitionCore(url, self.store, number, self.clock) for number in range(count)]

    async def close(self) -> None:
        for core in self.cores:
            core.close()
        await self.store.close()
        await self._backend.connector.close()


class PartitionMirror(Mirror):
    """A partition and the model of a queue of its own. What is said of everybody is said to all of them.

    Users of any name are given one like it that lives there.
    """

    core: PartitionCore

    def __init__(self, core: PartitionCore, others: list[PartitionMirror]) -> None:
        super().__init__(core)
        self._all = others
        self._names: dict[str, str] = {}
        others.append(self)

    def home(self, user_id: str) -> str:
        if user_id in self._names.values():
            return user_id
        if user_id not in self._names:
            self._names[user_id] = next(name for name in _like(user_id) if self._lives_here(name))
        return self._names[user_id]

    def _lives_here(self, user_id: str) -> bool:
        return partition_of(encode_user(user_id), COUNT) == self.core.number

    def homes(self, groups: Sequence[UserGroup]) -> list[UserGroup]:
        return [[self.home(user_id) for user_id in group] for group in groups]

    # Of users

    async def enqueue(self, orders: Sequence[Order], nonce: bytes) -> None:
        await super().enqueue([order._replace(user_id=self.home(order.user_id)) for order in orders], nonce)

    async def claim(
        self, worker: str, want: int, lease_ms: int, groups: Sequence[UserGroup] = ANY_USER, **how: Any
    ) -> list[Held]:
        return await super().claim(worker, want, lease_ms, self.homes(groups), **how)

    async def leave(self, worker: str, groups: Sequence[UserGroup] = ANY_USER) -> None:
        await super().leave(worker, self.homes(groups))

    async def cancel(self, user_id: str, task_id: str) -> None:
        await super().cancel(self.home(user_id), task_id)

    async def cancel_all(self, user_id: str, *which: Any) -> None:
        await super().cancel_all(self.home(user_id), *which)

    async def open_batch(self, user_id: str, *which: Any) -> None:
        await super().open_batch(self.home(user_id), *which)

    async def close_batch(self, user_id: str, batch_id: str) -> None:
        await super().close_batch(self.home(user_id), batch_id)

    async def cancel_batch(self, user_id: str, batch_id: str) -> None:
        await super().cancel_batch(self.home(user_id), batch_id)

    async def set_priority(self, user_id: str, task_id: str, priority: int) -> None:
        await super().set_priority(self.home(user_id), task_id, priority)

    async def reschedule(self, user_id: str, task_id: str, delay_ms: int) -> None:
        await super().reschedule(self.home(user_id), task_id, delay_ms)

    async def requeue(self, user_id: str, *task_ids: str) -> None:
        await super().requeue(self.home(user_id), *task_ids)

    async def discard(self, user_id: str, *task_ids: str) -> None:
        await super().discard(self.home(user_id), *task_ids)

    async def purge(self, user_id: str) -> None:
        await super().purge(self.home(user_id))

    # Of everybody

    async def set_policy(self, user_id: str, **fields: Any) -> None:
        """Members of a group may live in several partitions: there are none."""
        fields.pop("group", None)
        if user_id != EVERYONE:
            await super().set_policy(self.home(user_id), **fields)
        elif fields:
            await self._set_policy_of_all(*changed(fields), fields)

    async def clear_policy(self, user_id: str) -> None:
        if user_id != EVERYONE:
            await super().clear_policy(self.home(user_id))
        else:
            await self._set_policy_of_all({}, [EVERYONE], dict.fromkeys(Policy.__struct_fields__))

    async def _set_policy_of_all(self, changes: Any, forgotten: Any, fields: dict[str, Any]) -> None:
        await self.core.root.set_policy(EVERYONE, changes, forgotten)
        for each in self._all:
            each.model.set_policy(each.core.now_us(), EVERYONE, **fields)
            each.compare()

    async def set_group(self, group: str, weight: float | None) -> None:
        pass

    async def set_limit(self, record: str, max_running: int | None, rate: Rate | None) -> None:
        """One that all users share may be refused: then nothing is changed anywhere."""
        user, rest = _divided(record)
        if user:
            await super().set_limit(encode_user(self.home(decode_user(user.encode()))) + rest, max_running, rate)
            return
        try:
            await self._set_limit_of_all(record, max_running, rate)
        except InvalidInput:
            for each in self._all:
                each.compare()

    async def _set_limit_of_all(self, record: str, max_running: int | None, rate: Rate | None) -> None:
        says = Limit("key", max_running=max_running, rate=rate)
        await self.core.root.set_limits([(record, says if says.says_how_much else None)], declared=False)
        for each in self._all:
            each.model.set_limit(each.core.now_us(), record, max_running, rate)
            each.compare()

    async def pause_task(self, record: str, *, is_paused: bool) -> None:
        await self.core.root.set_paused(record, is_paused)
        for each in self._all:
            each.model.pause_task(each.core.now_us(), record, is_paused=is_paused)
            each.compare()


def _like(user_id: str) -> Iterator[str]:
    return (f"{user_id}{'' if n < 0 else n}" for n in range(-1, 10_000))


def _divided(record: str) -> tuple[str, str]:
    """The user of a limit, '' for everybody, and the rest."""
    sign = "=" if "=" in record.partition(":")[0] else ":"
    user, _, key = record.partition(sign)
    return user, sign + key


class SpreadMachine(BothMachine):
    """Everything that may happen to a queue with partitions, now in this one of them, now in that."""

    # Places of limits over all users are lent between partitions, which wakes workers: tests/support/limits_play.py
    has_limits = property(lambda _: False, lambda _, __: None)

    def __init__(self, new_queue: Callable[[], SpreadQueue]) -> None:
        self.queue = new_queue()
        super().__init__(lambda: self.queue.cores[0])
        self.mirrors: list[PartitionMirror] = []
        for core in self.queue.cores:
            PartitionMirror(core, self.mirrors)
            core.tick()  # each has a time, also where nothing happens
        self.mirror = self.mirrors[0]

    @rule(at=st.integers(0, COUNT - 1))
    def turn_to(self, at: int) -> None:
        self.mirrors[at].by_time = self.mirrors[0].by_time
        self.core, self.mirror = self.queue.cores[at], self.mirrors[at]

    def teardown(self) -> None:
        try:
            for mirror in self.mirrors if self.is_sound else ():
                mirror.by_time = self.mirrors[0].by_time
                self.runner.run(finish(mirror))
        finally:
            self.runner.run(self.queue.close())
            self.runner.close()
