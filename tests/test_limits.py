"""Limit keys in the scripts: a task starts when each of its keys has room, and what waits blocks nothing behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from random import Random

import pytest

from fairque.limit import Limit, record_of
from fairque.policy import Rate
from fairque.redis.delivery import Delivery
from fairque.tasks.message import LimitKey
from tests.support.core import Core
from tests.support.eventually import eventually
from tests.support.servers import Server
from tests.support.tenants import fill, limit, numbered, put, tasks_of

pytestmark = pytest.mark.leaves_keys()
A, B = LimitKey("a"), LimitKey("b")
EMPTY = ("running", "held", "let-in", "offers", "kept", "uncounted", "limit-rate")


def crm(customer: str, *, each_user: bool = True) -> LimitKey:
    return LimitKey(f"crm:{customer}", "crm%3A%7Bcustomer%7D", each_user)


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core


async def drained(core: Core, most: int = 400) -> list[str]:
    """Everything is served, one claim after another, and ends at once: the ids in order."""
    served: list[str] = []
    for _ in range(most):
        taken = await core.take(10)
        if not taken and not (await core.store.stats()).queued:
            return served
        served += [of.id for of in taken]
        await core.settle(taken)
    raise AssertionError(f"after {most} claims tasks still wait, {len(served)} were served")


def left_of_limits(core: Core) -> list[str]:
    assert int(core.state().get("in_hand", 0)) == 0
    return [name for name in core.dump() if name.startswith(EMPTY)]


# What holds for all of them


async def test_a_task_starts_when_all_its_keys_have_room(core: Core) -> None:
    await limit(core, "a", 3)
    await limit(core, "b", 2)
    await put(core, tasks_of("acme", numbered(5, "ab"), keys=[A, B]) + tasks_of("acme", numbered(5, "a"), keys=[A]))
    taken = await core.take(10)
    assert [of.id for of in taken] == ["ab00000", "ab00001", "a00000"]
    await core.settle(taken[2:])
    assert [of.id for of in await core.take(10)] == ["a00001"], "no room of b for the others"
    await core.settle(taken[:1])
    assert len(await core.take(10)) == 1


async def test_the_name_counts_beside_the_keys(core: Core) -> None:
    await limit(core, "t", 2)
    await limit(core, "a", 1)
    await put(core, tasks_of("acme", ["1", "2"], keys=[A]) + tasks_of("acme", ["3", "4"]))
    assert [of.id for of in await core.take(10)] == ["1", "3"]


async def test_a_key_that_is_the_name_counts_once(core: Core) -> None:
    await limit(core, "t", 2)
    await put(core, tasks_of("acme", numbered(3), keys=[LimitKey("t")]))
    assert len(await core.take(10)) == 2
    assert len(core.dump()["running::t"].content) == 2


async def test_a_template_holds_for_each_key_that_is_made_of_it_without_a_record_of_its_own(core: Core) -> None:
    await limit(core, "crm:{customer}", 2)
    for customer in ("x", "y"):
        await put(core, tasks_of("acme", numbered(4, customer), keys=[crm(customer)]))
    assert Counter(of.id[0] for of in await core.take(10)) == {"x": 2, "y": 2}
    assert [name for name in core.dump() if name.startswith("limit")] == [
        "limit:=crm%3A%7Bcustomer%7D",
        "limit-keys",
    ] or [name for name in core.dump() if name.startswith("limit")] == ["limit-keys", "limit:=crm%3A%7Bcustomer%7D"]


async def test_keys_of_each_user_know_nothing_of_those_of_others(core: Core) -> None:
    await limit(core, "crm:{customer}", 1)
    for user_id in ("acme", "zoe"):
        await put(core, tasks_of(user_id, ["own 1", "own 2"], keys=[crm("x")]))
        await put(core, tasks_of(user_id, ["all 1", "all 2"], keys=[crm("x", each_user=False)]))
    taken = [(of.user_id, of.id[:3]) for of in await core.take(10)]
    assert Counter(taken)["acme", "own"] == Counter(taken)["zoe", "own"] == 1
    assert sum(kind == "all" for _, kind in taken) == 1


@pytest.mark.parametrize(
    ("records", "runs"),
    [
        ([("crm:{customer}", "", 1)], 1),
        ([("crm:{customer}", "", 1), ("crm:{customer}", "acme", 2)], 2),
        ([("crm:{customer}", "", 1), ("crm:{customer}", "acme", 2), ("crm:x", "acme", 3)], 3),
        ([("crm:x", "acme", 3)], 3),
        ([("crm:x", "zoe", 3), ("crm:y", "acme", 3), ("crm:{customer}", "zoe", 3), ("crm:x", "", 3)], 5),
    ],
)
async def test_what_is_set_most_closely_holds(core: Core, records: Sequence[tuple[str, str, int]], runs: int) -> None:
    for key, user_id, most in records:
        await limit(core, key, most, of=user_id)
    await put(core, tasks_of("acme", numbered(5), keys=[crm("x")]))
    assert len(await core.take(10)) == runs


async def test_what_is_set_by_hand_goes_before_what_code_declares(core: Core) -> None:
    declared, by_hand = Limit("key", max_running=1), Limit("key", max_running=3)
    await put(core, tasks_of("acme", numbered(9), keys=[A]))

    async def say(says: Limit | None, *, code: bool) -> int:
        await core.store.set_limits([(record_of("a"), says)], declared=code)
        taken = await core.take(9)
        for of in taken:
            await core.settle([of], "retry")
        return len(taken)

    assert await say(declared, code=True) == 1
    assert await say(by_hand, code=False) == 3
    assert await say(declared, code=True) == 3, "code says it again, as a worker starts"
    assert await say(Limit("key"), code=False) == 9, "none, whatever the code says"
    assert await say(None, code=False) == 1
    assert await say(None, code=True) == 9
    assert await drained(core)
    assert left_of_limits(core) == []


async def test_a_limit_that_is_set_later_counts_what_runs_of_each_of_its_keys(core: Core) -> None:
    for user_id in ("acme", "zoe"):
        await put(core, tasks_of(user_id, numbered(4, "x"), keys=[crm("x")]))
    running = await core.take(5)
    await limit(core, "crm:{customer}", 3)
    for _ in range(3):
        running += await core.take(10)
    assert len(core.dump()["running:acme=crm%3A%7Bcustomer%7D:crm:x"].content) == 3
    await core.settle(running)
    await drained(core)
    assert left_of_limits(core) == []


# Exact, and nothing is left


async def test_a_limit_is_never_exceeded_while_tasks_of_all_kinds_come_and_go(core: Core) -> None:
    await limit(core, "a", 3)
    await limit(core, "b", 2)
    await limit(core, "crm:{customer}", 1)
    kinds: list[list[LimitKey]] = [[A], [B], [A, B], [B, A], [A, crm("x")], [crm("y"), B], []]
    for user_id in ("u", "v", "w"):
        for at, keys in enumerate(kinds):
            await put(core, tasks_of(user_id, numbered(8, f"{at}-"), keys=keys))
    running: list[Delivery] = []
    served = 0
    for step in range(400):
        running += await core.take(3 + step % 5)
        names = Counter(key.text if not key.each_user else of.user_id for of in running for key in kinds[int(of.id[0])])
        assert names["a"] <= 3
        assert names["b"] <= 2
        assert all(names[user] <= 2 for user in "uvw")
        done, running = running[: 1 + step % 3], running[1 + step % 3 :]
        kind = "retry" if step % 11 == 5 else "finished"
        await core.settle(done, kind)
        served += len(done) if kind == "finished" else 0
        if served == 3 * 8 * len(kinds):
            break
    assert served == 3 * 8 * len(kinds)
    assert left_of_limits(core) == []


async def test_what_is_canceled_purged_stolen_or_gone_leaves_no_place_behind(core: Core) -> None:
    await limit(core, "a", 2)
    await limit(core, "b", 1)
    await put(core, tasks_of("acme", numbered(8), keys=[A, B]) + tasks_of("zoe", numbered(8), keys=[B, A]))
    taken = await core.take(5, worker="dies", lease_ms=1)
    core.wait_until_ms(core.now_us() // 1000 + 3)
    stolen = await core.take(5, worker="lives", lease_ms=1)
    assert [(of.user_id, of.id) for of in stolen] == [(of.user_id, of.id) for of in taken]
    await core.settle(stolen, worker="lives")
    for user_id in ("acme", "zoe"):
        await core.store.cancel(user_id, "00003", "")
    while (await core.store.purge_step("zoe", 3))[-1]:
        await core.settle(await core.take(5))
    served = []

    async def all_served() -> bool:
        taken = await core.take(5)
        served.extend(of.id for of in taken)
        await core.settle(taken)
        return not (await core.store.stats()).queued

    await eventually(all_served)
    assert left_of_limits(core) == []


async def test_keys_that_nobody_uses_any_more_leave_nothing(core: Core) -> None:
    await limit(core, "crm:{customer}", 1, Rate(1000))
    for at in range(50):
        await put(core, tasks_of("acme", [f"{at}-1", f"{at}-2"], keys=[crm(str(at))]))

    async def is_clean() -> bool:
        await core.settle(await core.take(100))
        return not (await core.store.stats()).queued and left_of_limits(core) == []

    await eventually(is_clean)


async def test_the_rates_of_two_keys_hold_together(core: Core) -> None:
    await limit(core, "a", rate=Rate(200))
    await limit(core, "b", rate=Rate(100, burst=3))
    await put(core, tasks_of("acme", numbered(6), keys=[A, B]) + tasks_of("zoe", numbered(6), keys=[A]))
    starts: dict[str, list[int]] = {"acme": [], "zoe": []}

    async def all_started() -> bool:
        for of in await core.take(20):
            starts[of.user_id].append(of.started_ms)
            await core.settle([of])
        return sum(map(len, starts.values())) == 12

    await eventually(all_started)
    together = sorted(starts["acme"] + starts["zoe"])
    assert all(later - earlier >= 4 for earlier, later in pairwise(together)), "5 ms, as whole ms are told"
    assert all(later - earlier >= 9 for earlier, later in zip(starts["acme"], starts["acme"][3:], strict=False))


# Nobody waits for ever, and nobody is kept waiting


async def test_a_task_with_two_keys_that_are_always_busy_is_served_all_the_same(core: Core) -> None:
    await limit(core, "a", 1)
    await limit(core, "b", 1)
    await put(core, tasks_of("only-a", numbered(300), keys=[A]) + tasks_of("only-b", numbered(300), keys=[B]))
    running = await core.take(2)
    await put(core, tasks_of("both", ["1", "2", "3"], keys=[A, B]))
    place = 0
    served: list[int] = []
    while len(served) < 3:
        place += 1
        assert place < 200, f"of 200 services {len(served)} were of the user that has both keys"
        await core.settle([running.pop(0)])
        taken = await core.take(5)
        served += [place for of in taken if of.user_id == "both"]
        running += taken


async def test_who_waits_for_a_key_of_its_own_keeps_no_place_of_others(core: Core) -> None:
    """Its two tasks that may run take long; a thousand more wait for that, and have the key of all as well."""
    await limit(core, "a", 2)
    await limit(core, "crm:{customer}", 2)
    await put(core, tasks_of("attacker", ["long 1", "long 2"], keys=[crm("x")]))
    assert len(await core.take(5)) == 2
    await put(core, tasks_of("attacker", numbered(1000), keys=[A, crm("x")]))
    await put(core, tasks_of("other", numbered(200), keys=[A]))
    served = 0
    for _ in range(60):
        taken = await core.take(10)
        assert {of.user_id for of in taken} <= {"other"}
        served += len(taken)
        await core.settle(taken)
    assert served >= 60, "at least one of two places in each claim"


async def test_a_place_is_kept_in_vain_once_and_then_not_for_long(core: Core) -> None:
    await limit(core, "a", 1)
    await limit(core, "crm:{customer}", 1)
    await put(core, tasks_of("attacker", ["long"], keys=[crm("x")]) + tasks_of("other", ["first"], keys=[A]))
    [first] = [of for of in await core.take(2) if of.user_id == "other"]
    await put(core, tasks_of("attacker", numbered(100), keys=[A, crm("x")]))
    await put(core, tasks_of("other", numbered(200), keys=[A]))
    assert await core.take(5) == []
    await core.settle([first])
    running: list[Delivery] = []

    async def other_is_served() -> bool:
        running.extend(await core.take(5))
        return bool(running)

    await eventually(other_is_served)
    for _ in range(100):
        await core.settle(running)
        running = await core.take(5)
        assert [of.user_id for of in running] == ["other"]


async def test_tasks_with_two_keys_in_either_order_do_not_lock_each_other(core: Core) -> None:
    await limit(core, "a", 1)
    await limit(core, "b", 1)
    for user_id in ("u", "v", "w", "x"):
        await put(
            core,
            tasks_of(user_id, numbered(20, "1-"), keys=[A, B]) + tasks_of(user_id, numbered(20, "2-"), keys=[B, A]),
        )
        await put(
            core, tasks_of(user_id, numbered(10, "3-"), keys=[A]) + tasks_of(user_id, numbered(10, "4-"), keys=[B])
        )
    served = await drained(core, 260)
    assert len(served) == 240
    assert left_of_limits(core) == []


async def test_room_of_a_key_goes_by_turns_of_users_however_many_keys_their_tasks_have(core: Core) -> None:
    await limit(core, "a", 2)
    await limit(core, "b", 2)
    await fill(core, "many", tasks=300, keys=[A, B])
    await fill(core, "one", tasks=60, keys=[B])
    served: Counter[str] = Counter()
    for _ in range(40):
        taken = await core.take(10)
        served.update(of.user_id for of in taken)
        await core.settle(taken)
    assert served["one"] >= 35


async def test_a_task_behind_those_that_wait_for_a_key_is_in_the_first_claim(core: Core) -> None:
    await limit(core, "a", 1)
    await fill(core, "runs", tasks=1, keys=[A])
    await core.take(1)
    await fill(core, "attacker", tasks=5000, keys=[A, crm("x")])
    await put(core, tasks_of("attacker", numbered(5000, "u"), keys=[crm("x"), A]))
    await fill(core, "quiet", tasks=1)
    assert "quiet" in [of.user_id for of in await core.take(1)]


async def test_a_place_that_nobody_takes_goes_on_after_a_second(core: Core) -> None:
    """It was given to one whose worker went away."""
    await limit(core, "a", 1)
    await fill(core, "runs", tasks=1, keys=[A])
    running = await core.take(1)
    await fill(core, "gone", tasks=3, keys=[A])
    await fill(core, "here", tasks=3, keys=[A])
    assert await core.take(5) == []
    await core.settle(running)
    found: list[str] = []

    async def is_served() -> bool:
        found.extend(of.user_id for of in await core.take(5, groups=[["here"]]))
        return found == ["here"]

    await eventually(is_served)


# Anything at all, in any order


class LimitGame:
    """Tasks with random keys are put in, served, released, retried and canceled while an operator changes limits."""

    KEYS = (A, B, LimitKey("c"), crm("x"), crm("y"), crm("x", each_user=False))
    RECORDS = ("a", "b", "c", "t", "crm:{customer}")
    USERS = ("u", "v:w", "x")

    def __init__(self, seed: int, core: Core) -> None:
        self.draw = Random(seed)
        self.core = core
        self.keys: dict[tuple[str, str], list[str]] = {}
        self.most: dict[str, int | None] = {}
        self.running: list[Delivery] = []

    async def play(self, moves: int) -> None:
        for _ in range(moves):
            await self.draw.choices([self.enqueue, self.claim, self.end, self.cancel, self.change], [5, 8, 7, 1, 1])[
                0
            ]()
        await eventually(self.is_over)

    async def enqueue(self) -> None:
        user_id, number = self.draw.choice(self.USERS), len(self.keys)
        keys = self.draw.sample(self.KEYS, self.draw.choice([0, 1, 1, 2, 2, 2]))
        ids = [f"{number}.{at}" for at in range(self.draw.randint(1, 4))]
        await put(self.core, tasks_of(user_id, ids, keys=keys))
        for id_ in ids:
            self.keys[user_id, id_] = [":t", *(f"{user_id if key.each_user else ''}:{key.text}" for key in keys)]

    def counts(self) -> Counter[str]:
        return Counter(key for of in self.running for key in set(self.keys[of.user_id, of.id]))

    async def claim(self) -> None:
        before = self.counts()
        self.running += await self.core.take(self.draw.randint(1, 6), worker=self.draw.choice(["w", "v"]))
        for key, runs in self.counts().items():
            record = key.partition(":")[2]
            most = self.most.get("crm:{customer}" if record.startswith("crm") else record)
            assert most is None or runs <= max(most, before[key]), f"{runs} of {key} run, {most} may"

    async def end(self) -> None:
        self.draw.shuffle(self.running)
        count = self.draw.randint(1, 4)
        done, self.running = self.running[:count], self.running[count:]
        await self.core.settle(done, self.draw.choice(["finished", "finished", "retry", "released", "failed"]))

    async def cancel(self) -> None:
        if self.keys:
            user_id, id_ = self.draw.choice(list(self.keys))
            if not any((of.user_id, of.id) == (user_id, id_) for of in self.running):
                await self.core.store.cancel(user_id, id_, "")

    async def change(self) -> None:
        record = self.draw.choice(self.RECORDS)
        self.most[record] = self.draw.choice([None, 1, 2, 3])
        await limit(self.core, record, self.most[record])

    async def is_over(self) -> bool:
        await self.core.settle(self.running)
        self.running = []
        await self.claim()
        return not (self.running or (await self.core.store.stats()).queued)


@pytest.mark.parametrize("seed", range(12))
async def test_limits_hold_and_leave_nothing_whatever_happens(core: Core, seed: int) -> None:
    game = LimitGame(seed, core)
    await game.play(150)
    assert left_of_limits(core) == []
