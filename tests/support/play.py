"""Random play on scripts and model: producers, workers that come, go and fall silent, and an operator."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fairque.fairness.model_task import Kind
from fairque.models import ANY_USER, EVERYONE, TaskState
from tests.support.core import LONG_LEASE_MS
from tests.support.mirror import Held, Mirror, Order
from tests.support.timed import TimedCore

# Shrinking what failed takes longer than a test may: add Phase.shrink, and pytest's --timeout 0, to look for less.
examples = settings(derandomize=True, phases=(Phase.explicit, Phase.generate))
SHORT_LEASE_MS = 1
SOON_MS, LATE_MS = 2, 600_000
USERS = ["a", "b:c", "b%3Ac", "{é}*\n\0"]
IDS = ["1", "2", "b:c", "*\n", "é", "x" * 80]
WORKERS = ["w1", "w2", "w3"]

users = st.sampled_from(USERS)
orders = st.builds(
    Order,
    users,
    st.sampled_from(IDS),
    st.integers(1, 6),
    st.sampled_from([1.0, 1.0, 0.25, 7.3]),
    st.sampled_from([0, 0, 0, SOON_MS, LATE_MS]),
)
groups = st.sampled_from(
    [
        ANY_USER,
        ANY_USER,
        (("a", "b:c"),),
        (("b:c",), ()),
        (("nobody",), ("b%3Ac",)),
        (("a", "a"), ("{é}*\n\0", "a")),
        (("a",), ("a",)),
    ]
)
kinds = st.sampled_from(["finished", "finished", "failed", "retry", "released"])
picks = st.lists(st.integers(0, 7), min_size=1, max_size=4)


class BothMachine(RuleBasedStateMachine):
    """Producers, workers that come, go, fall silent and wake up too late, and an operator who changes weights."""

    def __init__(self, new_core: Callable[[], TimedCore]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.core = new_core()
        self.runner.run(self.core.__aenter__())
        self.mirror = Mirror(self.core)
        self.nonces = itertools.count(1)
        self.calls: list[tuple[list[Order], bytes]] = []
        self.is_sound = True

    def both(self, call: Any) -> None:
        self.is_sound = False
        self.runner.run(call)
        self.is_sound = True

    @initialize(later=st.booleans())
    def some_tasks_are_for_much_later(self, later: bool) -> None:
        self.longest_delay = LATE_MS if later else SOON_MS

    @rule(batch=st.lists(orders, min_size=1, max_size=6))
    def enqueue(self, batch: list[Order]) -> None:
        batch = [order._replace(delay_ms=min(order.delay_ms, self.longest_delay)) for order in batch]
        self.calls.append((batch, next(self.nonces).to_bytes(8)))
        self.both(self.mirror.enqueue(*self.calls[-1]))

    @precondition(lambda self: self.calls)
    @rule(back=st.integers(1, 3))
    def enqueue_again_because_the_reply_was_cut(self, back: int) -> None:
        self.both(self.mirror.enqueue(*self.calls[-min(back, len(self.calls))]))

    @rule(
        worker=st.sampled_from(WORKERS),
        want=st.integers(1, 6),
        lease=st.sampled_from([SHORT_LEASE_MS, SHORT_LEASE_MS, LONG_LEASE_MS]),
        of=groups,
        steal=st.sampled_from([True, True, True, False]),
    )
    def claim(self, worker: str, want: int, lease: int, of: Any, steal: bool) -> None:
        self.both(self.mirror.claim(worker, want, lease, of, steal=steal))

    @rule(picks=picks, kind=kinds, delay=st.sampled_from([0, 0, SOON_MS, LATE_MS]))
    def settle(self, picks: list[int], kind: Any, delay: int) -> None:
        delay = min(delay, self.longest_delay) if kind in ("retry", "released") else 0
        if picked := self.picked(picks):
            self.both(self.mirror.settle(picked, kind, delay))

    @rule(want=st.integers(1, 4), stolen=st.integers(1, 4), kind=kinds, late=kinds)
    def a_worker_falls_silent_and_wakes_up_too_late(self, want: int, stolen: int, kind: Any, late: Any) -> None:
        self.both(robbery(self.mirror, want, stolen, kind, late))

    @rule(worker=st.sampled_from(WORKERS), picks=picks)
    def renew(self, worker: str, picks: list[int]) -> None:
        if picked := self.picked(picks):
            self.is_sound = False
            self.mirror.renew(worker, picked)
            self.is_sound = True

    @rule(user_id=users, weight=st.sampled_from([None, 0.5, 3.0, 10.0]))
    def change_weight(self, user_id: str, weight: float | None) -> None:
        self.both(self.mirror.set_policy(user_id, weight=weight))

    @rule()
    def time_passes(self) -> None:
        self.core.wait_until_ms(self.core.now_us() // 1000 + SOON_MS)

    def picked(self, picks: list[int]) -> list[Held]:
        """The last deliveries more often than old ones; among them such as are settled or lost to others.

        Nothing as long as there are none: what was delivered depends on the time, which no precondition may do.
        """
        held = self.mirror.held
        return [held[max(-len(held), -1 - pick)] for pick in picks if held]

    def teardown(self) -> None:
        try:
            if self.is_sound:
                self.runner.run(finish(self.mirror))
        finally:
            self.core.forget()
            self.runner.run(self.core.__aexit__(None, None, None))
            self.runner.close()


async def robbery(mirror: Mirror, want: int, stolen: int, kind: Kind, late: Kind) -> None:
    """A worker falls silent and wakes up too late."""
    silent = await mirror.claim("silent", want, SHORT_LEASE_MS)
    taken = await mirror.claim("thief", stolen, SHORT_LEASE_MS)
    mirror.renew("silent", silent)
    await mirror.settle(taken, kind, 0)
    await mirror.settle(silent, late, 0)


async def finish(mirror: Mirror) -> None:
    """All is served in the end, and nothing stays."""
    for name in list(mirror.model.limits.limits):
        await mirror.set_limit(name, None, None)
    for group in mirror.model.choice.group_weights():
        await mirror.set_group(group, None)
    for user_id in [*USERS, EVERYONE]:
        await mirror.clear_policy(user_id)
    for _ in range(50):
        mirror.core.wait_until_ms(mirror.core.now_us() // 1000 + SOON_MS)
        await mirror.claim("last", 50, SHORT_LEASE_MS)
        await mirror.settle([held for held in mirror.held if held.is_out], "finished", 0)
        if not (mirror.model.lanes or _is_something_due_soon(mirror)):
            break
    assert all(task.state is TaskState.SCHEDULED for task in mirror.model.tasks.values())
    if not mirror.model.tasks:
        await _nothing_stays(mirror.core)


def _is_something_due_soon(mirror: Mirror) -> bool:
    soon = mirror.core.now_us() / 1000 + LATE_MS / 2
    return any(at < soon for at in mirror.model.due.scores.values())


async def _nothing_stays(core: TimedCore) -> None:
    for worker in [*WORKERS, "silent", "thief", "last"]:
        await core.store.leave(worker, [[*USERS, "nobody"]])
    lasting = {name for name, key in core.dump().items() if not key.expires}
    assert lasting <= {"state", "users", "told"}
    assert not [field for field in core.state() if field.startswith("cursor:")]
