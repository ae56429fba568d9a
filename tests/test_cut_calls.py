"""The k-th reply of each script cut, for every k: a caller is told, and Redis has, what it would without the cut."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fairque import QueueUnavailable, Retry, TaskQueue, TaskScheduler, Worker, current_task, task
from fairque.doctor.rows import key_of
from fairque.redis import arguments
from fairque.redis.places import MovedUser
from fairque.redis.store_schedules import ScheduleStore
from fairque.settings import QueueSettings
from fairque.tasks.options import Options
from fairque.tasks.registry import unregister
from fairque.testing import advance, enqueued
from tests.support.calls import call_of
from tests.support.eventually import eventually
from tests.support.render_scripts import scripts
from tests.support.resp import RespClient
from tests.support.servers import own_keys

if TYPE_CHECKING:
    from fairque.redis.scripts import Script
    from fairque.redis.store import Store
    from tests.support.proxy import Cut, CuttingProxy
    from tests.support.servers import Server

Call = Callable[[TaskQueue], Awaitable[Any]]
pytestmark = pytest.mark.leaves_keys()
LEASE = 1.0
SHORT = QueueSettings(lease_ms=1000)
CALLS: dict[str, Call] = {}
BRIEF = {
    *("answer:<nonce>", "claimed:<w>", "worker:<w>", "declarers", "left", "metrics:*", "metrics:<u>"),
    *("run-times", "schedule-keepers"),
}
"""Keys of a form that come and go with the call."""
LONG = timedelta(hours=1)


@task
async def plain(n: int = 0) -> int:
    starts[current_task().task_id] += 1
    return n


@task
async def fail() -> None:
    raise ValueError("as ordered")


@task(max_retries=1)
async def fail_at_first() -> int:
    starts[current_task().task_id] += 1
    if current_task().attempt == 1:
        raise Retry(delay=0.01)
    return 1


@task
async def nap() -> int:
    starts[current_task().task_id] += 1
    await asyncio.sleep(1.2 * LEASE)
    return 1


@task
async def report() -> int:
    starts[current_task().task_id] += 1
    current_task().progress(0.5, "half")
    await asyncio.sleep(0.1)
    return 1


@task
async def letters() -> AsyncIterator[str]:
    starts[current_task().task_id] += 1
    for letter in "abc":
        yield letter
        await asyncio.sleep(0.05)


starts: Counter[str] = Counter()


def calls(*names: str) -> Callable[[Call], Call]:
    def add(call: Call) -> Call:
        CALLS.update(dict.fromkeys(names, call))
        return call

    return add


# What is called, by script


@calls("agree")
async def open_another(far: TaskQueue) -> Any:
    async with TaskQueue(far.connector.url, name=f"{far.name}/new", lease=7) as queue:
        await queue.enqueue(plain(), user_id="acme")
        return queue.settings.lease_ms


@calls("change_settings")
async def change(far: TaskQueue) -> Any:
    await far.change_settings(result_ttl=100)


@calls("enqueue")
async def enqueue(far: TaskQueue) -> Any:
    handles = [await far.enqueue(plain(n), user_id="acme", task_id=f"new {n % 2}") for n in range(3)]
    handles += await far.enqueue_many([plain().options(task_id=f"more {n}") for n in range(600)], user_id="zoe")
    return [handle.created for handle in handles]


@calls("enqueue_linked")
async def link(far: TaskQueue) -> Any:
    await far.set_policy("full", max_queued=2, overflow="drop_oldest")
    first = await far.enqueue(plain().options(task_id="first", delay=3600, on_end=plain()), user_id="acme")
    second = await far.enqueue(plain().options(task_id="second", depends_on=[first]), user_id="acme")
    dropping = [await far.enqueue(plain().options(task_id=f"d{n}"), user_id="full") for n in range(4)]
    rules: list[Options] = [
        {"task_id": "q0", "on_conflict": "replace"},
        {"task_id": "new", "on_conflict": "error"},
        *2 * [Options(unique=True)],
        *2 * [Options(debounce=60)],
        *2 * [Options(throttle=60)],
    ]
    ruled = [await far.enqueue(plain(n), user_id="acme", **rule) for n, rule in enumerate(rules)]
    return [first.created, second.created, *(handle.enqueued for handle in (*dropping, *ruled))]


@calls("batch_open", "batch_close", "batch")
async def batch(far: TaskQueue) -> Any:
    async with far.batch("acme", batch_id="b", on_complete=plain(), on_success=plain()) as made:
        first = await made.enqueue(plain().options(delay=3600))
        await made.enqueue_many([plain().options(task_id=f"of b {n}") for n in range(3)])
    async with far.batch("acme", batch_id="empty", on_complete=plain()) as empty:
        pass
    progress = await made.progress()
    return first.created, progress.total, progress.state, (await empty.progress()).ended


@calls("batch_cancel")
async def cancel_a_batch(far: TaskQueue) -> Any:
    async with far.batch("acme", batch_id="b", on_complete=plain()) as made:
        await made.enqueue_many([plain().options(task_id=f"of b {n}") for n in range(700)])
        canceled = await made.cancel("why")
    return canceled, (await made.progress()).canceled


@calls("confirm")
async def confirm(far: TaskQueue) -> Any:
    return await far.reader.confirm(["a receipt"], 1000) > 0


@calls("cancel")
async def cancel(far: TaskQueue) -> Any:
    return [await far.handle("acme", name).cancel("why") for name in ("q0", "later", "awaited", "done")]


@calls("cancel_all")
async def cancel_many(far: TaskQueue) -> Any:
    return [await far.cancel_all("acme", state="scheduled"), await far.cancel_all("acme", reason="why")]


@calls("change")
async def change_what_waits(far: TaskQueue) -> Any:
    later, first, awaited = (far.handle("acme", name) for name in ("later", "q0", "awaited"))
    told = [await later.promote(), await first.reschedule(3600), await awaited.set_priority(6)]
    return [*told, await first.promote(), await far.handle("acme", "done").promote()]


@calls("requeue")
async def requeue(far: TaskQueue) -> Any:
    await far.requeue(far.handle("acme", "dead 0"))
    return await far.requeue_all("acme")


@calls("discard")
async def discard(far: TaskQueue) -> Any:
    await far.discard(far.handle("acme", "dead 0"))


@calls("purge")
async def purge(far: TaskQueue) -> Any:
    return await far.purge("acme")


@calls("freeze", "dump", "import", "thaw")
async def carry(far: TaskQueue) -> Any:
    records = [record async for record in far.export_user("acme")]
    await far.purge("acme")
    imported = await far.import_user(records)
    return len(records), imported.records, [info.task_id for info in await far.tasks("acme")]


@calls("arrive", "manifest", "depart", "moving", "adopt", "erase", "forward")
async def move_away(far: TaskQueue) -> Any:
    await far.reader.agree()
    store, token = far.reader.parts[0], "0" * 32
    await far.enqueue(plain(), user_id="leaver", task_id="it")
    frozen = await store.freeze("leaver", token, "move", 30_000)
    known = [await store.arrive("newcomer", token, 1, frozen.passport), await store.moving("newcomer")]
    assert await store.note_manifest("leaver", token, 0, ["body:leaver:it", "normal:leaver"])
    told = [await store.depart("leaver", token, 1, 7, {"normal": 1}), await store.moving("leaver")]
    for user in ("leaver", "newcomer"):
        while await store.erase(user, token, 1) > 0:
            pass
    await store.forward(MovedUser("gone", 1, 7))
    return known, told, await store.adopt(1)


@calls("watch")
async def watch(far: TaskQueue) -> Any:
    async for info in far.handle("acme", "q0").watch():
        return info.state
    return None


@calls("xcom_push", "xcom_pull", "xcom_keys", "xcom_delete")
async def share(far: TaskQueue) -> Any:
    xcom = far.xcom("acme", "space")
    for n in range(3):
        await xcom.push(f"key {n}", n)
    await xcom.delete("key 1")
    return await xcom.pull_many(["key 0", "key 2", "old"]), sorted(await xcom.keys())


@calls("xcom_clear")
async def clear(far: TaskQueue) -> Any:
    await far.xcom("acme", "space").clear()


@calls("policy", "policies", "governed")
async def govern(far: TaskQueue) -> Any:
    await far.set_policy("acme", weight=3, max_running=5)
    await far.set_group("plan", weight=2)
    await far.pause("zoe")
    await far.resume("zoe")
    await far.clear_policy("zoe")
    return await far.get_policy("acme"), await far.policies(), await far.groups()


@calls("limits")
async def limit(far: TaskQueue) -> Any:
    await far.set_limit("plain", max_running=3)
    await far.set_limit("other", max_running=1)
    await far.clear_limit("other")
    await far.pause_task("plain")
    await far.pause_task("fail")
    await far.resume_task("fail")
    return [(each.max_running, each.paused) for each in await far.limits()]


@calls("schedule", "schedules")
async def plan(far: TaskQueue) -> Any:
    scheduler = TaskScheduler(far)
    await scheduler.add_schedule(task=plain(), user_id="acme", every=LONG, schedule_id="new")
    await scheduler.pause_schedule("new")
    await scheduler.resume_schedule("new")
    return [(each.schedule_id, each.state) for each in await scheduler.list_schedules()]


@calls("unschedule")
async def unplan(far: TaskQueue) -> Any:
    return await TaskScheduler(far).remove_schedule("hourly")


@calls("ripe", "fire")
async def fire(far: TaskQueue) -> Any:
    return await TaskScheduler(far).fire_due(3 * 3600)


@calls("expire")
async def expire(far: TaskQueue) -> Any:
    await far.pause("acme")
    late = await far.enqueue(plain(), user_id="acme", expires=datetime(2020, 1, 1, tzinfo=UTC))
    has_more = await ScheduleStore(await far.reader.home_of("acme")).expire()
    return has_more, await late.state()


@calls("declare", "leave_schedules")
async def declare(far: TaskQueue) -> Any:
    tick = task(name="cut-calls.tick", every=3600, user_id="system")(plain.fn)
    scheduler = TaskScheduler(far)
    running = asyncio.create_task(scheduler.run())
    try:
        await eventually(lambda: scheduler.list_schedules("system"))
    finally:
        await scheduler.stop()  # it says once more, before it ends, that what it has written is declared
        await running
        unregister(tick.name)


@calls("peek", "info", "standings")
async def ask(far: TaskQueue) -> Any:
    done, dead = far.handle("acme", "done"), far.handle("acme", "dead 0")
    infos = [await done.info(), await dead.info()]
    run = await far.enqueue(plain(1) >> plain(2), user_id="acme")
    await run.state()
    return await done.result(timeout=0), await done.state(), await dead.state(), [info.state for info in infos]


@calls(
    "explain",
    "tasks",
    "dead",
    "users",
    "user_names",
    "active",
    "holders",
    "running",
    "stats",
    "health",
    "usage",
    "waiting",
)
async def look(far: TaskQueue) -> Any:
    await far.explain("acme", "q0")
    await far.health()
    await far.active_users()
    return (
        [each.task_id for each in await far.tasks("acme")],
        [each.task_id for each in await far.dead_letters("acme")],
        [each.user_id for each in await far.users()],
        (await far.stats()).queued,
        len(await far.usage("acme")),
        len(await enqueued(far)),
    )


@calls("denied")
async def ask_what_is_permitted(far: TaskQueue) -> Any:
    await far.reader.check_roles("reader")


@calls("user_names", "holders", "running", "graph", "dead_kinds")
async def look_at_pages(far: TaskQueue) -> Any:
    return (
        [each.user_id for each in (await far.overview()).users],
        [each.user_id for each in (await far.find_users()).users],
        [each.user_id for each in (await far.find_users(prefix="a")).users],
        [each.user_id for each in (await far.find_users(order="dead")).users],
        (await far.user_view("acme")).dead.total,
        [each.schedule.schedule_id for each in (await TaskScheduler(far).schedule_page("acme")).schedules],
        (await far.running()).tasks,
        await far.graph("acme", "awaited"),
        [(group.key, group.count) for group in (await far.dead_groups()).groups],
    )


@calls("advance")
async def move_on(far: TaskQueue) -> Any:
    return await advance(far, 10)


@calls("check", "members", "totals")
async def check(far: TaskQueue) -> Any:
    return (await far.check()).findings


def delete(queue: TaskQueue, *names: str) -> None:
    with RespClient(queue.connector.url) as client:
        client.execute("DEL", *(f"{queue.reader.keys_of('acme').prefix}{name}" for name in names))


@calls("repair")
async def repair(far: TaskQueue) -> Any:
    await asyncio.to_thread(delete, far, "ready", "due")
    checked = await far.check(repair=True)
    return checked.sound, sorted((each.kind, each.key, each.mended) for each in checked.findings)


async def serve(far: TaskQueue, made: list[Any], **options: Any) -> Any:
    handles = [await far.enqueue(each, user_id="zoe") for each in made]
    async with Worker(far, scheduler=False, **options):
        told = [await handle.result(timeout=20) for handle in handles]
        await far.handle("acme", "q2").result(timeout=20)
        await eventually(lambda: nobody_runs(far))
    return told, sorted(starts.values())


async def nobody_runs(queue: TaskQueue) -> bool:
    return (await queue.stats()).started == 0


@calls("claim", "turn", "settle", "leave")
async def work(far: TaskQueue) -> Any:
    made = [plain(n) for n in range(40)] + [fail_at_first().options(on_end=plain()) for _ in range(3)]
    return await serve(far, made, concurrency=40)


@calls("records")
async def work_on_what_another_gives(far: TaskQueue) -> Any:
    return await serve(far, [plain(plain(5).output)])


@calls("renew")
async def work_long(far: TaskQueue) -> Any:
    return await serve(far, [nap()])


@calls("sign")
async def give_a_sign(far: TaskQueue) -> Any:
    async with by_hand(far, patience=10) as store:
        await store.call(arguments.Renew("ghost", 60_000, {"concurrency": 1}, []))
        return await store.call(arguments.Sign("ghost", 60_000, {"memory": 1}))


@calls("progress")
async def work_and_tell(far: TaskQueue) -> Any:
    return await serve(far, [report()])


@calls("append", "chunks")
async def work_and_yield(far: TaskQueue) -> Any:
    handle = await far.enqueue(letters(), user_id="zoe")
    async with Worker(far, scheduler=False, concurrency=1):
        told = [chunk async for chunk in handle.stream()]
        await far.handle("acme", "q2").result(timeout=20)
        await eventually(lambda: nobody_runs(far))
    return told, sorted(starts.values())


@asynccontextmanager
async def by_hand(far: TaskQueue, **options: Any) -> AsyncIterator[Store]:
    """Where what waits is claimed from: of a queue with partitions, the one in which its user lives."""
    store = far.store(**options)
    try:
        yield await store.home_of("acme")
    finally:
        await store.close()


@calls("accuse")
async def accuse_what_blocks(far: TaskQueue) -> Any:
    async with by_hand(far) as store:
        [taken] = (await store.claim("ghost", 1, settings=SHORT)).deliveries
        place = taken.lane.decode(), taken.user.decode(), taken.id, taken.stream_id.decode()
        accused = arguments.Accuse("ghost", *place, taken.attempt)
        try:
            return await store.call(accused)
        except QueueUnavailable:  # a worker that ends tries it again
            return await store.call(accused)


@calls("heads", "hand_on")
async def look_and_hand_on(far: TaskQueue) -> Any:
    async with by_hand(far, patience=10) as store:
        heads = await store.heads()
        await store.claim("ghost", 2, settings=SHORT)
        await store.hand_on("ghost", [()])
        return heads.ready


@calls("exchange", "lend", "accept")
async def move_places(far: TaskQueue) -> Any:
    """Of a queue without partitions there are none to be moved: tests/partitions has more."""
    store = far.store(patience=10)
    try:
        found = await store.exchange(10)
        ask = arguments.Ask(0, ":key", 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0)
        told = arguments.Told(":key", 1, 1, 0, 0, 1, -1, 0, 0, 0, 0, 0, 0, 0)
        return found.asks, found.tells, await store.lend(0, found.at_us, [ask]), await store.accept([told])
    finally:
        await store.close()


@calls("forfeit")
async def give_up_places(far: TaskQueue) -> Any:
    store = far.store(patience=10)
    try:
        return await store.call(arguments.Forfeit(1, [":key"], 0))
    finally:
        await store.close()


@calls("rulebook", "follow")
async def bring_rules(far: TaskQueue) -> Any:
    store = far.store(patience=10)
    try:
        await far.set_limit("brought", max_running=3)
        book = await store.rulebook()
        newer = book._replace(follow=msgspec.structs.replace(book.follow, revision=1))
        await store.follow(newer)
        return newer, await store.rulebook()
    finally:
        await store.close()


@calls("demand")
async def ask_for_slots(far: TaskQueue) -> Any:
    return (await far.demand()).slots_needed


@calls("receive")
async def work_on_suspects(far: TaskQueue) -> Any:
    async with by_hand(far) as store:
        taken = (await store.claim("ghost", 2, settings=SHORT)).deliveries
    await asyncio.sleep(1.1 * LEASE)  # who fell silent is looked at then
    return len(taken), await serve(far, [plain(n) for n in range(2)])


# The proof


async def prepare(queue: TaskQueue) -> None:
    """Something of each kind to call for."""
    await queue.enqueue(plain(7), user_id="acme", task_id="done")
    for n in range(2):
        await queue.enqueue(fail(), user_id="acme", task_id=f"dead {n}")
    await Worker(queue, scheduler=False).run_until_idle()
    await TaskScheduler(queue).add_schedule(task=plain(), user_id="acme", every=LONG, schedule_id="hourly")
    await queue.set_policy("zoe", weight=2)
    await queue.xcom("acme", "space").push("old", 1)
    for n in range(3):
        await queue.enqueue(plain(n), user_id="acme", task_id=f"q{n}")
    await queue.enqueue(plain(), user_id="acme", task_id="later", delay=3600)
    await queue.enqueue(plain(), user_id="acme", task_id="awaited", delay=3600)
    await queue.enqueue(plain().options(depends_on=["awaited"]), user_id="acme", task_id="deferred")


async def made(queue: TaskQueue, server: Server) -> Any:
    stats = await queue.stats()
    totals = [stats.queued, stats.started, stats.scheduled, stats.deferred, stats.finished, stats.failed]
    rows = (key_of(own_keys(queue.name, key)) for key in server.keys(queue.name))
    forms = Counter(row.row.form for row in rows if row is not None)
    return [*totals, stats.canceled, stats.retried, {form: n for form, n in forms.items() if form not in BRIEF}]


class Play:
    """A call on a new queue each time, through the proxy."""

    def __init__(self, server: Server, proxy: CuttingProxy, name: str, script: str) -> None:
        self._server = server
        self._proxy = proxy
        self._name = name
        self._script = script
        self._times = 0

    async def run(self, nth: int) -> tuple[Any, Any, Cut]:
        self._times += 1
        starts.clear()
        async with (
            TaskQueue(self._server.url, name=f"{self._name}/{self._times}", lease=LEASE) as queue,
            TaskQueue(self._proxy.url, name=queue.name) as far,
        ):
            await prepare(queue)
            starts.clear()
            cut = self._proxy.cut_reply(call_of(source_of(self._script)), nth)
            told = await CALLS[self._script](far)
            cut.done.set()  # what closes the queue is no part of it
            return told, await made(queue, self._server), cut


def source_of(script: str) -> Script:
    return next(each for each in scripts() if each.name == script)


def test_each_script_has_a_call() -> None:
    assert CALLS.keys() == {script.name for script in scripts()}


@pytest.mark.parametrize("script", sorted(CALLS))
async def test_a_reply_that_is_cut_changes_neither_what_a_caller_is_told_nor_what_is_done(
    server: Server, proxy: CuttingProxy, queue_name: str, script: str
) -> None:
    play = Play(server, proxy, queue_name, script)
    told, done, counted = await play.run(10**9)
    assert counted.seen, "it was not called"
    for k in range(1, counted.seen + 1):
        told_k, done_k, cut = await play.run(k)
        assert cut.seen
        if cut.seen < k:  # a worker calls as often as it has to
            continue
        assert (told_k, done_k) == (told, done), f"reply {k} of {counted.seen} was cut"
