"""Random play on limits over all users: places go between partitions, which come and go, as do users and rules."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fairque import Rate
from fairque.errors import FairqueError, QueueUnavailable, UserFrozen
from fairque.everybody import EVERYONE
from fairque.limit import Limit, record_of
from fairque.redis.delivery import Claim
from fairque.redis.keys import encode_user
from fairque.redis.places import UserElsewhere
from fairque.tasks.message import LimitKey
from fairque.transfer.moving import finish_moves, move
from fairque.worker.declared_limits import LimitDeclarations
from fairque.worker.lending import Lending
from fairque.worker.ruling import Ruling
from tests.support.core import outcome
from tests.support.mirror_view import changed, policy_name
from tests.support.order import Order, name_in_redis
from tests.support.shared_limits import Job, LimitRule, SharedLimits
from tests.support.unsteady import Fate, Killed, UnsteadyQueue

USERS = ["a", "c", "b", "g", "l", "n:o"]
NAMES = ["t", "api", "api"]
TEMPLATE = "c:{x}"
KEYS = [
    LimitKey("crm"),
    LimitKey("sms"),
    LimitKey("c:1", "c%3A%7Bx%7D"),
    LimitKey("c:5", "c%3A%7Bx%7D"),
    LimitKey("own", "own", True),
]
RECORDS = [record_of(each) for each in ("api", "crm", "crm", "sms", TEMPLATE, TEMPLATE, "c:1")] + [
    record_of("own", shared=False),
    record_of("own", "a"),
]
CRM = record_of("crm")
KINDS = ["keys", "rates", "pauses", "outages", "moves", "faults"]
CAN_PAUSE = [record_of("api"), record_of("c:1")]
MOST = [None, 1, 1, 2, 2, 5]
RATES = [None, None, None, None, Rate(100), Rate(2, burst=2), Rate(1, per=3)]
FATES: list[Fate] = ["late", "cut", "twice"]
LEFT_BY_LIMITS = ("loan:", "loans:", "exchanges", "running:", "let-in:", "kept:", "held", "offers:")
WORKER = "w"
WANT = 10
ROUND_MS = 1000
LOOKS = 6
FORSAKEN_MS = 60_000
"""After it, somebody sees to what movers left who are no more."""

users = st.sampled_from(USERS)
numbers = st.integers(0, 63)
picks = st.lists(numbers, min_size=1, max_size=3)
keys = st.lists(st.sampled_from(KEYS), max_size=2, unique=True)


class LimitsMachine(RuleBasedStateMachine):
    """Holds what starts, and when, against what limits promise. Which kinds of things happen is chosen once, or nothing
    would happen often.
    """

    def __init__(self, new_queue: Callable[[], UnsteadyQueue]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.queue = new_queue()
        self.runner.run(self.queue.open())
        self.store, self.weather = self.queue.store, self.queue.weather
        self.parts = self.store.parts
        self.lending = Lending(self.parts)
        self.ruling = Ruling(self.parts, cast("LimitDeclarations", SimpleNamespace(revision=0)))
        self.limits = SharedLimits()
        self.ids = itertools.count(1)
        self.kinds: frozenset[str] = frozenset()
        self.paused: set[str] = set()
        self.lost_users: set[str] = set()
        self.lent_to_the_gone = False
        self.is_sound = True

    def play(self, call: Any) -> Any:
        self.is_sound = False
        answer = self.runner.run(call)
        self.is_sound = True
        return answer

    @property
    def is_divided(self) -> bool:
        return len(self.parts) > 1

    def at(self, number: int) -> int:
        return number % len(self.parts)

    @initialize(
        kinds=st.frozensets(st.sampled_from(KINDS), min_size=1, max_size=3),
        most=st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=2, max_size=2),
        rate=st.sampled_from(RATES),
    )
    def some_limits_hold(self, kinds: frozenset[str], most: list[int], rate: Rate | None) -> None:
        self.kinds = kinds
        for record, many in zip(("crm", TEMPLATE), most, strict=True):
            self.play(self._limit(record_of(record), many, rate if "rates" in kinds else None))

    # Producers

    @precondition(lambda self: "keys" in self.kinds)
    @rule(user_id=users, name=st.sampled_from(NAMES), of=keys, many=st.integers(1, 3))
    def enqueue(self, user_id: str, name: str, of: list[LimitKey], many: int) -> None:
        self.play(self._enqueue(user_id, name, of, many))

    @rule(user_id=users, many=st.integers(2, 6))
    def one_user_fills_a_key(self, user_id: str, many: int) -> None:
        self.play(self._enqueue(user_id, "t", KEYS[:1], many))

    @rule(of=st.lists(users, min_size=2, max_size=4, unique=True), key=keys)
    def users_compete(self, of: list[str], key: list[LimitKey]) -> None:
        for user_id in of:
            self.play(self._enqueue(user_id, "t", key if key and "keys" in self.kinds else KEYS[:1], 2))

    async def _enqueue(self, user_id: str, name: str, of: list[LimitKey], many: int) -> None:
        for _ in range(many):
            nonce = next(self.ids).to_bytes(8)
            order = Order(user_id, str(int.from_bytes(nonce)), name=name, limits=tuple(of))
            try:
                await self.store.enqueue([order.new_task(nonce, 0)])
            except (QueueUnavailable, UserFrozen):
                return
            names = [name_in_redis(key, user_id) for key in of]
            self.limits.put_in(user_id, order.task_id, [*names, f":{name}"])

    @precondition(lambda self: self.limits.waiting())
    @rule(number=numbers, chance=st.integers(0, 2))
    def cancel(self, number: int, chance: int) -> None:
        if chance == 0 and (waiting := self.limits.waiting()):
            self.play(self._cancel(waiting[number % len(waiting)]))

    async def _cancel(self, job: Job) -> None:
        try:
            assert await self.store.cancel(job.user_id, job.task_id, "why") == "done"
        except (QueueUnavailable, UserFrozen):
            return
        job.has_ended = True

    # Workers

    @rule(at=numbers, want=st.integers(1, 6), carries=st.booleans())
    def claim(self, at: int, want: int, carries: bool) -> None:
        self.play(self._claim(self.at(at), want, carries=carries))

    @rule(
        picks=st.lists(numbers, min_size=1, max_size=3),
        kind=st.sampled_from(["finished", "finished", "retry", "released"]),
    )
    def settle(self, picks: list[int], kind: str) -> None:
        for pick in picks:
            if running := self.limits.running():
                self.play(self._settle(running[-1 - pick % len(running)], kind))

    @rule(want=st.integers(1, 4), carries=st.booleans(), picks=picks)
    def work(self, want: int, carries: bool, picks: list[int]) -> None:
        for at in range(len(self.parts)):
            self.claim(at, want, carries)
        self.settle(picks, "finished")

    @rule(wants=st.lists(st.integers(0, 4), min_size=1, max_size=4), ms=st.sampled_from([0, 300, 1000]))
    def work_goes_on(self, wants: list[int], ms: int) -> None:
        self.settle([0, 0], "finished")
        for at, want in enumerate(wants):
            self.claim(at, want, True)
        self.time_passes(ms)

    async def _claim(self, at: int, want: int, *, carries: bool = True) -> Claim | None:
        how: Any = {"latest": 0.0, "floor": 0.0, "revision": self.ruling.latest} if self.is_divided else {}
        try:
            claim = await self.parts[at].claim(WORKER, want, steal=False, wait=True, **how)
        except QueueUnavailable:
            return None
        if claim.is_outdated:
            self.ruling.bring(at)
            await _all_of(self.ruling._calls)
        for of in claim.deliveries:
            self.limits.start(of.user_id, of, at, self.queue.clock.us)
        if claim.heads is not None:
            self.ruling.told(at, claim.heads)
            await _all_of(self.ruling._calls)
            if carries:
                self.lending.told(at, claim.heads)
                await _all_of(self.lending._calls)
                if claim.heads.has_forsaken:
                    await self._adopt(at)
        return claim

    async def _adopt(self, at: int) -> None:
        try:
            await finish_moves(self.store, at)
        except FairqueError:
            return

    async def _settle(self, job: Job, kind: str) -> None:
        """What is not taken, is told again another time."""
        assert job.running is not None
        at, delivery = job.running
        try:
            (told,) = await self.parts[at].settle(WORKER, [outcome(delivery, kind)])
        except QueueUnavailable:
            return
        if isinstance(told, UserElsewhere):
            job.running = told.moved[0].partition, delivery
            return
        if isinstance(told, UserFrozen):
            return
        assert told is True, f"{job} is refused: {told!r}"
        job.running, job.has_ended = None, kind == "finished"

    # Places

    @precondition(lambda self: self.is_divided and "faults" in self.kinds)
    @rule(at=numbers, script=st.sampled_from(["exchange", "lend", "accept"]), fate=st.sampled_from([None, *FATES]))
    def exchange(self, at: int, script: str, fate: Fate | None) -> None:
        if fate is not None:
            self.weather.fates[script] = fate
        self.play(self._exchange(self.at(at)))
        self.weather.fates.clear()

    async def _exchange(self, at: int) -> None:
        self.lending._begin(at)
        await _all_of(self.lending._calls)

    @precondition(lambda self: self.weather.late)
    @rule(pick=numbers)
    def what_is_late_arrives(self, pick: int) -> None:
        self.play(self.weather.deliver(pick))

    @precondition(lambda self: self.is_divided)
    @rule()
    def places_are_exchanged(self) -> None:
        self.play(self._exchange_all())

    async def _exchange_all(self) -> None:
        """What runs is counted by claims, and told to homes by what is exchanged then."""
        for _ in range(2):
            for at in range(len(self.parts)):
                await self._claim(at, 0)
                await self._exchange(at)

    # The operator

    @property
    def can_be_told(self) -> bool:
        """The first partition numbers what governs all users."""
        return 0 not in self.weather.gone

    @precondition(lambda self: self.can_be_told)
    @rule(record=st.sampled_from(RECORDS), most=st.sampled_from(MOST), rate=st.sampled_from(RATES))
    def limit(self, record: str, most: int | None, rate: Rate | None) -> None:
        record = record if "keys" in self.kinds else CRM
        self.play(self._limit(record, most, rate if "rates" in self.kinds else None))

    async def _limit(self, record: str, most: int | None, rate: Rate | None) -> None:
        limit = Limit("key", max_running=most, rate=rate)
        before = self.limits.said.get(record, LimitRule())
        try:
            await self.store.set_limits([(record, limit if limit.says_how_much else None)], declared=False)
        except UserFrozen:
            return
        except QueueUnavailable:
            if not record.startswith((":", "=")):
                return
        self.limits.change(record, before._replace(most=most, rate=rate))
        await self._hear_of_it()

    async def _hear_of_it(self) -> None:
        """Once any worker knows what holds now, nobody is served by what held before."""
        await self._claim(0, 0, carries=False)

    @precondition(lambda self: self.can_be_told and "pauses" in self.kinds)
    @rule(record=st.sampled_from(CAN_PAUSE), is_paused=st.booleans())
    def pause_task(self, record: str, is_paused: bool) -> None:
        self.play(self._pause_task(record, is_paused))

    async def _pause_task(self, record: str, is_paused: bool) -> None:
        before = self.limits.said.get(record, LimitRule())
        with contextlib.suppress(QueueUnavailable):  # those that are away hear of it before they serve
            await self.store.set_paused(record, is_paused)
        self.limits.change(record, before._replace(is_paused=is_paused))
        await self._hear_of_it()

    @precondition(lambda self: self.can_be_told and "pauses" in self.kinds)
    @rule(user_id=st.sampled_from([*USERS, EVERYONE]), is_paused=st.booleans())
    def pause(self, user_id: str, is_paused: bool) -> None:
        self.play(self._pause(user_id, is_paused))

    async def _pause(self, user_id: str, is_paused: bool) -> None:
        try:
            await self.store.set_policy(policy_name(user_id), *changed({"paused": True if is_paused else None}))
        except UserFrozen:
            return
        except QueueUnavailable:
            if user_id != EVERYONE:
                return
        (self.paused.add if is_paused else self.paused.discard)(user_id)
        await self._hear_of_it()

    @precondition(lambda self: "pauses" in self.kinds)
    @rule(user_id=users, most=st.sampled_from([None, 1, 2]))
    def cap(self, user_id: str, most: int | None) -> None:
        self.play(self._cap(user_id, most))

    async def _cap(self, user_id: str, most: int | None) -> None:
        try:
            await self.store.set_policy(policy_name(user_id), *changed({"max_running": most}))
        except (QueueUnavailable, UserFrozen):
            return

    # Partitions

    @precondition(lambda self: self.is_divided and "outages" in self.kinds and not self.weather.gone)
    @rule(at=numbers)
    def one_is_gone(self, at: int) -> None:
        self.weather.gone.add(self.at(at))
        self.lent_to_the_gone = True

    @precondition(lambda self: self.weather.gone)
    @rule()
    def it_is_back(self) -> None:
        self.weather.gone.clear()

    @precondition(lambda self: self.weather.gone and 0 not in self.weather.gone)
    @rule()
    def what_it_has_is_forfeited(self) -> None:
        self.play(self._forfeit())

    async def _forfeit(self) -> None:
        (gone,) = self.weather.gone
        await self.store.forfeit(gone)
        self.lent_to_the_gone = False
        for job in self.limits.running():
            if job.running is not None and job.running[0] == gone:
                job.is_forfeited = True

    @precondition(lambda self: self.is_divided and "outages" in self.kinds and not self.weather.gone)
    @rule(
        at=numbers,
        most=st.sampled_from([1, 2]),
        forfeits=st.booleans(),
        want=st.integers(0, 2),
        ms=st.sampled_from([0, 1100]),
    )
    def one_is_gone_and_serves_before_it_hears_of_anything(
        self, at: int, most: int, forfeits: bool, want: int, ms: int
    ) -> None:
        at = 1 + at % (len(self.parts) - 1)
        if not forfeits:
            self.limit(CRM, None, None)
        self.all_compete()
        self.claim(at, want, False)
        self.one_is_gone(at)
        self.time_passes(ms)
        if forfeits:
            self.what_it_has_is_forfeited()
            self.places_are_exchanged()
        else:
            self.limit(CRM, most, None)
        self.all_claim()
        self.it_is_back()
        self.claim(at, WANT, False)

    @rule(most=st.sampled_from([1, 2, 3]))
    def a_limit_comes_while_tasks_run(self, most: int) -> None:
        self.limit(CRM, None, None)
        self.all_compete()
        self.all_claim()
        self.limit(CRM, most, None)
        self.places_are_exchanged()
        self.settle([0, 5], "finished")
        self.all_claim()

    def all_compete(self) -> None:
        for user_id in USERS:
            self.play(self._enqueue(user_id, "t", KEYS[:1], 1))
        self.places_are_exchanged()

    def all_claim(self) -> None:
        for at in range(len(self.parts)):
            self.claim(at, 2, True)

    # Users who move

    @precondition(lambda self: self.is_divided and "moves" in self.kinds)
    @rule(user_id=users, to=numbers)
    def move(self, user_id: str, to: int) -> None:
        self.play(self._move(user_id, self.at(to)))

    @precondition(lambda self: self.is_divided and "moves" in self.kinds)
    @rule(user_id=users, to=numbers, after=st.integers(1, 25))
    def a_mover_is_killed(self, user_id: str, to: int, after: int) -> None:
        self.weather.calls_left = after
        self.lost_users.add(user_id)
        self.play(self._move(user_id, self.at(to)))

    async def _move(self, user_id: str, to: int) -> None:
        try:
            with contextlib.suppress(Killed):
                await move(self.store, user_id, to)
        except (QueueUnavailable, UserFrozen, UserElsewhere):
            if self.weather.gone:
                self.lost_users.add(user_id)
        finally:
            self.weather.calls_left = None

    # In the end

    @rule(ms=st.sampled_from([1, 50, 300, 1000, 5000]))
    def time_passes(self, ms: int) -> None:
        self.queue.clock.us += ms * 1000

    @precondition(lambda self: self.limits.jobs)
    @rule(chance=st.integers(0, 3))
    def all_is_served(self, chance: int) -> None:
        if chance == 0:
            self.play(self._serve_all())

    async def _serve_all(self) -> None:
        """Who can be served is, by workers that do what they are told at each claim, within so many rounds."""
        if self.lost_users and not self.weather.gone:
            self.queue.clock.us += FORSAKEN_MS * 1000
            for at in range(len(self.parts)):
                await self._claim(at, 0)
            self.lost_users.clear()
        most = 20 + 4 * len(self.limits.waiting())
        for _ in range(most):
            for job in self.limits.running():
                await self._settle(job, "finished")
            if not self._can_run():
                return
            await self._look_everywhere()
            self.queue.clock.us += ROUND_MS * 1000
        raise AssertionError(f"nobody serves {self._can_run()}")

    async def _look_everywhere(self) -> None:
        """Until nobody is told to look again at once: what came by one look wakes workers."""
        for _ in range(LOOKS):
            claims = [await self._claim(at, WANT) for at in range(len(self.parts))]
            if not any(claim is not None and is_due_again(claim) for claim in claims):
                return

    def _can_run(self) -> list[Job]:
        return [job for job in self.limits.waiting() if self._is_expected(job)]

    def _is_expected(self, job: Job) -> bool:
        if {job.user_id, EVERYONE} & self.paused or any(self._is_paused(key) for key in job.keys):
            return False
        if not self.weather.gone:
            return True
        return not self.lent_to_the_gone and not (self.lost_users or self._homes(job) & self.weather.gone)

    def _is_paused(self, key: str) -> bool:
        found = self.limits.rule_of(key)
        return found is not None and found.is_paused

    def _homes(self, job: Job) -> set[int]:
        """Of its user, and of the places that it needs."""
        homes = {self._home_of_key(key) for key in job.keys if key.startswith((":", "="))}
        return homes | {self.store.places.of(encode_user(job.user_id))}

    def _home_of_key(self, key: str) -> int:
        return int(hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest()[:8], 16) % len(self.parts)

    async def _finish(self) -> None:
        self.weather.gone.clear()
        while self.weather.late:
            await self.weather.deliver(0)
        for user_id in list(self.paused):
            await self._pause(user_id, False)
        for record in CAN_PAUSE:
            await self._pause_task(record, False)
        await self._serve_all()
        assert not self.limits.waiting()
        for record in list(self.limits.said):
            await self._limit(record, None, None)
        for user_id in USERS:
            await self._cap(user_id, None)
        for _ in range(5):
            self.queue.clock.us += ROUND_MS * 1000
            await self._exchange_all()
        for part in self.parts:
            await part.leave(WORKER, [()])
        left = {
            (core.number, name) for core in self.queue.cores for name in core.dump() if name.startswith(LEFT_BY_LIMITS)
        }
        assert not left, f"places are left: {left}"

    def teardown(self) -> None:
        try:
            if self.is_sound:
                self.runner.run(self._finish())
        finally:
            self.weather.gone.clear()
            self.runner.run(self.queue.close())
            self.runner.close()


def is_due_again(claim: Claim) -> bool:
    return bool(claim.deliveries) or (claim.heads is not None and claim.heads.exchange_ms == 0)


async def _all_of(calls: dict[int, asyncio.Task[None]]) -> None:
    """Until none is under way."""
    while calls:
        await asyncio.gather(*calls.values())
