"""Tasks that wait for each other, whatever is done with them: the scripts against a small model of states."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from fairque.errors import DependencyError
from fairque.redis import script_caller
from fairque.redis.delivery import Delivery, Needs, Outcome
from fairque.redis.keys import encode_user
from fairque.redis.scripts import CORE, Script, load
from fairque.tasks.message import new_nonce
from tests.support.core import Core, new_task, outcome
from tests.support.servers import Server
from tests.support.workflow_model import LIVING, Found, UserModel, Wish

USERS = ("a", "b:c")
IDS = ("1", "2", "3", "x:y", "5", "6")
LATE_MS = 600_000
PLAYS = 80

KINDS = ("finished", "finished", "finished", "failed", "failed", "retry", "released", "canceled")
STEPS = {"enqueue": 30, "claim": 12, "settle": 25, "cancel": 6, "requeue": 8, "discard": 6, "purge": 1}


class Dice:
    """What to do next, the same for each seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def steps(self, number: int) -> list[tuple[Any, ...]]:
        names = self._random.choices(list(STEPS), list(STEPS.values()), k=number)
        return [(name, *getattr(self, name)()) for name in names]

    def enqueue(self) -> tuple[Any, ...]:
        """Seldom against the order of the ids, or most would close a cycle."""
        batch = []
        for at in sorted(self._random.sample(range(len(IDS)), self._random.choice([1, 1, 2, 4]))):
            others = range(len(IDS)) if self._random.random() < 0.1 else range(at)
            needs = self._random.sample(others, min(len(others), self._random.choice([0, 1, 1, 2, 3])))
            policy = self._random.choice(["wait", "cancel", "run"])
            allows, delayed = self._random.random() < 0.8, self._random.random() < 0.15
            batch.append(Wish(IDS[at], tuple(IDS[need] for need in needs), policy, allows, delayed))
        self._random.shuffle(batch)
        return self._user(), batch

    def claim(self) -> tuple[Any, ...]:
        return (self._random.randint(1, 4),)

    def settle(self) -> tuple[Any, ...]:
        return [self._random.randrange(6) for _ in range(3)], self._random.choice(KINDS), self._random.random() < 0.2

    def cancel(self) -> tuple[Any, ...]:
        return self._user(), self._random.choice(IDS)

    requeue = discard = cancel

    def purge(self) -> tuple[Any, ...]:
        return (self._user(),)

    def _user(self) -> str:
        return self._random.choice(USERS)


class Play:
    """Does everything twice and compares. Without `models`, it only looks whether Redis contradicts itself."""

    def __init__(self, core: Core, *, with_models: bool) -> None:
        self.core = core
        self.models = {user_id: UserModel() for user_id in USERS}
        self.with_models = with_models
        self.held: dict[tuple[str, str], Delivery] = {}

    async def run(self, steps: list[Any]) -> None:
        async with self.core:
            try:
                for name, *arguments in steps:
                    await getattr(self, name)(*arguments)
                    self.compare()
                await self.finish()
            finally:
                self.core.forget()

    def compare(self) -> Found:
        found = Found(self.core.dump())
        found.check()
        if self.with_models:
            for user_id, model in self.models.items():
                states = {task_id: task.state for task_id, task in model.tasks.items()}
                assert found.of_user(user_id) == states
                user = encode_user(user_id)
                needs = {task_id: task.needs for task_id, task in model.tasks.items() if task.state == "deferred"}
                assert needs == {task_id: ids for (owner, task_id), ids in found.needs.items() if owner == user}
                uses = {task_id: task.uses for task_id, task in model.tasks.items() if task.uses}
                assert uses == {task_id: ids for (owner, task_id), ids in found.uses.items() if owner == user}
        return found

    async def enqueue(self, user_id: str, batch: list[Wish]) -> None:
        model, nonce = self.models[user_id], new_nonce()
        made = []
        for wish in batch:
            needs = msgspec.msgpack.encode(Needs(wish.policy, wish.allow_unknown, list(wish.needs)))
            new = new_task(user_id, wish.task_id, 3, 1.0, LATE_MS if wish.delayed else 0, nonce)
            made.append(new._replace(needs=needs if wish.needs else b""))
        if not self.with_models:
            try:
                await self.core.enqueue_all(made)
            except DependencyError:
                return
        elif refusal := model.refusal(batch):
            with pytest.raises(DependencyError, match="wait for each other" if refusal == "cycle" else "depends on"):
                await self.core.enqueue_all(made)
        else:
            assert await self.core.enqueue_all(made) == model.enqueue(batch)

    async def claim(self, want: int) -> None:
        for delivery in await self.core.take(want):
            self.held[delivery.user_id, delivery.id] = delivery
            if self.with_models:
                task = self.models[delivery.user_id].tasks[delivery.id]
                assert task.state == "queued"
                task.state = "started"

    async def settle(self, picks: list[int], kind: str, later: bool) -> None:
        pairs = sorted(self.held)
        chosen = [pairs[pick] for pick in sorted(set(picks)) if pick < len(pairs)]
        later = later and kind in ("retry", "released")
        outcomes = [self.outcome(self.held.pop(pair), kind, LATE_MS if later else 0) for pair in chosen]
        if not chosen:
            return
        assert all(await self.report(outcomes))
        assert all(await self.report(outcomes)), "said twice, done once"
        if self.with_models:
            for user_id, task_id in chosen:
                self.models[user_id].settle(task_id, kind, later=later)

    def outcome(self, delivery: Delivery, kind: str, delay_ms: int = 0) -> Outcome:
        return Outcome(delivery, kind, error=b"why") if kind == "canceled" else outcome(delivery, kind, delay_ms)

    async def report(self, outcomes: list[Outcome]) -> list[bool]:
        return await self.core.store.settle("w", outcomes)

    async def cancel(self, user_id: str, task_id: str) -> None:
        answer = await self.core.store.cancel(user_id, task_id, "why")
        if self.with_models:
            assert answer == self.models[user_id].cancel(task_id)

    async def requeue(self, user_id: str, task_id: str) -> None:
        answer = await self.core.store.requeue(user_id, [task_id])
        if self.with_models:
            assert answer == [self.models[user_id].requeue(task_id)]

    async def discard(self, user_id: str, task_id: str) -> None:
        answer = await self.core.store.discard(user_id, [task_id])
        if self.with_models:
            assert answer == [self.models[user_id].discard(task_id)]

    async def purge(self, user_id: str) -> None:
        await self.purge_once(user_id)
        running = [pair for pair in self.held if pair[0] == user_id]
        outcomes = [self.outcome(self.held.pop(pair), "canceled") for pair in running]
        await self.report(outcomes)
        await self.purge_once(user_id)
        self.models[user_id] = UserModel()
        await self.pass_on()
        user = encode_user(user_id)
        dump = self.core.dump()
        assert [name for name in dump if user in name.split(":")[1:]] == []
        for name in ("ready", "due", "users", "dead", "leases", "lapsing"):
            if name in dump:
                members = [member for member, _ in dump[name].pairs]
                assert not [member for member in members if user in member.split(":")], name
        assert not [field for field in self.core.state() if user in field.split(":")]

    async def purge_once(self, user_id: str) -> None:
        """In steps of two, each of which leaves everything in order."""
        while True:
            *erased, more = await self.core.store.purge_step(user_id, 2)
            Found(self.core.dump()).check()
            if not more or not any(erased):
                break
        await self.core.store.erase_results(user_id)
        await self.core.store.purge_step(user_id, 2)

    async def pass_on(self) -> None:
        """Until nothing is put off."""
        for _ in range(200):
            if int(self.core.state().get("announcements", 0)) == 0:
                return
            await self.core.take(0)
        raise AssertionError("the announcements have no end")

    async def finish(self) -> None:
        """Everything that can end does, and nothing stays but results and what waits for ever."""
        for _ in range(100):
            await self.pass_on()
            await self.claim(20)
            if not self.held:
                break
            await self.settle(list(range(20)), "finished", later=False)
        self.compare()
        for user_id in USERS:
            for task_id in IDS:
                await self.cancel(user_id, task_id)
                await self.discard(user_id, task_id)
                await self.pass_on()
        found = self.compare()
        assert not found.put_off
        assert not [state for state in found.states.values() if state in LIVING]
        assert not found.needs
        assert not found.uses
        assert not found.feeds
        lasting = {name for name, key in found.dump.items() if not key.expires}
        assert lasting <= {"state", "users", "workers"}


def play_all(server: Server, queue_name: str, *, with_models: bool) -> None:
    for seed in range(PLAYS):
        core = Core(server.url, f"{queue_name}/{seed}")
        try:
            asyncio.run(Play(core, with_models=with_models).run(Dice(seed).steps(60)))
        except AssertionError as exc:
            exc.add_note(f"in the play with seed {seed}")
            raise


def test_whatever_is_done_the_scripts_and_the_model_agree(server: Server, queue_name: str) -> None:
    play_all(server, queue_name, with_models=True)


LARGE, SMALL = b"local STEP, TURN = 500, 50", b"local STEP, TURN = 2, 1"


def in_small_steps(real: Callable[..., Script]) -> Callable[..., Script]:
    """The scripts, made to put nearly everything off: one or two are informed at a time."""

    def load_small(name: str, package: str = CORE) -> Script:
        script = real(name, package)
        function = script.function + b"_small"
        library = script.library.replace(script.function, function).replace(LARGE, SMALL)
        return script._replace(function=function, source=script.source.replace(LARGE, SMALL), library=library)

    return load_small


def test_what_is_put_off_and_overtaken_contradicts_nothing(
    server: Server, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script_caller, "load", in_small_steps(load))
    play_all(server, queue_name, with_models=False)
