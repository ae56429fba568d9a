"""`queue.check()`: what is lost or damaged is found, and mended without losing a task."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from fairque import FindingKind, QueueCheck, TaskQueue, Worker, task
from fairque.cli.app import run
from fairque.doctor.rows import ROWS
from fairque.embedded.server import EmbeddedServer
from fairque.errors import SettingsMismatch, StoreError
from fairque.redis.keys import encode_user
from fairque.tasks.registry import unregister
from tests.support.core import outcome
from tests.support.damage import HARMLESS, Damage
from tests.support.eventually import eventually
from tests.support.everything import OTHER, USER, everything
from tests.support.key_table import rules_in
from tests.support.process import ROOT
from tests.support.resp import RespClient
from tests.support.servers import Server

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
GUIDE = (ROOT / "docs" / "guides" / "doctor.md").read_text()
ODD = encode_user(USER)


def kinds(check: QueueCheck) -> set[str]:
    return {finding.kind.value for finding in check.findings}


# What is written of it


def test_there_is_a_row_for_each_of_the_table() -> None:
    of_table = [(rule.form, rule.kind, rule.expires) for rule in rules_in(ARCHITECTURE)]
    words = {"no": {False}, "yes": {True}, "sometimes": {False, True}}
    assert sorted((row.form, row.kind, sorted(words[row.expires])) for row in ROWS) == sorted(
        (form, kind, sorted(expires)) for form, kind, expires in of_table
    )


def test_the_guide_explains_each_finding() -> None:
    table = GUIDE.partition("| finding |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE)
    assert sorted(name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)) == sorted(FindingKind)


# Sound queues


async def test_a_queue_that_nobody_used_is_sound_and_stays_empty(queue: TaskQueue, server: Server) -> None:
    check = await queue.check()
    assert check.sound
    assert check.totals_compared
    assert (check.keys, check.users, check.findings) == (0, 0, ())
    assert server.keys(queue.name) == []


@pytest.mark.leaves_keys
async def test_a_queue_in_which_everything_is_used_is_sound(server: Server, queue_name: str) -> None:
    async with everything(server.url, queue_name) as queue:
        check = await queue.check()
        assert check.findings == ()
        assert check.totals_compared
        assert check.users == 8


@pytest.mark.leaves_keys("workers", "waiting")
async def test_a_queue_that_never_stands_still_is_sound(queue: TaskQueue) -> None:
    @task(name="busy")
    async def busy() -> None: ...

    async def feed() -> None:
        while True:
            await queue.enqueue_many([busy()] * 5, user_id="acme")
            handle = await queue.enqueue(busy(), user_id="other", delay=0.01)
            await queue.enqueue(busy(), user_id="third", depends_on=[await queue.enqueue(busy(), user_id="third")])
            await handle.cancel()

    feeding = asyncio.create_task(feed())
    try:
        async with Worker(queue, scheduler=False), Worker(queue, scheduler=False):
            for _ in range(10):
                assert (await queue.check()).findings == ()
    finally:
        feeding.cancel()
        await asyncio.wait([feeding])
        unregister("busy")
        await queue.purge("acme")
        await queue.purge("other")
        await queue.purge("third")


# Damage. All of it: tests/storm/test_keys.py


@pytest.fixture
async def whole(own_server: Callable[..., EmbeddedServer], queue_name: str) -> AsyncIterator[SimpleNamespace]:
    """A queue in which everything is used, alone on its server, and the damage that can be done to it."""
    async with everything(own_server().url, queue_name) as queue:
        with Damage(queue.connector.url, queue.keys.prefix) as damage:
            yield SimpleNamespace(queue=queue, damage=damage)


LOST = {
    "state": "lost-state",
    "settings": "lost-settings",
    "users": "unlisted-user",
    "ready": "not-ready",
    "ready:<g>": "not-ready",
    "normal:<u>": "no-place",
    "scheduled:<u>": "no-place",
    "deferred:<u>": "no-place",
    "due": "not-due",
    "expiring": "not-due",
    "unique:<u>:<a>": "lost-key",
    "expiring:<u>": "not-due",
    "normal-stream:<u>": "no-place",
    "leases": "no-lease",
    "body:<u>:<id>": "lost-message",
    "needs:<u>:<id>": "waits-for-nothing",
    "feeds:<u>:<id>": "half-a-link",
    "dead": "half-a-letter",
    "dead-of:<u>:<any>": "half-a-letter",
    "dead-of:*:<any>": "half-a-letter",
    "collected:<u>:<id>": "lost-group",
    "parked": "not-parked",
    "policy:<u>": "lost-policy",
    "policy-users": "unlisted-name",
    "limit:<r>": "lost-limit",
    "running:<k>": "uncounted-run",
    "held:<u>": "held-for-nobody",
    "held-users:<k>": "not-let-in",
    "offers:<u>": "no-offer",
    "let-in:<k>": "no-offer",
    "schedules": "unlisted-schedule",
    "schedules:<u>": "unlisted-schedule",
    "schedule:<s>": "lost-schedule",
    "xcom-expiry:<u>:<ns>": "half-a-value",
}


BREAK = (Damage.delete, Damage.retype)


async def test_a_lost_key_is_found_and_mended(whole: SimpleNamespace) -> None:
    queue, damage = whole.queue, whole.damage
    messages = damage.messages()
    for form, kind in LOST.items():
        damage.undo()
        lost = damage.forms[form][0]
        damage.delete(lost)
        assert kind in kinds(await queue.check()), form
        assert (await queue.check(repair=True)).sound, form
        assert (await queue.check()).findings == (), form
        called_back = {key for key in damage.messages() if key.endswith(".on_end")}  # of one whose message is gone
        assert damage.messages() - called_back == messages - {lost}, form


async def test_a_key_of_a_wrong_type_is_set_aside_and_what_it_held_is_rebuilt(whole: SimpleNamespace) -> None:
    queue, damage = whole.queue, whole.damage
    messages = damage.messages()
    for form in LOST:
        damage.undo()
        broken = damage.forms[form][0]
        damage.retype(broken)
        found = await queue.check()
        assert "wrong-type" in kinds(found), form
        assert broken in {finding.key for finding in found.findings}
        assert (await queue.check(repair=True)).sound, form
        assert (await queue.check()).findings == (), form
        assert damage.messages() == messages, form


async def test_the_damage_of_one_user_leaves_the_others_looked_at(whole: SimpleNamespace) -> None:
    whole.damage.retype(f"normal:{ODD}")
    whole.damage.delete(f"normal:{OTHER}")
    found = (await whole.queue.check()).findings
    assert {finding.user_id for finding in found if finding.kind == FindingKind.NO_PLACE} == {OTHER}


async def test_health_names_those_whose_keys_are_damaged(whole: SimpleNamespace) -> None:
    assert (await whole.queue.health()).damaged_users == ()
    whole.damage.retype(f"normal:{ODD}")
    for lane in ("critical", "normal"):
        whole.damage.delete(f"{lane}:{OTHER}")
    assert set((await whole.queue.health()).damaged_users) == {USER, OTHER}


# What a repair does


async def nothing() -> None: ...


async def put(queue: TaskQueue, name: str, **options: Any) -> Any:
    async def body() -> str:
        return name

    return await queue.enqueue(task(name=name)(body)(), user_id="acme", **options)


@pytest.fixture
async def waiting(server: Server, queue_name: str) -> AsyncIterator[SimpleNamespace]:
    """Two tasks of which the second waits for the first, and a client that breaks what is said of them."""
    async with TaskQueue(server.url, name=queue_name) as queue:
        first = await put(queue, "first")
        second = await put(queue, "second", depends_on=[first])
        with RespClient(server.url) as client:
            prefix = queue.keys.prefix
            yield SimpleNamespace(
                queue=queue,
                handles=[first, second],
                delete=lambda *names: client.execute("DEL", *(prefix + name for name in names)),
                execute=lambda verb, name, *rest: client.execute(verb, prefix + name, *rest),
            )
        for name in ("first", "second"):
            unregister(name)


async def both_end(waiting: SimpleNamespace) -> None:
    await Worker(waiting.queue, scheduler=False).run_until_idle()
    assert [await handle.result(timeout=10) for handle in waiting.handles] == ["first", "second"]
    assert (await waiting.queue.check()).findings == ()


@pytest.mark.parametrize(
    "lost",
    [
        ["ready"],
        ["state"],
        ["state", "ready", "users", "settings"],
        ["normal:acme"],
        ["normal:acme", "deferred:acme", "ready", "users"],
    ],
    ids="+".join,
)
async def test_what_waits_runs_after_a_repair(waiting: SimpleNamespace, lost: list[str]) -> None:
    waiting.delete(*lost)
    assert not (await waiting.queue.check()).sound
    assert (await waiting.queue.check(repair=True)).sound
    await both_end(waiting)


async def test_a_claim_that_finds_nobody_as_ready_is_lost_says_what_to_do(waiting: SimpleNamespace) -> None:
    waiting.delete("ready")
    store = waiting.queue.store()
    for _ in range(2):
        with pytest.raises(StoreError, match=r'"ready" of this queue is lost.*fairque doctor --repair'):
            await store.claim("w", 1)
    await store.leave("w", [()])
    await store.close()
    await waiting.queue.check(repair=True)
    await both_end(waiting)


async def test_who_is_held_back_is_no_sign_that_ready_is_lost(waiting: SimpleNamespace) -> None:
    await waiting.queue.set_policy("acme", paused=True)
    store = waiting.queue.store()
    assert (await store.claim("w", 1)).deliveries == []
    await waiting.queue.set_policy("acme", paused=None)
    await store.leave("w", [()])
    await store.close()
    await both_end(waiting)


async def test_a_queue_whose_state_is_lost_stops_and_says_what_to_do(waiting: SimpleNamespace) -> None:
    waiting.delete("state")
    waiting.execute("HSET", "state", "slots", 10)  # as a worker that lives tells
    store = waiting.queue.store()
    other = task(name="other")(nothing)
    for call in (
        lambda: waiting.queue.enqueue(other(), user_id="acme"),
        lambda: store.claim("w", 1),
        lambda: store.settle("w", []),
        waiting.handles[0].cancel,
        lambda: waiting.queue.purge("acme"),
        lambda: waiting.queue.set_policy("acme", weight=2),
    ):
        with pytest.raises(StoreError, match="fairque doctor --repair"):
            await call()
    await store.close()
    unregister("other")
    await waiting.queue.check(repair=True)
    await both_end(waiting)


async def test_links_that_are_lost_on_both_sides_come_from_the_message(waiting: SimpleNamespace) -> None:
    first, second = waiting.handles
    waiting.delete(f"needs:acme:{second.task_id}", f"feeds:acme:{first.task_id}")
    repaired = await waiting.queue.check(repair=True)
    assert "waits-for-nothing" in kinds(repaired)
    assert repaired.sound
    await both_end(waiting)


async def test_whoever_waits_for_a_lost_task_is_told(waiting: SimpleNamespace) -> None:
    first, second = waiting.handles
    waiting.delete(f"body:acme:{first.task_id}")
    await waiting.queue.check(repair=True)
    assert (await first.info()).state == "canceled"
    assert (await first.info()).message == "its message was lost"
    await second.cancel()


@pytest.mark.leaves_keys("workers")
async def test_a_task_that_ran_when_its_stream_was_lost_stays_with_its_worker(waiting: SimpleNamespace) -> None:
    store = waiting.queue.store()
    [delivery] = (await store.claim("w", 1)).deliveries
    waiting.delete("normal-stream:acme")
    assert (await waiting.queue.check(repair=True)).sound
    assert await store.settle("w", [outcome(delivery, "finished")]) == [True]
    await store.close()
    await Worker(waiting.queue, scheduler=False).run_until_idle()
    assert await waiting.handles[1].result(timeout=10) == "second"


async def test_totals_are_counted_anew(waiting: SimpleNamespace) -> None:
    waiting.execute("HINCRBY", "state", "started", -1)
    waiting.execute("HSET", "state", "normal", 77)
    found = await waiting.queue.check(repair=True)
    assert {finding.detail for finding in found.findings} == {
        "started says -1, there are 0",
        "normal says 77, there are 1",
    }
    assert found.sound
    await both_end(waiting)


async def test_an_unknown_key_is_told_and_stays(waiting: SimpleNamespace) -> None:
    waiting.execute("SET", "mine", "x")
    repaired = await waiting.queue.check(repair=True)
    assert [(finding.kind, finding.key, finding.mended) for finding in repaired.findings] == [
        ("unknown-key", "mine", False)
    ]
    assert not repaired.sound
    waiting.delete("mine")
    await both_end(waiting)


async def test_a_queue_of_another_layout_is_left_alone(waiting: SimpleNamespace) -> None:
    waiting.execute("HSET", "settings", "layout", 99)
    with pytest.raises(SettingsMismatch):
        await waiting.queue.check(repair=True)
    waiting.execute("HSET", "settings", "layout", 1)
    await both_end(waiting)


async def test_two_repairs_at_once_do_what_one_does(waiting: SimpleNamespace) -> None:
    waiting.delete("ready", "normal:acme")
    waiting.execute("HSET", "state", "normal", 5)
    await asyncio.gather(*(waiting.queue.check(repair=True) for _ in range(3)))
    await eventually(lambda: is_sound(waiting.queue))
    await both_end(waiting)


async def is_sound(queue: TaskQueue) -> bool:
    return (await queue.check(repair=True)).sound


# At a terminal


async def doctor(queue: TaskQueue, *options: str) -> int:
    arguments = ["doctor", "--url", queue.connector.url, "--queue", queue.name, *options]
    return await asyncio.to_thread(run, arguments)


async def test_the_exit_code_tells_whether_something_is_wrong(
    waiting: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await doctor(waiting.queue) == 0
    waiting.execute("SET", "leases", "x")
    waiting.delete("ready")
    assert await doctor(waiting.queue) == 3
    assert "wrong-type" in capsys.readouterr().out
    assert await doctor(waiting.queue, "--repair", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {finding["kind"] for finding in told["findings"]} == {"wrong-type", "not-ready"}
    assert await doctor(waiting.queue) == 0
    await both_end(waiting)


async def test_damaged_settings_do_not_keep_the_doctor_out(waiting: SimpleNamespace) -> None:
    waiting.delete("settings")
    waiting.execute("SET", "settings", "x")
    assert await doctor(waiting.queue) == 3
    assert await doctor(waiting.queue, "--repair") == 0
    await both_end(waiting)


def test_what_is_harmless_is_named_by_the_guide() -> None:
    assert {row.form for row in ROWS} >= HARMLESS


@pytest.mark.parametrize("seed", range(3))
async def test_two_things_that_are_damaged_at_once_are_both_mended(whole: SimpleNamespace, seed: int) -> None:
    """In two repairs at most: what is gone may hide what is wrong behind it."""
    queue, damage = whole.queue, whole.damage
    draw = Random(seed)
    messages = damage.messages()
    for _ in range(8):
        damage.undo()
        pair = [(draw.choice(damage.forms[form]), draw.choice(BREAK)) for form in draw.sample(sorted(LOST), 2)]
        for name, how in pair:
            how(damage, name)
        assert not (await queue.check()).sound, pair
        repairs = [await queue.check(repair=True) for _ in range(2)]
        assert repairs[-1].sound, (pair, repairs[-1].unmended)
        assert (await queue.check()).findings == (), pair
        gone = {name for name, _ in pair}
        assert damage.messages() >= messages - gone, pair
