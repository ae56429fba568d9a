"""Random play on scripts and model: producers, workers that come, go and fall silent, and an operator."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fairque import Breaker, Rate
from fairque.everybody import EVERYONE
from fairque.fairness.model_task import Alone, Ending, Kind, ModelCallback, ModelDelivery
from fairque.limit import record_of
from fairque.models import ANY_USER, BatchState, TaskState, UserGroup
from fairque.tasks.message import LimitKey
from tests.support.core import LONG_LEASE_MS
from tests.support.mirror import Held, Mirror
from tests.support.order import Order
from tests.support.timed import TimedCore

SHORT_LEASE_MS = 1
SOON_MS, LATE_MS, DAY_MS = 2, 60_000, 86_400_000
USERS = ["a", "b:c", "b%3Ac", "{é}*\n\0"]
IDS = ["1", "2", "b:c", "*\n", "é", "x" * 80, "1.on_end", "b:c.on_failure-2"]
BATCHES = ["1", "b:c *\n"]
WORKERS = ["w1", "w2", "w3"]
DYING = ["next", "last but one", "next"]
ALL_WORKERS = [*WORKERS, *DYING, "dies", "silent", "thief", "last"]
NAMES = ["api", "b:c *\n"]
TEMPLATE = "c:{x}"
KEYS = [
    LimitKey("crm *\n"),
    LimitKey("own", "own", True),
    LimitKey("c:1", "c%3A%7Bx%7D"),
    LimitKey("c:2", "c%3A%7Bx%7D"),
    LimitKey("c:1", "c%3A%7Bx%7D", True),
]
RECORDS = [
    *map(record_of, NAMES),
    record_of("crm *\n"),
    record_of("own", shared=False),
    record_of("own", "a"),
    record_of(TEMPLATE),
    record_of(TEMPLATE, "b:c"),
    record_of("c:1"),
]
GROUPS = ["plan", "plan/{é}:*", "plan/b/c/d", "{é}:*"]
CALLBACK_KINDS = ("on_success", "on_failure", "on_end")
SERVED: list[tuple[UserGroup, ...]] = [
    ANY_USER,
    (("a", "b:c"),),
    (("b:c",), ()),
    (("nobody",), ("b%3Ac",)),
    (("a", "a"), tuple(USERS)),
]
RATES = [None, Rate(1000), Rate(500, burst=3), Rate(1, per=60, burst=2)]

# Costs and weights are sums of powers of two: a tie is a tie, however it is computed.
FIELDS: dict[str, list[Any]] = {
    "weight": [None, 0.5, 4.0, 8.0],
    "max_running": [None, 1, 2, 4],
    "max_share": [None, 0.25, 0.5, 1.0],
    "min_running": [None, 1, 2, 3],
    "rate": RATES,
    "max_queued": [None, 2, 4, 6],
    "overflow": ["reject", "drop_oldest", "drop_oldest"],
    "max_bytes": [None, 300, 1000, 2000, 4000],
    "paused": [None, None, None, True, timedelta(milliseconds=SOON_MS), timedelta(milliseconds=LATE_MS)],
    "group": [None, *GROUPS, *GROUPS],
    "breaker": [
        None,
        Breaker(failures=1, window=60, cooldown=0.002),
        Breaker(failures=2, window=0.004, cooldown=0.005),
        Breaker(failures=2, window=60, cooldown=60),
    ],
}


def ending_of(kind: Kind, delay_ms: int, charge: float, run_ms: float, ttl_ms: int = DAY_MS, size: int = 0) -> Ending:
    """Of whatever delivery."""
    delay_ms = delay_ms if kind in ("retry", "snoozed", "released") else 0
    return Ending(cast(ModelDelivery, None), kind, delay_ms, charge, run_ms, ttl_ms, size)


users = st.sampled_from(USERS)
ids = st.sampled_from(IDS)
batch_ids = st.sampled_from(BATCHES)
kinds = st.sampled_from(["finished", "finished", "failed", "retry", "snoozed", "released", "canceled"])
picks = st.lists(st.integers(0, 7), min_size=1, max_size=4)
wants = st.integers(1, 6)
workers = st.sampled_from(WORKERS)
kinds_of_workers = st.integers(0, 3)
sizes = st.sampled_from([0, 0, 40, 300, 700])
leases = st.sampled_from([SHORT_LEASE_MS, LONG_LEASE_MS, LONG_LEASE_MS])
endings = st.builds(
    ending_of,
    kinds,
    st.sampled_from([0, 0, SOON_MS, LATE_MS]),
    st.sampled_from([0.0, 0.0, 2.5, -0.25]),
    st.sampled_from([0.0, 500.0, 2000.0]),
    st.sampled_from([DAY_MS, SOON_MS, LATE_MS]),
    sizes,
)
kinds_of_keys: st.SearchStrategy[Alone] = st.sampled_from(
    ["", "", "", "", "started", "ended", "after", "debounce", "throttle"]
)
policies = st.fixed_dictionaries({}, optional={name: st.sampled_from(of) for name, of in FIELDS.items()})


def callbacks_of(*kinds: str, depth: int = 1) -> st.SearchStrategy[tuple[ModelCallback, ...]]:
    after = callbacks_of(*CALLBACK_KINDS, depth=0) if depth else st.just(())
    callback = st.builds(
        ModelCallback,
        st.sampled_from(kinds),
        st.sampled_from([3, 3, 1, 6]),
        st.sampled_from([1.0, 1.0, 7.25]),
        st.sampled_from([0, 0, SOON_MS, LATE_MS]),
        st.sampled_from(["t", *NAMES]),
        after,
        st.just(b""),
    )
    return st.lists(callback, max_size=3).map(tuple)


callbacks = callbacks_of(*CALLBACK_KINDS)
of_batches = st.tuples(callbacks_of("on_complete"), callbacks_of("on_success"))


@st.composite
def alone(draw: st.DrawFn, order: Order) -> Order:
    """Under one of two keys, or not."""
    kind, key = draw(kinds_of_keys), draw(st.sampled_from("12"))
    if kind == "debounce":
        longest_ms = draw(st.sampled_from([0, 8]))
        return order._replace(kind=kind, pointer=f"d{key}", delay_ms=0, needs=(), longest_ms=longest_ms)
    return order._replace(kind=kind, pointer=kind and f"{'t' if kind == 'throttle' else 'a'}{key}")


@st.composite
def batches(draw: st.DrawFn) -> list[Order]:
    """A task waits seldom for one with a greater id, or most batches would close a cycle."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(IDS) - 1))
        first = IDS if draw(st.integers(0, 9)) == 0 else IDS[:at]
        needs = draw(st.lists(st.sampled_from(first), max_size=2, unique=True)) if first else []
        order = Order(
            draw(users),
            IDS[at],
            draw(st.sampled_from([3, 3, 3, 1, 5, 6])),
            draw(st.sampled_from([1.0, 1.0, 0.25, 7.25])),
            draw(st.sampled_from([0, 0, 0, 0, SOON_MS, LATE_MS])),
            draw(st.sampled_from(["t", *NAMES])),
            tuple(needs),
            draw(st.sampled_from(["wait", "cancel", "run"])),
            draw(st.sampled_from([True, True, True, False])),
            draw(st.sampled_from([0, 0, 0, SOON_MS, 10, LATE_MS])),
            draw(st.sampled_from(["keep", "keep", "replace", "replace", "error"])),
        )
        further = draw(st.lists(st.sampled_from(KEYS), max_size=2, unique=True))
        of_end, batch = draw(callbacks), draw(st.sampled_from(["", "first", "first", "last", "last"]))
        order = order._replace(limits=tuple(further), callbacks=of_end, batch=batch, size=draw(sizes))
        made.append(draw(alone(order)))
    return made


class BothMachine(RuleBasedStateMachine):
    """Everything that may happen to a queue. Which of it does is chosen once, or nothing would happen often."""

    def __init__(self, new_core: Callable[[], TimedCore]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.core = new_core()
        self.runner.run(self.core.__aenter__())
        self.mirror = Mirror(self.core)
        self.nonces = itertools.count(1)
        self.calls: list[tuple[list[Order], bytes]] = []
        self.is_sound = True
        self.fields: Sequence[str] = ()
        self.served: list[tuple[UserGroup, ...]] = [ANY_USER]
        self.has_links = self.has_limits = self.has_removals = self.has_delays = False
        self.has_expiry = self.has_conditions = self.has_callbacks = self.has_batches = self.has_deaths = False

    def both(self, call: Any) -> None:
        self.is_sound = False
        self.runner.run(call)
        self.is_sound = True

    @initialize(
        fields=st.lists(st.sampled_from(list(FIELDS)), max_size=4, unique=True),
        by_time=st.sampled_from([False, False, True]),
        links=st.booleans(),
        limits=st.booleans(),
        removals=st.booleans(),
        delays=st.booleans(),
        expiry=st.booleans(),
        conditions=st.booleans(),
        callbacks=st.booleans(),
        batches=st.booleans(),
        deaths=st.booleans(),
        served=st.one_of(st.just([ANY_USER]), st.lists(st.sampled_from(SERVED), min_size=1, max_size=4)),
    )
    def what_happens_in_this_game(
        self,
        fields: list[str],
        by_time: bool,
        links: bool,
        limits: bool,
        removals: bool,
        delays: bool,
        expiry: bool,
        conditions: bool,
        callbacks: bool,
        batches: bool,
        deaths: bool,
        served: list[tuple[UserGroup, ...]],
    ) -> None:
        self.fields, self.mirror.by_time, self.served = fields, by_time, served
        self.has_links, self.has_limits, self.has_removals, self.has_delays = links, limits, removals, delays
        self.has_expiry, self.has_conditions = expiry, conditions
        self.has_callbacks, self.has_batches, self.has_deaths = callbacks, batches, deaths

    @initialize(of_users=st.lists(policies, min_size=len(USERS) + 1, max_size=len(USERS) + 1))
    def some_have_policies(self, of_users: list[dict[str, Any]]) -> None:
        for user_id, fields in zip([EVERYONE, *USERS], of_users, strict=True):
            self.set_policy(user_id, fields)

    # Producers

    @rule(batch=batches())
    def enqueue(self, batch: list[Order]) -> None:
        made = [self.allowed(order) for order in batch]
        self.calls.append((made, next(self.nonces).to_bytes(8)))
        self.both(self.mirror.enqueue(*self.calls[-1]))

    def allowed(self, order: Order) -> Order:
        return order._replace(
            needs=order.needs if self.has_links else (),
            limits=order.limits if self.has_limits else (),
            name=order.name if self.has_limits or self.mirror.by_time else "t",
            delay_ms=order.delay_ms if self.has_delays else min(order.delay_ms, SOON_MS),
            expires_ms=order.expires_ms if self.has_expiry else 0,
            conflict=order.conflict if self.has_conditions else "keep",
            kind=order.kind if self.has_conditions else "",
            pointer=order.pointer if self.has_conditions else "",
            callbacks=self.allowed_callbacks(order.callbacks),
            batch=self.open_batch_of(order.user_id, order.batch) if self.has_batches else "",
        )

    def allowed_callbacks(self, callbacks: tuple[ModelCallback, ...]) -> tuple[ModelCallback, ...]:
        if not self.has_callbacks:
            return ()
        named = self.has_limits or self.mirror.by_time
        return tuple(
            of._replace(
                delay_ms=of.delay_ms if self.has_delays else min(of.delay_ms, SOON_MS),
                name=of.name if named else "t",
                after=self.allowed_callbacks(of.after),
            )
            for of in callbacks
        )

    def open_batch_of(self, user_id: str, pick: str) -> str:
        """One that takes more, if there is any, or most calls would be refused. Else what was asked for."""
        known = [of for of in self.mirror.model.batches.of.values() if of.user_id == user_id]
        taking = [batch.batch_id for batch in known if batch.state is BatchState.OPEN]
        if pick not in ("first", "last"):
            return pick
        return taking[0 if pick == "first" else -1] if taking else ""

    @precondition(lambda self: self.calls)
    @rule(back=st.integers(1, 3))
    def enqueue_again_because_the_reply_was_cut(self, back: int) -> None:
        self.both(self.mirror.enqueue(*self.calls[-min(back, len(self.calls))]))

    @precondition(lambda self: self.has_batches)
    @rule(user_id=users, batch=batch_ids, ttl_ms=st.sampled_from([10, LATE_MS, LATE_MS]), callbacks=of_batches)
    def open_batch(
        self, user_id: str, batch: str, ttl_ms: int, callbacks: tuple[tuple[ModelCallback, ...], ...]
    ) -> None:
        on_complete, on_success = map(self.allowed_callbacks, callbacks)
        self.both(self.mirror.open_batch(user_id, batch, ttl_ms, on_complete, on_success))

    @precondition(lambda self: self.has_batches)
    @rule(
        orders=batches(),
        batch=batch_ids,
        callbacks=of_batches,
        ends=st.sampled_from(["close", "close", "cancel", "goes on"]),
        want=wants,
        picks=picks,
        ending=endings,
    )
    def a_batch_is_filled_and_worked_at(
        self,
        orders: list[Order],
        batch: str,
        callbacks: tuple[tuple[ModelCallback, ...], ...],
        ends: str,
        want: int,
        picks: list[int],
        ending: Ending,
    ) -> None:
        key = orders[0].user_id, batch
        self.open_batch(*key, LATE_MS, callbacks)
        self.enqueue([order._replace(user_id=key[0], batch=batch) for order in orders])
        self.claim("w1", want, LONG_LEASE_MS, want, False)
        if ends == "close":
            self.both(self.mirror.close_batch(*key))
        elif ends == "cancel":
            self.both(self.mirror.cancel_batch(*key))
        if self.mirror.held:
            self.settle(picks, ending)

    @precondition(lambda self: self.has_batches and self.mirror.held)
    @rule(orders=batches(), picks=picks)
    def a_task_adds_to_its_batch(self, orders: list[Order], picks: list[int]) -> None:
        """It may have ended by now, or be in none."""
        counted = [of.model.task for of in self.mirror.held if of.model.task.ends and of.model.task.ends.batch]
        adder = counted[-1 - picks[0] % len(counted)] if counted else self.picked(picks)[0].model.task
        batch = adder.ends.batch if adder.ends else BATCHES[0]
        user_id, task_id = adder.key
        self.enqueue([order._replace(user_id=user_id, batch=batch, adder=task_id) for order in orders])

    @precondition(lambda self: self.mirror.model.batches.of)
    @rule(pick=st.integers(0, 7))
    def close_batch(self, pick: int) -> None:
        self.both(self.mirror.close_batch(*self.picked_batch(pick)))

    @precondition(lambda self: self.has_removals and self.mirror.model.batches.of)
    @rule(pick=st.integers(0, 7))
    def cancel_batch(self, pick: int) -> None:
        self.both(self.mirror.cancel_batch(*self.picked_batch(pick)))

    def picked_batch(self, pick: int) -> tuple[str, str]:
        known = list(self.mirror.model.batches.of)
        return known[pick] if pick < len(known) else (USERS[pick % len(USERS)], BATCHES[0])

    @precondition(lambda self: self.has_removals)
    @rule(user_id=users, task_id=ids)
    def cancel(self, user_id: str, task_id: str) -> None:
        self.both(self.mirror.cancel(user_id, task_id))

    @precondition(lambda self: self.has_removals)
    @rule(
        user_id=users,
        name=st.sampled_from(["", "", "t", NAMES[0]]),
        state=st.sampled_from([None, None, *(TaskState(of) for of in ("deferred", "scheduled", "queued", "started"))]),
        older_ms=st.sampled_from([-1, -1, 1, LATE_MS]),
    )
    def cancel_all(self, user_id: str, name: str, state: TaskState | None, older_ms: int) -> None:
        self.both(self.mirror.cancel_all(user_id, name, state, older_ms))

    @precondition(lambda self: self.has_delays)
    @rule(user_id=users, task_id=ids, priority=st.sampled_from([1, 3, 6]))
    def set_priority(self, user_id: str, task_id: str, priority: int) -> None:
        self.both(self.mirror.set_priority(user_id, task_id, priority))

    @precondition(lambda self: self.has_delays)
    @rule(user_id=users, task_id=ids, delay_ms=st.sampled_from([0, 0, SOON_MS, LATE_MS]))
    def reschedule(self, user_id: str, task_id: str, delay_ms: int) -> None:
        self.both(self.mirror.reschedule(user_id, task_id, delay_ms))

    @precondition(lambda self: self.has_removals)
    @rule(user_id=users, task_ids=st.lists(ids, min_size=1, max_size=3), picks=picks)
    def requeue(self, user_id: str, task_ids: list[str], picks: list[int]) -> None:
        """Such as have failed, where there are any."""
        if letters := self.mirror.model.letters():
            user_id = letters[picks[0] % len(letters)][0]
            mine = [task_id for owner, task_id in letters if owner == user_id]
            task_ids = [*task_ids[1:], *(mine[pick % len(mine)] for pick in picks)]
        self.both(self.mirror.requeue(user_id, *task_ids))

    @precondition(lambda self: self.has_removals)
    @rule(user_id=users, task_id=ids)
    def discard(self, user_id: str, task_id: str) -> None:
        self.both(self.mirror.discard(user_id, task_id))

    @precondition(lambda self: self.has_removals)
    @rule(user_id=users, chance=st.integers(0, 3))
    def purge(self, user_id: str, chance: int) -> None:
        if chance == 0:
            self.both(self.mirror.purge(user_id))

    # Workers

    def groups(self, pick: int) -> tuple[UserGroup, ...]:
        return self.served[pick % len(self.served)]

    @rule(
        worker=workers,
        want=wants,
        lease=leases,
        of=kinds_of_workers,
        steal=st.booleans(),
        has=st.sampled_from([(0, 0), (0, 0), (1, 0), (1, 0), (2, 1)]),
    )
    def claim(self, worker: str, want: int, lease: int, of: int, steal: bool, has: tuple[int, int] = (0, 0)) -> None:
        holds, suspects = has if self.has_deaths else (0, 0)
        how: Any = {"steal": steal, "holds": holds, "suspects": suspects}
        self.both(self.mirror.claim(worker, want, lease, self.groups(of), **how))

    @precondition(lambda self: self.has_deaths and self.mirror.held)
    @rule(picks=picks)
    def receive(self, picks: list[int]) -> None:
        self.both(self.mirror.receive(self.picked(picks)[0]))

    @precondition(lambda self: self.has_deaths and self.mirror.held)
    @rule(picks=picks)
    def accuse(self, picks: list[int]) -> None:
        self.both(self.mirror.accuse(self.picked(picks)[0]))

    @precondition(lambda self: self.has_deaths)
    @rule(
        want=st.integers(1, 3),
        deaths=st.lists(st.tuples(st.booleans(), st.sampled_from([0, 0, 1]), st.sampled_from([0, 1, 4])), max_size=6),
        of=kinds_of_workers,
        ending=endings,
    )
    def tasks_kill_their_workers(self, want: int, deaths: list[tuple[bool, int, int]], of: int, ending: Ending) -> None:
        """Deaths: whether what was taken over arrives, what its worker has beside it, and for how many ms it lives."""
        self.both(killings(self.mirror, self.groups(of), want, deaths, self.allowed_ending(ending)))

    @precondition(lambda self: self.mirror.held)
    @rule(picks=picks, ending=endings)
    def settle(self, picks: list[int], ending: Ending) -> None:
        self.both(self.mirror.settle(self.picked(picks), self.allowed_ending(ending)))

    def allowed_ending(self, ending: Ending) -> Ending:
        """Results that others depend on stay."""
        return ending._replace(
            delay_ms=ending.delay_ms if self.has_delays else min(ending.delay_ms, SOON_MS),
            ttl_ms=DAY_MS if self.has_links else ending.ttl_ms,
        )

    @rule(batch=batches(), want=wants, picks=picks, ending=endings)
    def work_comes_and_is_done(self, batch: list[Order], want: int, picks: list[int], ending: Ending) -> None:
        self.enqueue(batch)
        self.claim("w1", want, LONG_LEASE_MS, want, False)
        if self.mirror.held:
            self.settle(picks, ending)

    @rule(want=st.integers(1, 4), stolen=st.integers(1, 4), of=kinds_of_workers, ending=endings, late=endings)
    def a_worker_falls_silent_and_wakes_up_too_late(
        self, want: int, stolen: int, of: int, ending: Ending, late: Ending
    ) -> None:
        said = [self.allowed_ending(of)._replace(delay_ms=0) for of in (ending, late)]
        self.both(robbery(self.mirror, self.groups(of), want, stolen, *said))

    @rule(worker=workers, of=kinds_of_workers)
    def leave(self, worker: str, of: int) -> None:
        self.both(self.mirror.leave(worker, self.groups(of)))

    @precondition(lambda self: self.mirror.held)
    @rule(worker=workers, picks=picks, slots=st.sampled_from([0, 2, 6]))
    def renew(self, worker: str, picks: list[int], slots: int) -> None:
        self.is_sound = False
        self.mirror.renew(worker, self.picked(picks), slots)
        self.is_sound = True

    def picked(self, picks: list[int]) -> list[Held]:
        """The last deliveries more often than old ones; among them such as are settled or lost to others."""
        held = self.mirror.held
        return [held[max(-len(held), -1 - pick)] for pick in picks]

    # The operator

    @precondition(lambda self: self.fields)
    @rule(user_id=st.sampled_from([*USERS, EVERYONE]), fields=policies)
    def set_policy(self, user_id: str, fields: dict[str, Any]) -> None:
        changed = {name: value for name, value in fields.items() if name in self.fields}
        if isinstance(pause := changed.get("paused"), timedelta):
            changed["paused"] = datetime.fromtimestamp(self.core.now_us() / 1_000_000, UTC) + pause
        if user_id == EVERYONE:
            changed.pop("group", None)
        if changed:
            self.both(self.mirror.set_policy(user_id, **changed))

    @precondition(lambda self: "max_bytes" in self.fields)
    @rule(batch=batches(), by=st.sampled_from([0, 0, -1]))
    def what_comes_just_fits(self, batch: list[Order], by: int) -> None:
        order = self.allowed(batch[0])
        size = order.model_task(b"", 0).bytes
        self.set_policy(order.user_id, {"max_bytes": self.mirror.model.bytes.used(order.user_id) + size + by})
        self.enqueue([order])

    @precondition(lambda self: "max_bytes" in self.fields and self.mirror.held)
    @rule(picks=picks, ending=endings, by=st.sampled_from([0, 0, -1]))
    def what_is_left_just_fits(self, picks: list[int], ending: Ending, by: int) -> None:
        held = self.picked(picks)[0]
        size = self.mirror.left_by(held, ending)
        user_id = held.model.task.user_id
        self.set_policy(user_id, {"max_bytes": max(1, self.mirror.model.bytes.used(user_id) + size + by)})
        self.settle(picks[:1], ending)

    @precondition(lambda self: self.fields)
    @rule(user_id=st.sampled_from([*USERS, EVERYONE]))
    def clear_policy(self, user_id: str) -> None:
        self.both(self.mirror.clear_policy(user_id))

    @precondition(lambda self: "group" in self.fields)
    @rule(group=st.sampled_from(GROUPS), weight=st.sampled_from([None, 0.25, 2.0]))
    def weigh_group(self, group: str, weight: float | None) -> None:
        self.both(self.mirror.set_group(group, weight))

    @precondition(lambda self: self.has_limits)
    @rule(record=st.sampled_from(RECORDS), most=st.sampled_from([None, 1, 1, 2]), rate=st.sampled_from([None, *RATES]))
    def limit(self, record: str, most: int | None, rate: Rate | None) -> None:
        self.both(self.mirror.set_limit(record, most, rate))

    @precondition(lambda self: self.has_limits)
    @rule(record=st.sampled_from([*map(record_of, NAMES), record_of("c:1")]), is_paused=st.booleans())
    def pause_task(self, record: str, is_paused: bool) -> None:
        self.both(self.mirror.pause_task(record, is_paused=is_paused))

    @rule(ms=st.sampled_from([1, SOON_MS, 10, 1000, LATE_MS]))
    def time_passes(self, ms: int) -> None:
        self.core.wait_until_ms(self.core.now_us() // 1000 + (ms if self.has_delays else min(ms, 10)))

    def teardown(self) -> None:
        try:
            if self.is_sound:
                self.runner.run(finish(self.mirror))
        finally:
            self.core.forget()
            self.runner.run(self.core.__aexit__(None, None, None))
            self.runner.close()


async def robbery(
    mirror: Mirror, groups: Sequence[UserGroup], want: int, stolen: int, ending: Ending, late: Ending
) -> None:
    """A worker falls silent and wakes up too late."""
    silent = await mirror.claim("silent", want, SHORT_LEASE_MS, groups)
    taken = await mirror.claim("thief", stolen, SHORT_LEASE_MS, groups)
    mirror.renew("silent", silent)
    await mirror.settle(taken, ending)
    await mirror.settle(silent, late)


async def killings(
    mirror: Mirror, groups: Sequence[UserGroup], want: int, deaths: list[tuple[bool, int, int]], ending: Ending
) -> None:
    taken = await mirror.claim("dies", want, SHORT_LEASE_MS, groups)
    for at, (arrives, holds, lives_ms) in enumerate(deaths):
        for held in taken if arrives else []:
            await mirror.receive(held)
        if lives_ms:
            mirror.core.wait_until_ms(mirror.core.now_us() // 1000 + lives_ms)
            mirror.renew(taken[0].worker if taken else "dies", taken)
        taken = await mirror.claim(DYING[at % len(DYING)], 1, SHORT_LEASE_MS, groups, holds=holds)
    if taken:
        await mirror.settle(taken, ending)


async def finish(mirror: Mirror) -> None:
    """All is served in the end, and nothing stays but what waits for ever."""
    for record in list(mirror.model.limits.rules.of):
        await mirror.set_limit(record, None, None)
        await mirror.pause_task(record, is_paused=False)
    for group in mirror.model.choice.group_weights():
        await mirror.set_group(group, None)
    for user_id in [*USERS, EVERYONE]:
        await mirror.clear_policy(user_id)
    await _serve_all(mirror)
    await _give_up(mirror)
    for worker in ALL_WORKERS:
        for groups in SERVED:
            await mirror.leave(worker, groups)
    await _nothing_stays(mirror.core)


async def _serve_all(mirror: Mirror) -> None:
    """Until nothing moves any more but by hand, and each batch is closed or abandoned."""
    model = mirror.model
    for _ in range(50):
        mirror.core.wait_until_ms(mirror.core.now_us() // 1000 + LATE_MS)
        await mirror.claim("last", 50, SHORT_LEASE_MS)
        for worker in ALL_WORKERS:
            out = [held for held in mirror.held if held.is_out and held.worker == worker]
            await mirror.settle(out, ending_of("finished", 0, 0.0, 0.0))
        are_open = any(batch.state is BatchState.OPEN for batch in model.batches.of.values())
        if not (model.lanes or model.due or model.limits.lines.tasks or are_open):
            return


async def _give_up(mirror: Mirror) -> None:
    """What waits for ever, and dead letters, which keep what they were given by others. Their callbacks are served."""
    while mirror.model.tasks or mirror.model.letters():
        assert all(task.state is TaskState.DEFERRED for task in mirror.model.tasks.values())
        for user_id, task_id in list(mirror.model.tasks):
            await mirror.cancel(user_id, task_id)
        for user_id, task_id in mirror.model.letters():
            await mirror.discard(user_id, task_id)
        await _serve_all(mirror)


async def _nothing_stays(core: TimedCore) -> None:
    dump = core.dump()
    lasting = {name: key.content for name, key in dump.items() if not (key.expires or name.startswith("told"))}
    of_bytes = {name for name in lasting if name.startswith(("bytes", "weighed"))}  # counted on with the renewals
    assert lasting.keys() - {"left"} - of_bytes <= {"state", "users"}, lasting
