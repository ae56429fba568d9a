"""A worker killed at a named point: before a call of it reaches Redis, and after, before it knows of the answer."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairque import TaskQueue, TaskScheduler, UnknownTask
from tests.support.calls import call_of
from tests.support.core import outcome
from tests.support.eventually import eventually
from tests.support.workers import Fleet
from tests.workers import tasks

if TYPE_CHECKING:
    from fairque import TaskHandle
    from tests.support.process import WorkerProcess
    from tests.support.proxy import CuttingProxy, Hold
    from tests.support.servers import Server

LEASE = 1.0
CONCURRENCY = 24
USERS = ("acme", "zoe", "max")
GROUPS = {"acme": "firm/europe", "zoe": "firm"}
TOGETHER = 12
DEAD_LETTER_TTL = 1.0
AT_THE_END = {"leave", "settle"}
"""What a worker calls as it stops: outcomes alone, once it claims no more."""
POINTS = ("before", "after")


class Scene:
    """A worker behind the proxy that is killed, and one that does what is left. Tasks note their starts in a file."""

    def __init__(
        self,
        start: Callable[..., Awaitable[WorkerProcess]],
        server: Server,
        proxy: CuttingProxy,
        name: str,
        log: Path,
        partitions: int,
    ) -> None:
        options = {"lease": LEASE, "partitions": partitions}
        self._direct = Fleet(start, server.url, name, **options)
        self._through_proxy = Fleet(start, proxy.url, name, **options)
        self._proxy = proxy
        self._log = log
        log.touch()

    def starts(self) -> list[tuple[int, str]]:
        return [(int(pid), task_id) for pid, task_id in (line.split() for line in self._log.read_text().splitlines())]

    async def enqueue(self, queue: TaskQueue) -> list[TaskHandle[str]]:
        log = str(self._log)
        made = [await queue.enqueue(tasks.log(log, 0.01 * (n % 3)), user_id=USERS[n % 3]) for n in range(60)]
        first = await queue.enqueue(tasks.log(log, 0.1), user_id="acme")
        made += [first, await queue.enqueue(tasks.log(log, 0).options(depends_on=[first]), user_id="acme")]
        made.append(await queue.enqueue(tasks.log(log, 1.5 * LEASE), user_id="zoe"))
        calling = tasks.log(log, 0.01).options(on_end=tasks.log(log, 0))
        ids = {f"calling-{n}": USERS[n % 3] for n in range(12)}
        callers = [await queue.enqueue(calling, user_id=user, task_id=task_id) for task_id, user in ids.items()]
        return [*made, *callers, *(queue.handle(each.user_id, f"{each.task_id}.on_end") for each in callers)]

    async def enqueue_together(self, queue: TaskQueue) -> list[TaskHandle[str]]:
        """Tasks that run in groups."""
        calls = [tasks.log_together((str(self._log), f"together-{n}")) for n in range(TOGETHER)]
        ids = [call.options(task_id=f"together-{n}") for n, call in enumerate(calls)]
        return await queue.enqueue_many(ids, user_id="acme")

    async def make_lapsed(self, queue: TaskQueue) -> list[TaskHandle[str]]:
        """A task that waits for a dead letter whose time is over. The next claim that looks gives that up."""
        log, store = str(self._log), queue.store()
        dead = await queue.enqueue(tasks.log(log, 0), user_id="max", task_id="dead")
        home = await store.home_of("max")
        [taken] = (await home.claim("ghost", 1, wait=False)).deliveries
        assert await home.settle("ghost", [outcome(taken, "failed")]) == [True]
        over = time.monotonic() + DEAD_LETTER_TTL
        await home.leave("ghost", [()])
        await store.close()
        waits = tasks.log(log, 0).options(depends_on=[dead], on_end=tasks.log(log, 0))
        await queue.enqueue(waits, user_id="max", task_id="never")
        await eventually(lambda: time.monotonic() > over)
        return [queue.handle("max", "never.on_end")]

    async def make_suspects(self, queue: TaskQueue) -> list[TaskHandle[str]]:
        """Of two tasks, whose worker dies before."""
        victim = await self._direct.start(concurrency=2)
        made = [await queue.enqueue(tasks.log(str(self._log), LEASE), user_id=user) for user in USERS[:2]]
        await eventually(lambda: len(self.starts()) == len(made))
        victim.send(signal.SIGKILL)
        await victim.wait()
        return made

    async def kill_at(self, hold: Hold, script: str) -> int:
        """The process that was killed."""
        victim = await self._through_proxy.launch(concurrency=CONCURRENCY, shutdown_timeout=5)
        if script in AT_THE_END:
            await victim.line("ready ")
            victim.send(signal.SIGTERM)
        async with asyncio.timeout(30):
            await hold.reached.wait()
        victim.send(signal.SIGKILL)
        await victim.wait()
        await self._proxy.refuse()  # a command that was kept back must not arrive after all
        hold.released.set()
        return victim.pid

    async def survive(self) -> None:
        await self._direct.start(concurrency=CONCURRENCY)


async def are_known(handles: Sequence[TaskHandle[Any]]) -> bool:
    """Some are put in by the end of others."""
    for handle in handles:
        try:
            await handle.state()
        except UnknownTask:
            return False
    return True


async def kill_at_a_call(
    start: Callable[..., Awaitable[WorkerProcess]],
    server: Server,
    proxy: CuttingProxy,
    name: str,
    directory: Path,
    script: str,
    nth: int,
    point: str,
    partitions: int = 1,
) -> None:
    """Nothing is lost, nobody is failed, and what runs again was held by the process that died."""
    scene = Scene(start, server, proxy, name, directory / "starts", partitions)
    async with TaskQueue(
        server.url, name=name, lease=LEASE, dead_letter_ttl=DEAD_LETTER_TTL, partitions=partitions
    ) as queue:
        for user_id, group in GROUPS.items() if partitions == 1 else ():
            await queue.set_policy(user_id, group=group)
        suspects = await scene.make_suspects(queue) if script == "receive" else []
        lapsed = [] if suspects else await scene.make_lapsed(queue)  # whoever claims that would take the suspects over
        handles = lapsed + suspects + await scene.enqueue(queue) + await scene.enqueue_together(queue)
        telling = await queue.enqueue(tasks.tell("half"), user_id="max")
        taking = await queue.enqueue(tasks.add(tasks.add(1, 2).output, 3), user_id="max")
        log = str(directory / "starts")
        ending = tasks.log(log, 0)
        batch = await queue.batch("zoe", batch_id="counted", on_complete=ending, on_success=ending).open()
        counted = await batch.enqueue_many([tasks.log(log, 0.01 * (n % 3)) for n in range(20)])
        await batch.close()
        scheduler = TaskScheduler(queue)
        await scheduler.add_schedule(
            task=tasks.log(str(directory / "starts"), 0), user_id="max", every=1.0, schedule_id="tick"
        )
        await scene.kill_at(proxy.hold(call_of(script), nth, of_reply=point == "after"), script)
        before = Counter(task_id for _, task_id in scene.starts())
        await scene.survive()
        await eventually(lambda: are_known(lapsed), 60)
        for handle in handles:
            assert await handle.result(timeout=60) == handle.task_id
        assert (await batch.wait(timeout=60)).finished == len(counted)
        for kind in ("on_complete", "on_success"):
            assert await queue.handle("zoe", f"counted.{kind}").result(timeout=60) == f"counted.{kind}"
        assert await telling.result(timeout=60) == "half"
        assert await taking.result(timeout=60) == 6
        await scheduler.remove_schedule("tick")
        await eventually(lambda: nothing_is_out(queue))
        assert (await queue.stats()).failed == len(lapsed)
    starts = Counter(task_id for _, task_id in scene.starts())
    suspected = {handle.task_id for handle in suspects}
    again = {task_id: times - 1 for task_id, times in starts.items() if times > 1 and task_id not in suspected}
    alone = {task_id: times for task_id, times in again.items() if not task_id.startswith("together-")}
    # What ran, and what had ended while a report was under way: its slots were free for others.
    assert sum(alone.values()) <= 2 * CONCURRENCY
    assert all(before[task_id] == 1 and times == 1 for task_id, times in again.items()), "it ran again for nothing"
    assert not [task_id for task_id in starts if ".on_" in task_id and "-" in task_id.partition(".on_")[2]], "once each"
    ticks = [task_id for task_id in starts if task_id.startswith("tick@")]
    assert len(ticks) == len(set(ticks)), "a slot makes one task"
    assert {handle.task_id for handle in handles} <= starts.keys()
    assert "never" not in starts


async def nothing_is_out(queue: TaskQueue) -> bool:
    stats = await queue.stats()
    return stats.queued + stats.started + stats.scheduled + stats.deferred == 0
