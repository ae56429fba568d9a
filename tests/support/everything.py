"""A queue in which everything is used at once, and that stands still: for tests that break one key of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from fairque import EVERYBODY, Breaker, Collect, Priority, Rate, TaskQueue, TaskScheduler
from fairque.models import Attempt, FailureKind
from fairque.redis.delivery import Delivery
from fairque.redis.keys import encode_user
from fairque.redis.requester import BlockingRequester
from fairque.redis.store import Store, renew
from fairque.redis.store_chunks import Batch
from fairque.redis.store_schedules import ScheduleStore
from fairque.tasks.decorator import task
from fairque.tasks.registry import unregister
from fairque.testing import advance
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.support.resp import RespClient
from tests.support.together import keys_of_all, part_of_all, store_of_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

USER, OTHER, MEMBER = "a:b {ü}", "quiet", "member"
_HOUR = timedelta(hours=1)
_ERROR = msgspec.msgpack.encode(Attempt(1, 1e9, FailureKind.ERROR, "ValueError", "on purpose", "", "ghost"))


@asynccontextmanager
async def everything(url: str, name: str, *, telling: bool = False) -> AsyncIterator[TaskQueue]:
    """An open queue with all keys of the table but `swept` and `uncounted`, when much is allowed, and `damaged`.

    `telling`: with `announcements` as well, for which it takes hundreds of tasks.
    """
    async with TaskQueue(url, name=name, fairness="time") as queue:
        builder = _Builder(queue)
        try:
            await builder.build(telling=telling)
            yield queue
        finally:
            await builder.close()


class _Builder:
    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self.store: Store = store_of_all(queue.store())
        self.plain = task(name="plain")(_plain)
        self.limited = task(name="one: at a time", max_running=2)(_plain)
        self.filled = task(name="filled", limits=["crm:{value}"])(_plain)
        self.together = task(name="together", collect=Collect(100, within=3600))(_together)
        self.tick = task(name="tick", every=3600, user_id="system")(_plain)

    async def close(self) -> None:
        await self.store.close()
        for function in (self.plain, self.limited, self.filled, self.together, self.tick):
            unregister(function.name)

    async def build(self, *, telling: bool) -> None:
        await self.ends_tasks()
        await self.sets_policies()
        await self.runs_tasks()
        await self.leaves_tasks_waiting()
        await self.plans()
        await self.queue.xcom(USER, "a:b").push("key", 1)
        await self.holds_tasks()
        await self.queue.pause_task("together")
        if telling:
            await self.tells_later()
        self.has_a_past()

    async def take(self, want: int, worker: str = "ghost") -> list[Delivery]:
        return (await self.store.claim(worker, want)).deliveries

    async def end(self, deliveries: list[Delivery], kind: str = "finished") -> None:
        outcomes = [msgspec.structs.replace(outcome(of, kind), run_ms=5.0) for of in deliveries]
        if kind == "failed":
            outcomes = [msgspec.structs.replace(each, error=_ERROR) for each in outcomes]
        assert all(await self.store.settle("ghost", outcomes))

    async def ends_tasks(self) -> None:
        """Results, dead letters, measurements, run times, an hour that is over."""
        for user_id in (USER, OTHER):
            await self.queue.enqueue_many([self.plain()] * 2, user_id=user_id)
            first, second = await self.take(2)
            await self.end([first])
            await self.end([second], "failed")
            await self.queue.enqueue(self.plain() >> self.plain(), user_id=user_id)
            await self.end(await self.take(1))
            await self.end(await self.take(1), "failed")
        letter = await self.queue.enqueue(self.plain(), user_id=OTHER)
        await self.end(await self.take(1), "failed")
        await self.queue.requeue(letter)
        await letter.cancel()

    async def sets_policies(self) -> None:
        queue = self.queue
        await queue.set_policy(EVERYBODY, max_running=100, breaker=Breaker(failures=50))
        await queue.set_group("plan", weight=2)
        await queue.set_policy(MEMBER, group="plan", min_running=3)
        await queue.set_policy("slow", rate=Rate(1, per=3600))
        await queue.set_policy("later", paused=datetime.now(UTC) + _HOUR)
        await queue.set_policy("heavy", max_bytes=100_000)
        for user_id in ("slow", "later", "heavy"):
            await queue.enqueue_many([self.plain()] * 2, user_id=user_id)
        await self.end(await self.take(3))
        await queue.xcom("heavy").push("key", 1)
        await queue.pause("heavy")
        await queue.enqueue(self.plain(), user_id="heavy")
        assert not await self.take(1)

    async def holds_tasks(self) -> None:
        """One runs, one was let in and waits in its lane, the others are held."""
        await self.queue.set_limit("one: at a time", max_running=2)
        await self.queue.enqueue_many([self.limited()] * 5, user_id="held")
        taken = await self.store.claim("ghost", 5, groups=[["held"]])
        assert len(taken.deliveries) == 2
        await self.end(taken.deliveries[:1])
        await self.queue.set_limit("crm:{value}", max_running=1)
        await self.queue.enqueue_many([self.filled(7)] * 2, user_id="filled")
        assert len((await self.store.claim("ghost", 2, groups=[["filled"]])).deliveries) == 1

    async def runs_tasks(self) -> None:
        for user_id in (USER, MEMBER, OTHER):
            for priority in (Priority.NORMAL, Priority.CRITICAL):
                await self.queue.enqueue(self.plain(), user_id=user_id, priority=priority)
        taken = await self.take(6)
        assert len(taken) == 6
        for of in taken[:2]:
            parent = self.queue.handle(of.user_id, of.id)
            await self.queue.enqueue_child(parent, "c", self.plain(), with_parent=True, options={"delay": 3600})
        self.renew("ghost", taken)
        assert await self.store.append("ghost", [Batch(of, 1, 1, b"\x91\x01") for of in taken]) == [True] * 6
        await self.queue.handle(taken[0].user_id, taken[0].id).cancel()

    def renew(self, worker: str, taken: list[Delivery]) -> None:
        requester = BlockingRequester(self.queue.connector)
        renew(requester, keys_of_all(self.queue), worker, {"concurrency": 10}, taken)
        requester.close()

    async def leaves_tasks_waiting(self) -> None:
        for user_id in (USER, MEMBER, OTHER):
            first = await self.queue.enqueue(self.plain(), user_id=user_id, task_id="1:informed:held\n*")
            await self.queue.enqueue(self.plain(), user_id=user_id, priority=Priority.CRITICAL)
            await self.queue.enqueue(self.plain(), user_id=user_id, delay=3600)
            await self.queue.enqueue(self.plain(), user_id=user_id, depends_on=[first])
            await self.queue.enqueue(self.plain(), user_id=user_id, delay=3600, expires=4000, unique=True)
            await self.queue.enqueue(self.plain(self.plain().output), user_id=user_id)
            await self.queue.enqueue(self.plain().options(on_end=self.plain(), delay=3600), user_id=user_id)
            await self.queue.enqueue_many([self.together(n) for n in range(2)], user_id=user_id)
            batch = await self.queue.batch(user_id, batch_id="a:b", on_success=self.plain()).open()
            await batch.enqueue(self.plain(), delay=3600)
        await advance(self.queue, 1)
        await self.store.claim("named", 0, groups=[[USER, MEMBER]])
        assert not (await self.store.claim("of one", 1, groups=[["later"]])).deliveries

    async def tells_later(self) -> None:
        """One call tells 500 that their dependency failed: some go on waiting for it, others have yet to hear."""
        first = await self.queue.enqueue(self.plain(), user_id="many")
        await self.queue.enqueue_many([self.plain().options(depends_on=[first])] * 501, user_id="many")
        claimed = await self.store.claim("ghost", 1, groups=[["many"]])
        await self.end(claimed.deliveries, "failed")

    async def plans(self) -> None:
        scheduler = TaskScheduler(self.queue)
        await scheduler.add_schedule(task=self.plain(), user_id=USER, every=_HOUR, schedule_id="9:00")
        once = await scheduler.add_schedule(task=self.plain(), user_id=OTHER, at=datetime.now(UTC) + _HOUR)
        await scheduler.fire_due(2 * 3600)
        assert once
        running = asyncio.create_task(scheduler.run())
        await eventually(lambda: self._is_declared(scheduler))
        running.cancel()
        await asyncio.wait([running])
        await ScheduleStore(part_of_all(self.queue.reader)).ripe(0, scheduler="ghost")

    async def _is_declared(self, scheduler: TaskScheduler) -> bool:
        return bool(await scheduler.list_schedules("system"))

    def has_a_past(self) -> None:
        """Idle workers, and an hour that is over."""
        prefix = keys_of_all(self.queue).prefix
        with RespClient(self.queue.connector.url) as client:
            client.execute("SADD", f"{prefix}waiting", "idle")
            for whose in (encode_user(USER), "*"):
                client.execute("HSET", f"{prefix}usage:{whose}:20000", "7", msgspec.msgpack.encode([1.0, 1.0, 1.0]))
                client.execute("EXPIRE", f"{prefix}usage:{whose}:20000", 3600)


async def _plain(value: int = 0) -> int:
    return value


async def _together(values: list[int]) -> list[int]:
    return values
