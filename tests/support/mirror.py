"""The scripts and their model side by side: each call goes to both, and everything that can be seen is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from fairque.errors import QueueFull
from fairque.fairness import model_queue
from fairque.fairness.model_queue import Ending, Kind, ModelQueue, ModelTask
from fairque.models import ANY_USER, EVERYONE, UserGroup
from fairque.policy import Policy, Rate, changes_of
from fairque.redis.delivery import Answer, Delivery, NewTask
from fairque.redis.keys import encode_user
from fairque.tasks.message import Message, encode_body
from tests.support.core import MAX_BODY, STEP_MS, outcome
from tests.support.mirror_view import agree, ended, expected, seen
from tests.support.tenants import limit
from tests.support.timed import TimedCore

IDLE_MS = 3
"""A lease of 1 ms is over for certain after this time, one of ten minutes never is."""
_EXPIRING = ("user:", "group:", "metrics:")
_NO_ARGS = msgspec.Raw(b"\x90")


class Order(NamedTuple):
    """What is asked for in an enqueue."""

    user_id: str
    task_id: str
    priority: int
    cost: float
    delay_ms: int
    name: str = "t"

    def new_task(self, nonce: bytes) -> NewTask:
        body = encode_body(Message(self.name, _NO_ARGS), nonce, self.cost, self.priority, MAX_BODY)
        return NewTask(self.user_id, self.task_id, self.priority, f"+{self.delay_ms}" if self.delay_ms else "", body)

    def model_task(self, nonce: bytes, now_ms: int) -> ModelTask:
        start_ms = now_ms + self.delay_ms if self.delay_ms else 0
        return ModelTask(*self[:4], nonce=nonce, start_ms=start_ms, name=self.name)


class Held(NamedTuple):
    """One delivery, as the scripts and as the model gave it out."""

    real: Delivery
    model: model_queue.ModelDelivery

    @property
    def is_out(self) -> bool:
        """Not settled yet, and not stolen."""
        return self.model.task.delivery == self.model.fence


class Mirror:
    """Does everything twice. Raises AssertionError where the scripts and the model part ways."""

    def __init__(self, core: TimedCore) -> None:
        self.core = core
        self.model = ModelQueue(STEP_MS)
        self.held: list[Held] = []
        self.said: dict[int, tuple[Kind, int, float]] = {}  # outcomes are repeated as they were given
        self.refused = 0
        self._stream_ids: dict[int, bytes] = {}
        self._last_touch_ms = 0

    # Tasks

    async def enqueue(self, orders: Sequence[Order], nonce: bytes) -> None:
        created = await self._created([order.new_task(nonce) for order in orders])
        now_us = self.core.told_us()
        try:
            expected = self.model.enqueue(now_us, [order.model_task(nonce, now_us // 1000) for order in orders])
        except QueueFull:
            expected = []
            self.refused += 1
        agree("created", created, expected)
        self.compare()

    async def _created(self, tasks: Sequence[NewTask]) -> list[bool]:
        try:
            return await self.core.enqueue_all(tasks)
        except QueueFull:
            return []

    async def claim(
        self, worker: str, want: int, lease_ms: int, groups: Sequence[UserGroup] = ANY_USER, *, steal: bool = True
    ) -> list[Held]:
        self.core.wait_until_ms(self._last_touch_ms + IDLE_MS)
        how: Any = {"lease_ms": lease_ms, "groups": groups, "steal": steal}
        claim = await self.core.claim(want, worker=worker, wait=True, **how)
        now_us = self.core.told_us()
        made = self.model.claim(now_us, worker, want, **how)
        agree("deliveries", [_told(of) for of in claim.deliveries], [_modelled(of) for of in made])
        taken = [Held(*pair) for pair in zip(claim.deliveries, made, strict=True)]
        for held in taken:
            known = self._stream_ids.setdefault(held.model.fence.stream_id, held.real.stream_id)
            agree("place in the stream", held.real.stream_id, known)
        self.held += taken
        self._last_touch_ms = now_us // 1000
        self._compare_sleep(claim.sleep, worker, groups, steal=steal, is_short=len(taken) < want)
        self.compare()
        return taken

    def _compare_sleep(
        self, sleep: float | None, worker: str, groups: Sequence[UserGroup], *, steal: bool, is_short: bool
    ) -> None:
        now_us = self.core.told_us()
        if is_short:
            at_ms = self.model.sleep_until_ms(now_us, worker, groups, steal=steal)
            agree_about_sleep(sleep, None if at_ms is None else at_ms - now_us // 1000)
        else:
            self.model.moments.hand_on(worker)
            assert sleep == 0

    async def settle(self, picked: Sequence[Held], kind: Kind, delay_ms: int, charge: float = 0.0) -> list[Answer]:
        """An outcome that was given before is given again, whatever `kind` says.

        Only the last outcome of a task is remembered as done: how an older one is answered, if it comes again, is open.
        """
        is_repeated = [id(of.real) in self.said for of in picked]
        said = [self.said.setdefault(id(of.real), (kind, delay_ms, charge)) for of in picked]
        outcomes = [outcome(of.real, *words[:2]) for of, words in zip(picked, said, strict=True)]
        for each, words in zip(outcomes, said, strict=True):
            each.charge = words[2]
        answers = await self.core.store.settle("w", outcomes)
        endings = [Ending(of.model, *words) for of, words in zip(picked, said, strict=True)]
        expected = self.model.settle_all(self.core.told_us(), endings)
        is_open = [again and not answer for again, answer in zip(is_repeated, expected, strict=True)]
        agree("settled", _without(answers, is_open), _without(expected, is_open))
        self.compare()
        return answers

    def renew(self, worker: str, picked: Sequence[Held]) -> None:
        lost = self.core.renew(worker, [of.real for of in picked])
        self._last_touch_ms = int(dict(self.core.dump()["workers"].scores)[worker])
        expected = self.model.renew(self._last_touch_ms * 1000, worker, [of.model for of in picked])
        agree("lost", lost, [of.real for of in picked if any(of.model is model for model in expected)])
        self.compare()

    # Policies and limits

    async def set_policy(self, user_id: str, **fields: Any) -> None:
        """None forgets a field."""
        whose = user_id if user_id == EVERYONE else encode_user(user_id)
        await self.core.store.set_policy(whose, *changes_of(fields))
        self.model.set_policy(self.core.told_us(), user_id, **fields)
        self.compare()

    async def clear_policy(self, user_id: str) -> None:
        whose = user_id if user_id == EVERYONE else encode_user(user_id)
        await self.core.store.set_policy(whose, {}, ["*"])
        self.model.set_policy(self.core.told_us(), user_id, **dict.fromkeys(Policy.__struct_fields__))
        self.compare()

    async def set_group(self, group: str, weight: float | None) -> None:
        await self.core.store.set_policy(f"@{encode_user(group)}", *changes_of({"weight": weight}))
        self.model.choice.set_group_weight(group, weight)
        self.model.forget_reserved()
        self.compare()

    async def set_limit(self, name: str, max_running: int | None, rate: Rate | None) -> None:
        await limit(self.core, name, max_running, rate)
        self.model.set_limit(self.core.told_us(), name, max_running, rate)
        self.compare()

    # What is visible

    def compare(self) -> None:
        dump = self.core.dump()
        found = seen(dump, self.model)
        agree("keys", found, expected(self.model, self._stream_ids))
        for name in found:
            expires = name in dump and dump[name].expires
            assert expires == (name.startswith(_EXPIRING) or name in ended(self.model)), f"when {name} expires"


def agree_about_sleep(sleep: float | None, left_ms: float | None) -> None:
    if sleep is None or left_ms is None:
        assert sleep is left_ms, f"sleeps for {sleep}, something is due in {left_ms} ms"
    else:
        too_long = round(sleep * 1000, 6) - max(0, left_ms)
        assert 0 <= too_long < 1, f"a worker sleeps until something is due and no longer, this one {too_long} ms"


def _without(answers: Sequence[Answer], is_open: list[bool]) -> list[Answer | None]:
    return [None if skip else answer for answer, skip in zip(answers, is_open, strict=True)]


def _told(of: Delivery) -> tuple[object, ...]:
    history = of.failures, of.lost, of.returned, of.returned_since_ms
    return of.user_id, of.id, of.lane.decode(), of.attempt, history


def _modelled(of: model_queue.ModelDelivery) -> tuple[object, ...]:
    return of.task.user_id, of.task.task_id, of.task.lane, of.fence.attempt, of.history
