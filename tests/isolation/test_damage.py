"""What is lost or broken of one user stays its own: every key of hers, in each call that meets it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import pytest

from fairque import Finding, FindingKind, QueueFull
from fairque.doctor.doctor import examine
from fairque.embedded.server import EmbeddedServer
from fairque.errors import StoreError
from fairque.redis.delivery import Delivery, Needs
from fairque.redis.scripts import load
from fairque.tasks.message import new_nonce
from tests.support.core import Core, new_task, outcome
from tests.support.damage import Damage
from tests.support.eventually import eventually
from tests.support.tenants import govern, limit, tasks_of

HURT, QUIET = "hurt", "quiet"
NAMES = ("one", "two", "late", "urgent", "waits")


class Scene(NamedTuple):
    """Two users with the same tasks in every place, and what can be broken of the first."""

    kind: str
    core: Core
    damage: Damage
    held: dict[str, list[Delivery]]

    def keys_of_hers(self) -> list[str]:
        """Of the first user, without their prefix."""
        names = (name for form in self.damage.forms.values() for name in form)
        return [name for name in names if name.partition(":")[2].split(":")[0] == HURT]


async def fill(core: Core, user_id: str) -> None:
    await core.enqueue(user_id, "dead")
    await link(core, user_id, "behind", "dead", on_failure="wait")
    await core.settle(await core.take(1), "failed")
    await core.enqueue(user_id, "runs", "runs too")
    for id_ in ("one", "two"):
        await core.enqueue(user_id, id_)
    await core.enqueue(user_id, "urgent", priority=6)
    await core.enqueue(user_id, "late", delay_ms=600_000)
    await link(core, user_id, "waits", "one")


async def link(core: Core, user_id: str, task_id: str, dependency: str, *, on_failure: str = "cancel") -> None:
    needs = msgspec.msgpack.encode(Needs(on_failure, False, [dependency]))
    await core.enqueue_all([new_task(user_id, task_id, 3, 1.0, 0, new_nonce())._replace(needs=needs)])


@pytest.fixture(params=["plain", "governed"])
async def scene(
    request: pytest.FixtureRequest, own_server: Callable[..., EmbeddedServer], queue_name: str
) -> AsyncIterator[Scene]:
    async with Core(own_server().url, queue_name) as core:
        for part in core.store.parts:
            await part.agree()  # each knows the settings of the queue, also once all is as it was
        for user_id in (HURT, QUIET):
            if request.param == "governed":
                await govern(core, user_id, max_running=10, min_running=1, max_queued=1000)
            await fill(core, user_id)
        if request.param == "governed":
            await limit(core, "api", 1)
        await core.enqueue_all([task for user_id in (HURT, QUIET) for task in tasks_of(user_id, ["held"], name="api")])
        held: dict[str, list[Delivery]] = {QUIET: [], HURT: []}
        for user_id in (HURT, QUIET):
            await core.settle(await core.take(1, groups=[[user_id]]), "retry")  # so that it has errors when it runs
            for of in await core.take(3, groups=[[user_id]], worker="w"):
                held[user_id].append(of)
        with Damage(core.backend.connector.url, core.keys.prefix) as damage:
            assert (await examine(core.store)).findings == ()
            yield Scene(request.param, core, damage, held)


# The calls. Each is about both users where it can be.

Call = Callable[[Scene], Awaitable[Any]]


async def enqueues(scene: Scene) -> Any:
    return await scene.core.enqueue_all(
        [task for user_id in (QUIET, HURT) for task in tasks_of(user_id, ["new 1", "new 2"])]
    )


async def schedules(scene: Scene) -> Any:
    return await scene.core.enqueue(HURT, "new", delay_ms=60_000)


async def enqueues_a_dependent(scene: Scene) -> Any:
    return await link(scene.core, HURT, "new", "two")


async def enqueues_over_a_dead_letter(scene: Scene) -> Any:
    return await scene.core.enqueue(HURT, "dead")


async def claims(scene: Scene) -> Any:
    return await scene.core.take(8, worker="w")


async def settles(scene: Scene, kind: str, delay_ms: int = 0) -> Any:
    deliveries = [of for both in zip(*scene.held.values(), strict=True) for of in both]
    outcomes = [outcome(of, kind, delay_ms) for of in deliveries]
    return await scene.core.store.settle("w", outcomes)


async def finishes(scene: Scene) -> Any:
    return await settles(scene, "finished")


async def fails(scene: Scene) -> Any:
    return await settles(scene, "failed")


async def retries(scene: Scene) -> Any:
    return await settles(scene, "retry")


async def retries_later(scene: Scene) -> Any:
    return await settles(scene, "retry", 60_000)


async def releases(scene: Scene) -> Any:
    return await settles(scene, "released")


async def ends_as_canceled(scene: Scene) -> Any:
    return await settles(scene, "canceled")


def cancels(task_id: str) -> Call:
    async def cancel(scene: Scene) -> Any:
        return await scene.core.store.cancel(HURT, task_id, "why")

    return cancel


async def requeues(scene: Scene) -> Any:
    return await scene.core.store.requeue(HURT, ["dead"])


async def discards(scene: Scene) -> Any:
    return await scene.core.store.discard(HURT, ["dead"])


async def purges(scene: Scene) -> Any:
    return await scene.core.store.purge_step(HURT, 3)


async def changes_a_policy(scene: Scene) -> Any:
    return await govern(scene.core, HURT, weight=2, max_running=5)


async def changes_a_limit(scene: Scene) -> Any:
    return await limit(scene.core, "api", 5)


async def renews(scene: Scene) -> Any:
    return scene.core.renew("w", [of for held in scene.held.values() for of in held], concurrency=10)


async def leaves(scene: Scene) -> Any:
    return await scene.core.store.leave("w", [[HURT], [QUIET]])


CALLS: dict[str, Call] = {
    "enqueues": enqueues,
    "schedules": schedules,
    "enqueues a dependent": enqueues_a_dependent,
    "enqueues over a dead letter": enqueues_over_a_dead_letter,
    "claims": claims,
    "finishes": finishes,
    "fails": fails,
    "retries": retries,
    "retries later": retries_later,
    "releases": releases,
    "ends as canceled": ends_as_canceled,
    "cancels what is queued": cancels("two"),
    "cancels what others wait for": cancels("one"),
    "cancels what is scheduled": cancels("late"),
    "cancels what waits": cancels("waits"),
    "requeues": requeues,
    "discards": discards,
    "purges": purges,
    "changes a policy": changes_a_policy,
    "changes a limit": changes_a_limit,
    "renews": renews,
    "leaves": leaves,
}


async def called(call: Call, scene: Scene) -> Any:
    """What it returns, or the error that says that something is broken."""
    try:
        return await call(scene)
    except (StoreError, QueueFull) as error:
        return error


async def contradictions(scene: Scene) -> set[str]:
    """Without times to live, which a key that was put back lacks."""
    found = (await examine(scene.core.store)).findings
    return {f"{each.kind} {each.key}: {each.detail}" for each in found if each.kind is not FindingKind.NO_EXPIRY}


async def left_behind(scene: Scene, key: str, was_refused: bool) -> set[str]:
    """With the key as it was; or, where the call was through, as it is by now, as that may have replaced it, or without
    it: its task may have ended.
    """
    if not was_refused:
        if not await contradictions(scene):
            return set()
        scene.damage.delete(key)
        if not await contradictions(scene):
            return set()
    scene.damage.restore(key)
    return await contradictions(scene)


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_meets_a_key_of_a_wrong_type_does_nothing_by_halves(scene: Scene, name: str) -> None:
    """When the key is as it was, nothing contradicts anything: what is done is done as a whole, or not at all."""
    halves: dict[str, set[str]] = {}
    for key in scene.keys_of_hers():
        scene.damage.undo()
        scene.damage.retype(key)
        answer = await called(CALLS[name], scene)
        if found := await left_behind(scene, key, isinstance(answer, Exception)):
            halves[key] = found
    assert not halves


def errors_in(answer: Any) -> list[str]:
    found = answer if isinstance(answer, list) else [answer]
    return [str(each) for each in found if isinstance(each, StoreError)]


@pytest.mark.parametrize("name", CALLS)
async def test_what_is_told_of_a_key_of_a_wrong_type_names_it(scene: Scene, name: str) -> None:
    """The caller in the error, or who looks at the queue in what is noted of its user."""
    core, unnamed = scene.core, []
    for key in scene.keys_of_hers():
        scene.damage.undo()
        scene.damage.retype(key)
        noted = core.execute("HGET", ":damage", HURT) if is_left_alone(core) else None
        told = errors_in(await called(CALLS[name], scene))
        if is_left_alone(core) and (text := core.execute("HGET", ":damage", HURT)) != noted:
            told.append(text.decode())
        unnamed += [text for text in told if "WRONGTYPE" in text and f"{core.keys.prefix}{key}" not in text]
    assert not unnamed


async def test_where_eval_is_denied_the_error_is_told_as_it_is(damaged_core: Core) -> None:
    core = damaged_core
    core.execute("SET", ":normal:hurt", "no lane")
    core.execute("ACL", "SETUSER", "default", "-eval")
    try:
        with pytest.raises(StoreError, match="WRONGTYPE"):
            await core.enqueue(HURT, "one")
    finally:
        core.execute("ACL", "SETUSER", "default", "+eval")


# Others go on

WAYS: dict[str, Callable[[Damage, str], None]] = {"lost": Damage.delete, "of a wrong type": Damage.retype}


async def is_served(scene: Scene) -> bool:
    """The quiet user's tasks that wait are all delivered, within as many claims as there are tasks."""
    got = set()
    for _ in range(12):
        answer = await called(lambda scene: scene.core.take(1, worker="w"), scene)
        got |= {of.id for of in answer if of.user_id == QUIET} if isinstance(answer, list) else set()
    return {"two"} <= got or {of.id for of in scene.held[QUIET]} >= {"two"}


async def is_settled(scene: Scene) -> bool:
    """The quiet user's outcomes are taken, though they come in one batch with the other's."""
    answer = await called(finishes, scene)
    mine = [of for both in zip(*scene.held.values(), strict=True) for of in both]
    return isinstance(answer, list) and all(ok for ok, of in zip(answer, mine, strict=True) if of.user_id == QUIET)


async def is_renewed(scene: Scene) -> bool:
    lost = await called(renews, scene)
    return isinstance(lost, list) and not any(of.user_id == QUIET for of in lost)


async def is_enqueued(scene: Scene) -> bool:
    """In a call of its own."""
    answer = await called(lambda scene: scene.core.enqueue(QUIET, "new"), scene)
    return bool(answer == [True])


async def is_told_of_limits(scene: Scene) -> bool:
    return not isinstance(await called(changes_a_limit, scene), Exception)


ACTS: dict[str, Callable[[Scene], Awaitable[bool]]] = {
    "served": is_served,
    "settled": is_settled,
    "renewed": is_renewed,
    "enqueued": is_enqueued,
    "told of limits": is_told_of_limits,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("act", ACTS)
async def test_a_key_of_one_user_that_is_broken_keeps_nobody_else_from_being(scene: Scene, act: str, way: str) -> None:
    kept_from = set()
    for key in scene.keys_of_hers():
        scene.damage.undo()
        WAYS[way](scene.damage, key)
        if not await ACTS[act](scene):
            kept_from.add(key)
    assert not kept_from


# Permissions and groups


async def test_a_stream_without_its_group_costs_no_task_and_keeps_nobody_waiting(scene: Scene) -> None:
    core = scene.core
    before = scene.damage.messages()
    core.execute("XGROUP", "DESTROY", ":normal-stream:hurt", "workers")
    assert await is_served(scene)
    await called(finishes, scene)
    lost = {finding.key for finding in (await examine(core.store)).findings if finding.kind is FindingKind.NO_PLACE}
    assert not lost
    assert scene.damage.messages() <= before


CALLED = re.compile(r"call\('([A-Z]+)'")
HOT = ("enqueue", "enqueue_linked", "claim", "settle", "turn")


def commands() -> set[str]:
    """All that scripts of the hot paths call."""
    return {name.lower() for script in HOT for name in CALLED.findall(load(script).source.decode())}


def writes(core: Core) -> list[str]:
    """Of those, all that change something or tell somebody."""
    names = sorted(commands())
    infos = core.execute("COMMAND", "INFO", *names)
    return [name for name, info in zip(names, infos, strict=True) if {b"write", b"pubsub"} & set(info[2])]


KINDS = ("finished", "failed", "retry", "released", "canceled", "finished")


async def try_all(core: Core, held: list[Delivery]) -> int:
    """What producers and workers do. Returns how many of the outcomes were taken."""
    for task_id in ("new", "newer"):
        with suppress(StoreError):
            await core.enqueue(QUIET, task_id)
    with suppress(StoreError):
        await core.enqueue(HURT, "later", delay_ms=60_000)
    with suppress(StoreError):
        await link(core, HURT, "linked", "two")
    with suppress(StoreError):
        await core.take(2, worker="w")
    outcomes = [outcome(of, kind, 60_000) for of, kind in zip(held, KINDS, strict=True)]
    answers: Sequence[Any] = []
    for each in outcomes:
        with suppress(StoreError):
            answers = [*answers, *await core.store.settle("w", [each])]
    with suppress(StoreError):
        await core.store.turn("w", outcomes, 2)
    return answers.count(True)


async def test_a_permission_that_is_missing_costs_no_task(scene: Scene) -> None:
    """Nothing is popped before it can be kept; when the permission is there again, all go on."""
    core = scene.core
    path = core.backend.connector.url.removeprefix("unix://")
    held = [of for each in scene.held.values() for of in each]
    harm = {}
    for command in writes(core):
        scene.damage.undo()
        core.execute("ACL", "SETUSER", "limited", "reset", "on", ">secret", "~*", "&*", "+@all", f"-{command}")
        async with Core(f"unix://limited:secret@{path}", core.backend.name) as limited:
            await try_all(limited, held)
        lost = [each for each in await findings(core) if each.kind in LOSES]
        taken = await try_all(core, held)
        found = await findings(core)
        if lost or found or taken < len(held):
            harm[command] = (lost, taken, found)
    assert not harm


async def findings(core: Core) -> list[Finding]:
    """But for what claims clear away that look for silent deliveries: what is in a stream and over."""

    def is_over(of: Finding) -> bool:
        return of.kind in (FindingKind.LOST_MESSAGE, FindingKind.STALE_DELIVERY) and "-stream:" in of.key

    found = (await examine(core.store)).findings
    return [of for of in found if not is_over(of) and of.kind is not FindingKind.LEASE_WITHOUT_TASKS]


LOSES = {FindingKind.NO_PLACE, FindingKind.LOST_MESSAGE, FindingKind.LOST_STATE}


# Left alone, told of, and looked at again


def is_left_alone(core: Core) -> bool:
    return core.execute("ZSCORE", ":damaged", HURT) is not None


def look_now(core: Core) -> None:
    core.execute("ZADD", ":damaged", 1, HURT)


async def took(core: Core, want: int = 10) -> set[tuple[str, str]]:
    return {(of.user_id, of.id) for of in await core.take(want)}


@pytest.mark.parametrize("key", [":normal:hurt", ":normal-stream:hurt", ":task:hurt:one"])
async def test_who_has_a_broken_key_is_left_alone_until_it_is_whole(damaged_core: Core, key: str) -> None:
    core = damaged_core
    for user_id in (HURT, QUIET):
        await core.enqueue(user_id, "one", "two")
    kept = core.execute("DUMP", key) if core.execute("EXISTS", key) else None
    core.execute("DEL", key)
    core.execute("SET", key, "x")
    assert await took(core) == {(QUIET, "one"), (QUIET, "two")}, "in the same call"
    assert is_left_alone(core)
    assert f"{core.keys.prefix}{key[1:]}" in core.execute("HGET", ":damage", HURT).decode()
    look_now(core)
    assert await took(core) == set()
    assert is_left_alone(core), "it was looked at, and is not whole"
    core.execute("DEL", key)
    if kept:
        core.execute("RESTORE", key, 0, kept)
    look_now(core)
    assert await took(core) == {(HURT, "one"), (HURT, "two")}
    assert not is_left_alone(core)
    assert core.execute("EXISTS", ":damage") == 0
    assert (await examine(core.store)).findings == ()


async def test_a_lost_lane_is_told_of_and_what_comes_next_is_served(damaged_core: Core) -> None:
    core = damaged_core
    for user_id in (HURT, QUIET):
        await core.enqueue(user_id, "one")
    core.execute("DEL", ":normal:hurt")
    assert await took(core) == {(QUIET, "one")}
    assert is_left_alone(core)
    *_, alone, _memory = await core.store.health(100)
    assert alone == [HURT.encode()]
    await core.enqueue(HURT, "two")
    assert await took(core) == {(HURT, "two")}


@pytest.mark.parametrize("key", [":normal:hurt", ":task:hurt:late", ":policy:hurt"])
async def test_what_is_due_of_others_is_promoted_beside_a_broken_key(damaged_core: Core, key: str) -> None:
    core = damaged_core
    for user_id in (HURT, QUIET):
        await govern(core, user_id, weight=2)
        await core.enqueue(user_id, "late", delay_ms=1)
    kept = core.execute("DUMP", key) if core.execute("EXISTS", key) else None
    core.execute("DEL", key)
    core.execute("RPUSH", key, "x")
    got: set[tuple[str, str]] = set()

    async def is_promoted() -> bool:
        got.update(await took(core))
        return (QUIET, "late") in got

    await eventually(is_promoted)
    core.execute("DEL", key)
    if kept:
        core.execute("RESTORE", key, 0, kept)
    assert got == {(QUIET, "late")}
    look_now(core)
    assert await took(core) == {(HURT, "late")}
    assert (await examine(core.store)).findings == ()


async def test_a_stream_whose_group_was_destroyed_gets_it_back_with_what_runs(damaged_core: Core) -> None:
    core = damaged_core
    await core.enqueue(HURT, "one", "two", "three")
    [running] = await core.take(1, worker="w")
    core.execute("XGROUP", "DESTROY", ":normal-stream:hurt", "workers")
    core.renew("w", [running], concurrency=10)
    assert [of[1] for of in core.execute("XPENDING", ":normal-stream:hurt", "workers", "-", "+", 10)] == [b"w"]
    core.execute("XGROUP", "DESTROY", ":normal-stream:hurt", "workers")
    [other] = await core.take(1, worker="v")
    assert [of[1] for of in core.execute("XPENDING", ":normal-stream:hurt", "workers", "-", "+", 10)] == [b"w", b"v"]
    core.execute("XGROUP", "DESTROY", ":normal-stream:hurt", "workers")
    core.execute("ZADD", ":leases", 1, "normal:hurt")
    [last] = await core.take(2, worker="v")
    holders = core.execute("XPENDING", ":normal-stream:hurt", "workers", "-", "+", 10)
    assert [of[1] for of in holders] == [b"w", b"v", b"v"]
    assert await core.store.settle("w", [outcome(running, "finished")]) == [True]
    assert await core.store.settle("v", [outcome(of, "finished") for of in (other, last)]) == [True, True]
    assert (await examine(core.store)).findings == ()


def holders(core: Core) -> list[bytes]:
    return [of[1] for of in core.execute("XPENDING", ":normal-stream:hurt", "workers", "-", "+", 10)]


async def test_a_stream_that_was_lost_gets_back_what_runs_when_it_is_renewed(damaged_core: Core) -> None:
    core = damaged_core
    await core.enqueue(HURT, "one", "two", "three")
    [running] = await core.take(1, worker="w")
    core.execute("DEL", ":normal-stream:hurt")
    await asyncio.sleep(0.002)  # an entry of the same millisecond would get the same id
    [newer] = await core.take(1, worker="v")
    assert core.renew("w", [running], concurrency=10) == []
    assert holders(core) == [b"w", b"v"]
    core.execute("DEL", ":normal-stream:hurt", ":leases")
    assert core.renew("v", [newer], concurrency=10) == []
    assert holders(core) == [b"v"]
    assert await core.store.receive("w", running)
    assert holders(core) == [b"w", b"v"]
    assert (await examine(core.store)).findings == ()
    assert await core.store.settle("w", [outcome(running, "finished")]) == [True]
    assert await core.store.settle("v", [outcome(newer, "finished")]) == [True]
    assert [of.id for of in await core.take(1)] == ["three"]
    assert (await examine(core.store)).findings == ()


@pytest.fixture
async def damaged_core(own_server: Callable[..., EmbeddedServer], queue_name: str) -> AsyncIterator[Core]:
    async with Core(own_server().url, queue_name) as core:
        yield core
