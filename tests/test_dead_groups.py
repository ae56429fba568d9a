"""Dead letters by the kind of their error: counted as they come and go, and acted on in steps, one after another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from fairque import Attempt, DeadGroups, DeadStep, FailureKind, InvalidInput, Sign, TaskQueue, TaskState, Worker, task
from fairque.embedded.server import EmbeddedServer
from fairque.redis.delivery import Delivery, Outcome
from fairque.redis.keys import encode_user
from fairque.tasks.message import Record, encode_record
from fairque.tasks.registry import unregister
from tests.support.commands import commands_of
from tests.support.eventually import eventually
from tests.support.resp import RespClient
from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()


async def _nothing() -> None: ...


idle = task(name="dead-groups.idle")(_nothing)


@pytest.fixture
async def own_queue(own_server: Callable[..., EmbeddedServer], queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(own_server().url, name=queue_name) as queue:
        yield queue


def failed(of: Delivery, type_name: str, kind: str = "error") -> Outcome:
    record = Record(
        name="dead-groups.idle",
        attempt=1,
        queued_ms=1,
        started_ms=2,
        run_ms=3.0,
        worker="w",
        value=msgspec.Raw(b"\xc0"),
        kept=True,
        kind=FailureKind(kind),
        type_name=type_name,
        message="on purpose",
    )
    error = msgspec.msgpack.encode(Attempt(1, 1.0, FailureKind(kind), type_name, "on purpose", "", "w"))
    return Outcome(of, "failed", record=encode_record(of.body, TaskState.FAILED, record), error=error)


async def fail(queue: TaskQueue, user_id: str, *type_names: str, kind: str = "error") -> list[str]:
    """Ids of the letters."""
    store = queue.store()
    ids = []
    for at in range(0, len(type_names), 100):
        some = type_names[at : at + 100]
        await queue.enqueue_many([idle()] * len(some), user_id=user_id)
        taken = (await store.claim("w", len(some), groups=[[user_id]])).deliveries
        answers = await store.settle("w", [failed(of, name, kind) for of, name in zip(taken, some, strict=True)])
        assert all(answer is True for answer in answers)
        ids += [of.id for of in taken]
    await store.close()
    return ids


def counts(groups: DeadGroups) -> dict[str, int]:
    return {group.key: group.count for group in groups.groups}


async def all_steps(act: Callable[..., Any], group: str, after: str | None = None, **options: Any) -> list[DeadStep]:
    steps = [await act(group, after=after, **options)]
    while steps[-1].after is not None:
        steps.append(await act(group, after=steps[-1].after, **options))
    return steps


async def test_letters_are_counted_by_the_kind_of_their_error_as_they_come_and_go(queue: TaskQueue) -> None:
    ids = await fail(queue, "acme", *["ValueError"] * 3, "KeyError")
    await fail(queue, "zoe", "ValueError", kind="timeout")
    assert counts(await queue.dead_groups()) == {"error ValueError": 3, "error KeyError": 1, "timeout ValueError": 1}
    assert counts(await queue.dead_groups("acme")) == {"error ValueError": 3, "error KeyError": 1}
    [largest, *_] = (await queue.dead_groups("acme")).groups
    assert (largest.kind, largest.type_name) == (FailureKind.ERROR, "ValueError")
    assert 0 < largest.oldest_at <= largest.latest_at
    await queue.requeue(queue.handle("acme", ids[0]))
    await queue.discard(queue.handle("acme", ids[3]))
    assert counts(await queue.dead_groups("acme")) == {"error ValueError": 2}
    await queue.enqueue(idle(), user_id="acme", task_id=ids[1])
    assert counts(await queue.dead_groups("acme")) == {"error ValueError": 1}, "the id was used again"
    await queue.purge("acme")
    assert counts(await queue.dead_groups()) == {"timeout ValueError": 1}
    assert not (await queue.dead_groups("acme")).total


async def test_one_users_flood_of_kinds_pushes_out_no_other(queue: TaskQueue) -> None:
    await fail(queue, "quiet", "ValueError")
    await fail(queue, "attacker", *(f"Error{n}" for n in range(300)))
    await fail(queue, "later", "KeyError")
    of_attacker = await queue.dead_groups("attacker")
    assert (len(of_attacker.groups), of_attacker.others, of_attacker.total) == (20, 280, 300)
    of_all = await queue.dead_groups()
    assert counts(of_all).items() >= {"error ValueError": 1, "error KeyError": 1}.items()
    assert (len(of_all.groups), of_all.others, of_all.total) == (22, 280, 302)
    assert counts(await queue.dead_groups("quiet")) == {"error ValueError": 1}


async def test_a_kind_makes_room_when_its_letters_are_gone(queue: TaskQueue) -> None:
    ids = await fail(queue, "acme", *(f"Error{n}" for n in range(21)))
    assert (await queue.dead_groups("acme")).others == 1
    await queue.discard(queue.handle("acme", ids[0]))
    await fail(queue, "acme", "Later")
    assert "error Later" in counts(await queue.dead_groups("acme"))


async def test_a_class_with_a_name_of_any_length_is_one_kind(queue: TaskQueue) -> None:
    await fail(queue, "acme", "ä" * 10_000, "a: b *", "")
    found = await queue.dead_groups("acme")
    assert sum(counts(found).values()) == 3
    for group in found.groups:
        assert len(group.key.encode()) <= 200
        assert len(await queue.dead_letters("acme", group=group)) == 1
        [step] = await all_steps(queue.discard_group, group.key, user_id="acme")
        assert step.done == 1


@pytest.mark.parametrize("of_user", [True, False])
async def test_a_group_is_requeued_in_steps_and_nothing_twice(queue: TaskQueue, of_user: bool) -> None:
    for user_id in ("acme", "zoe"):
        await fail(queue, user_id, *["ValueError"] * 25, "KeyError")
    options = {"user_id": "acme"} if of_user else {}
    first = await queue.requeue_group("error ValueError", limit=10, **options)
    assert (first.done, first.left) == (10, 15 if of_user else 40)
    store = queue.store()
    taken = (await store.claim("w", 10)).deliveries
    assert all(await store.settle("w", [failed(of, "ValueError") for of in taken]))
    await store.close()
    rest = await all_steps(queue.requeue_group, "error ValueError", limit=10, after=first.after, **options)
    assert 10 + sum(step.done for step in rest) == (25 if of_user else 50), "what failed again is left alone"
    assert (
        counts(await queue.dead_groups("acme")) == {"error ValueError": len(taken), "error KeyError": 1} or not of_user
    )


async def test_those_whose_users_backlog_is_full_stay_and_the_others_go_on(queue: TaskQueue) -> None:
    for user_id in ("full", "other"):
        await fail(queue, user_id, *["ValueError"] * 5)
    await queue.set_policy("full", max_queued=0)
    steps = await all_steps(queue.requeue_group, "error ValueError", limit=4)
    assert (sum(step.done for step in steps), sum(step.kept for step in steps)) == (5, 5)
    assert counts(await queue.dead_groups()) == {"error ValueError": 5}


async def test_letters_that_expire_are_not_counted(own_queue: TaskQueue) -> None:
    await own_queue.change_settings(dead_letter_ttl=1)
    async with TaskQueue(own_queue.connector.url, name=own_queue.name) as queue:
        await fail(queue, "acme", "ValueError")

        async def is_gone() -> bool:
            return not (await queue.dead_groups()).groups

        await eventually(is_gone)
        await fail(queue, "acme", "ValueError")
        assert counts(await queue.dead_groups()) in ({"error ValueError": 1}, {})


async def test_a_page_of_letters_leaves_large_messages_in_redis(own_queue: TaskQueue) -> None:
    async def large(text: str) -> None: ...

    made = task(name="dead-groups.large")(large)
    store = own_queue.store()
    await own_queue.enqueue_many([made("x" * 200_000)] * 20, user_id="acme")
    taken = (await store.claim("w", 20)).deliveries
    while len(taken) < 20:
        taken += (await store.claim("w", 20 - len(taken))).deliveries
    assert all(await store.settle("w", [failed(of, "ValueError") for of in taken]))
    await store.close()
    with RespClient(own_queue.connector.url) as client:
        before = int(client.execute("INFO", "stats").split(b"total_net_output_bytes:")[1].split()[0])
        assert {letter.name for letter in await own_queue.dead_letters("acme")} == {"dead-groups.large"}
        after = int(client.execute("INFO", "stats").split(b"total_net_output_bytes:")[1].split()[0])
    assert after - before < 200_000
    unregister(made.name)


@pytest.mark.damages
async def test_damaged_lists_keep_no_letter_from_coming_or_going(queue: TaskQueue) -> None:
    prefix, user = queue.keys.prefix, encode_user("acme")
    names = [f"dead-kinds:{user}", "dead-kinds:*", f"dead-of:{user}:error ValueError", "dead-of:*:error ValueError"]
    with RespClient(queue.connector.url) as client:
        for name in names:
            client.execute("SET", prefix + name, "not a set")
        ids = await fail(queue, "acme", "ValueError", "KeyError")
        await queue.requeue(queue.handle("acme", ids[0]))
        await queue.discard(queue.handle("acme", ids[1]))
        [dead] = await fail(queue, "acme", "ValueError")
        assert (await queue.check(repair=True)).sound
        assert [letter.task_id for letter in await queue.dead_letters("acme")] == [dead]


async def test_a_repair_lists_a_letter_under_its_kind_again(queue: TaskQueue) -> None:
    await fail(queue, "acme", "ValueError")
    with RespClient(queue.connector.url) as client:
        client.execute(
            "DEL", f"{queue.keys.prefix}dead-of:acme:error ValueError", f"{queue.keys.prefix}dead-kinds:acme"
        )
        client.execute("ZADD", f"{queue.keys.prefix}dead-of:*:error ValueError", 9e14, "acme:nobody")
    assert {finding.kind for finding in (await queue.check()).findings} == {"half-a-letter"}
    assert (await queue.check(repair=True)).sound
    assert counts(await queue.dead_groups("acme")) == counts(await queue.dead_groups()) == {"error ValueError": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"group": "no kind"},
        {"group": "error \udc80"},
        {"group": 7},
        {"limit": 0},
        {"after": "x"},
        {"after": "1:2:"},
        {"after": "1:2:\udc80"},
    ],
)
async def test_what_no_step_can_be_is_refused(queue: TaskQueue, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        await queue.requeue_group(**({"group": "error ValueError"} | wrong))


async def test_the_groups_cost_the_same_however_many_letters_there_are(own_queue: TaskQueue) -> None:
    await fail(own_queue, "acme", *["ValueError"] * 20)
    few = await commands_of(own_queue, own_queue.dead_groups)
    await fail(own_queue, "acme", *["ValueError"] * 1000)
    assert await commands_of(own_queue, own_queue.dead_groups) == few


async def test_an_id_that_is_used_again_costs_a_user_no_more_for_the_kinds_that_it_has(own_queue: TaskQueue) -> None:
    async def again() -> None:
        await own_queue.enqueue(idle(), user_id="acme", task_id="again", delay=3600)
        await own_queue.handle("acme", "again").cancel()

    few = await commands_of(own_queue, again)
    await fail(own_queue, "acme", *(f"Error{n}" for n in range(20)))
    later = await commands_of(own_queue, again)
    assert later["zrem"] == few["zrem"]
    assert sum(later.values()) < sum(few.values()) + 10


async def test_kinds_are_told_also_where_contents_are_sealed(server: Server, queue_name: str) -> None:
    async def broken() -> None:
        raise LookupError("of a customer")

    made = task(name="dead-groups.broken")(broken)
    async with TaskQueue(server.url, name=queue_name, codec=Sign({"1": bytes(32)})) as queue:
        await queue.enqueue(made(), user_id="acme")
        await Worker(queue, scheduler=False).run_until_idle()
        assert counts(await queue.dead_groups("acme")) == {"error LookupError": 1}
        [letter] = await queue.dead_letters("acme", group="error LookupError")
        assert letter.message == "of a customer"
    unregister(made.name)
