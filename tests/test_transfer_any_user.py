"""Any user, carried from one server to another: all of it is there, both queues are sound, and all of it runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairque import Collect, Retry, TaskQueue, TaskScheduler, UnknownTask, Worker, current_task, task
from fairque.testing import advance
from tests.support.servers import new_queue_name
from tests.test_transfer import carried, contents, kept

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer
    from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()
IDS = st.sampled_from(["a", "b:c", "ü {x}*", "1:informed:held\n", "%3A"])


@task(name="transfer_any.plain")
async def plain(value: int = 0) -> int:
    return value


@task(name="transfer_any.add")
async def add(one: int, other: int) -> int:
    return one + other


@task(name="transfer_any.failing")
async def failing() -> None:
    raise ValueError("on purpose")


@task(name="transfer_any.retried", max_retries=3)
async def retried() -> int:
    if current_task().attempt < 3:
        raise Retry(delay=3600)
    return 1


@task(name="transfer_any.together", collect=Collect(3, within=3600))
async def together(values: list[int]) -> list[int | Exception]:
    return list(values)


class Builder:
    """Something of each kind, of one user."""

    def __init__(self, queue: TaskQueue, user_id: str) -> None:
        self.queue = queue
        self.user_id = user_id
        self.count = 0

    async def take(self, step: str, name: str) -> None:
        self.count += 1
        if step in TASKS:
            await self.put(*TASKS[step])
        else:
            await getattr(self, step)(name)

    async def put(self, made: Any, options: dict[str, Any] | None = None) -> Any:
        return await self.queue.enqueue(made, user_id=self.user_id, **(options or {}))

    async def named(self, name: str) -> None:
        await self.put(plain(1), {"task_id": name})

    async def deferred(self, name: str) -> None:
        await self.named(name)
        await self.put(plain(2), {"depends_on": [self.queue.handle(self.user_id, name)]})

    async def blocked(self, name: str) -> None:
        await self.put(plain(failing().output) if name == "a" else failing())

    async def batch(self, name: str) -> None:
        batch = await self.queue.batch(self.user_id, batch_id=f"{name}{self.count}", on_success=plain(4)).open()
        await batch.enqueue(plain(1))
        if name != "a":
            await batch.close()

    async def xcom(self, name: str) -> None:
        await self.queue.xcom(self.user_id, name).push(name, self.count)

    async def schedule(self, name: str) -> None:
        scheduler = TaskScheduler(self.queue)
        hourly = {"every": timedelta(hours=1), "schedule_id": f"{name}{self.count}"}
        made = await scheduler.add_schedule(task=plain(5), user_id=self.user_id, **hourly)
        if name == "a":
            await scheduler.pause_schedule(made)
        await scheduler.fire_due(3600)

    async def policy(self, _name: str) -> None:
        await self.queue.set_policy(self.user_id, weight=3, max_running=2)

    async def byte_limit(self, _name: str) -> None:
        await self.queue.set_policy(self.user_id, max_bytes=10**7)

    async def limit(self, _name: str) -> None:
        await self.queue.set_limit("crm", max_running=2, rate="5/s", user_id=self.user_id, shared=False)

    async def held(self, _name: str) -> None:
        await self.queue.set_limit("one", max_running=1)
        for _ in range(3):
            await self.put(plain(1).options(limits=["one"]))

    async def claim(self, _name: str) -> None:
        store = self.queue.store()
        await store.claim("ghost", 2)
        await store.close()

    async def serve(self, _name: str) -> None:
        await Worker(self.queue, scheduler=False).run_until_idle()

    async def cancel(self, name: str) -> None:
        with contextlib.suppress(UnknownTask):
            await self.queue.handle(self.user_id, name).cancel("why")

    async def pause(self, name: str) -> None:
        await self.queue.pause(self.user_id)
        if name == "a":
            await self.queue.resume(self.user_id)


TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "critical": (plain(1), {"priority": 6}),
    "later": (plain(1), {"delay": 600}),
    "expiring": (plain(1), {"delay": 600, "expires": 900}),
    "unique": (plain(1), {"unique": True}),
    "throttled": (plain(1), {"throttle": 600}),
    "debounced": (plain(1), {"debounce": 600}),
    "joined": (add(plain(1).output, plain(2).output), {}),
    "retried": (retried(), {}),
    "called_back": (plain(1).options(on_end=plain(2), on_success=plain(3)), {}),
    "collected": (together(1), {}),
}
OTHERS = (
    *("named", "deferred", "blocked", "batch", "xcom", "schedule", "policy", "byte_limit", "limit", "held", "claim"),
    *("serve", "cancel", "pause"),
)
STEPS = st.lists(st.tuples(st.sampled_from((*TASKS, *OTHERS)), IDS), max_size=14)


async def run_out(queue: TaskQueue, user_id: str) -> dict[str, int]:
    """All that it has runs, as far as it can, in some hours."""
    await queue.resume(user_id)
    for _ in range(8):
        await advance(queue, 1800)
        await Worker(queue, scheduler=False).run_until_idle()
    user = await queue.user(user_id)
    return {"queued": user.queued, "scheduled": user.scheduled, "dead": user.dead_letters}


async def carry_any(url: str, other_url: str, user_id: str, steps: list[tuple[str, str]]) -> None:
    name = new_queue_name("any-user")
    async with TaskQueue(url, name=name) as here, TaskQueue(other_url, name=name) as there:
        builder = Builder(here, user_id)
        await here.enqueue(plain(), user_id="zoe", delay=60)
        for step, of in steps:
            await builder.take(step, of)
        if (before := contents(here, user_id)) or await here.limits():
            records = await kept(here.export_user(user_id))
            assert without_cap(contents(here, user_id)) == without_cap(before)
            await there.import_user(records)
            assert without_rules(contents(there, user_id)) == without_rules(carried(before))
            assert await there.get_policy(user_id) == await here.get_policy(user_id)
            assert (await there.check()).findings == ()
            left = await run_out(there, user_id)
            assert (left["queued"], left["scheduled"]) == (0, 0)
            assert (await there.check()).findings == ()
        assert (await here.check()).findings == ()
        for queue in (here, there):
            await queue._reader.erase_all()


def without_cap(found: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """That is counted again by the claim behind it."""
    cap = b"capped"
    return {
        key: {field: value for field, value in content.items() if field != cap} if key[0] == "user" else content
        for key, content in found.items()
    }


def without_rules(found: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """What is set by calls of its own."""
    return {key: content for key, content in found.items() if key[0] not in ("policy", "user")}


@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(user_id=IDS, steps=STEPS)
def test_any_user_is_the_same_on_another_server(
    server: Server, own_server: Callable[..., EmbeddedServer], user_id: str, steps: list[tuple[str, str]]
) -> None:
    if not _others:
        _others.append(own_server())
    asyncio.run(carry_any(server.url, _others[0].url, user_id, steps))


_others: list[EmbeddedServer] = []
