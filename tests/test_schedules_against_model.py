"""Schedules in Redis against a model of their rules, whatever is done with them, and however much time passes."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from fairque import InvalidInput, Task, TaskQueue, TaskScheduler, TaskState
from fairque.redis.delivery import Delivery
from tests.support.core import outcome
from tests.support.schedule_model import MISFIRE_LIMIT, Definition, ModelSchedule, ModelUser
from tests.support.servers import Server

T = TypeVar("T")
GAMES = int(os.environ.get("FAIRQUE_GAMES", "100")) // 2
HALF_HOUR_MS = 1_800_000
A_BIT_MS = 997
"""No two slots are at the same moment, or their tasks would have the same id. All those of a game are in the grace."""
USERS = {"s": "anna", "t": "zoe"}
"""Whose each schedule is."""

ids = st.sampled_from(list(USERS))
definitions = st.builds(
    Definition,
    every=st.sampled_from([2, 2, 4]),
    max_runs=st.sampled_from([None, None, None, None, 2, 5]),
    overlap=st.sampled_from(["skip", "cancel_running", "allow"]),
    misfire=st.sampled_from(["once", "skip", "all"]),
    number=st.integers(0, 1),
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "every": st.sampled_from([2, 4]),
        "max_runs": st.sampled_from([None, None, None, 1, 5]),
        "overlap": st.sampled_from(["skip", "cancel_running", "allow"]),
        "misfire": st.sampled_from(["once", "skip", "all"]),
    },
)


class ScheduleMachine(RuleBasedStateMachine):
    """Each schedule is its user's only one, so that the order in which two fire at the same moment is of no matter."""

    def __init__(self, server: Server, queue_name: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.server = server
        self.queue = TaskQueue(server.url, name=queue_name, lease=600)
        self.wait(self.queue.open())
        self.scheduler = TaskScheduler(self.queue)
        self.store = self.queue.store()
        self.now = 0
        self.users = {user_id: ModelUser() for user_id in USERS.values()}
        self.models: dict[str, ModelSchedule] = {}
        self.held: dict[str, Delivery] = {}

    def wait(self, call: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await call

        return self.runner.run(awaited())

    def teardown(self) -> None:
        self.wait(self.store.close())
        self.wait(self.queue.close())
        self.server.forget(self.queue.name)
        self.runner.close()

    # What is done to schedules

    @initialize(first=definitions, second=definitions)
    def begin(self, first: Definition, second: Definition) -> None:
        for name, definition in zip(USERS, (first, second), strict=True):
            self.add(name, definition)

    @rule(name=ids, definition=definitions)
    def add(self, name: str, definition: Definition) -> None:
        self.wait(self.scheduler.add_schedule(user_id=USERS[name], schedule_id=name, **options_of(definition)))
        if name in self.models:
            self.models[name].add(definition, self.now)
        else:
            self.models[name] = ModelSchedule(self.users[USERS[name]], definition, self.now)
        self.compare(name)

    @rule(name=ids, definition=definitions, is_same=st.booleans())
    def add_again(self, name: str, definition: Definition, is_same: bool) -> None:
        """By its user as it is, or by somebody else."""
        if name not in self.models:
            return
        if is_same:
            self.add(name, self.models[name].definition)
        else:
            with pytest.raises(InvalidInput, match="taken"):
                self.wait(self.scheduler.add_schedule(user_id="mallory", schedule_id=name, **options_of(definition)))
            self.compare(name)

    @precondition(lambda self: self.models)
    @rule(name=ids, changed=changes)
    def update(self, name: str, changed: dict[str, Any]) -> None:
        if name not in self.models:
            return
        model = self.models[name]
        definition = replace(model.definition, **changed)
        given = {key: value for key, value in options_of(definition).items() if key in changed}
        if model.may_change(definition):
            self.wait(self.scheduler.update_schedule(name, **given))
            model.change(definition, self.now)
        else:
            with pytest.raises(InvalidInput):
                self.wait(self.scheduler.update_schedule(name, **given))
        self.compare(name)

    @precondition(lambda self: self.models)
    @rule(name=ids, pauses=st.sampled_from([True, False, False, False]))
    def pause_or_resume(self, name: str, pauses: bool) -> None:
        if name not in self.models:
            return
        call = self.scheduler.pause_schedule if pauses else self.scheduler.resume_schedule
        model = self.models[name]
        if model.state == "ended":
            with pytest.raises(InvalidInput, match="has ended"):
                self.wait(call(name))
        else:
            self.wait(call(name))
            model.resume(self.now)
            if pauses:
                model.state = "paused"
        self.compare(name)

    @rule(name=ids, asked=st.integers(0, 3))
    def remove(self, name: str, asked: int) -> None:
        if asked:  # seldom
            return
        assert self.wait(self.scheduler.remove_schedule(name)) == (self.models.pop(name, None) is not None)

    @precondition(lambda self: self.models)
    @rule(name=ids)
    def run_now(self, name: str) -> None:
        if name not in self.models:
            return
        if self.models[name].run_now():
            self.wait(self.scheduler.run_now(name))
        else:
            with pytest.raises(InvalidInput, match="full"):
                self.wait(self.scheduler.run_now(name))
        self.compare(name)

    # Time

    @precondition(lambda self: self.models)
    @rule(started=st.integers(0, 4), half_hours=st.integers(1, 2))
    def let_time_pass(self, started: int, half_hours: int) -> None:
        """While a worker takes some tasks."""
        if started:
            self.start_tasks(started)
        self.come_back(half_hours)

    @precondition(lambda self: self.models)
    @rule(half_hours=st.sampled_from([2, 3, 5, 20]))
    def come_back_after_a_downtime(self, half_hours: int) -> None:
        self.come_back(half_hours)

    def come_back(self, half_hours: int) -> None:
        for name in self.models:
            self.rewind(name, half_hours * HALF_HOUR_MS + A_BIT_MS)
        self.now += half_hours
        self.wait(self.scheduler.fire_due())
        for name, model in self.models.items():
            model.fire(self.now)
            self.compare(name)

    def rewind(self, name: str, ms: int) -> None:
        """As if all of it had been so much earlier."""
        key, users = f"{self.queue.keys.prefix}schedule:{name}", f"{self.queue.keys.prefix}schedules"
        user = self.server.execute("HGET", key, "user").decode()
        own = f"{users}:{user}"
        self.server.execute("HINCRBY", key, "anchor", -ms)
        if self.server.execute("HEXISTS", key, "slot"):
            self.server.execute("HINCRBY", key, "slot", -ms)
        if self.server.execute("ZSCORE", own, name) is not None:
            self.server.execute("ZADD", users, "LT", self.server.execute("ZINCRBY", own, -ms, name), user)

    @precondition(lambda self: self.models)
    @rule(half_hours=st.sampled_from([1, 2, 3, 6]))
    def fire_ahead(self, half_hours: int) -> None:
        self.wait(self.scheduler.fire_due(half_hours * 1800))
        for name, model in self.models.items():
            model.fire_ahead(self.now + half_hours)
            self.compare(name)

    # What becomes of the tasks

    @rule(user_id=st.sampled_from(list(USERS.values())), room=st.sampled_from([None, None, 2]))
    def limit(self, user_id: str, room: int | None) -> None:
        self.wait(self.queue.set_policy(user_id, max_queued=room))
        self.users[user_id].room = room

    def start_tasks(self, many: int) -> None:
        for delivery in self.wait(self.store.claim("w", many)).deliveries:
            self.held[delivery.id] = delivery
            tasks = self.users[delivery.user_id].tasks
            assert tasks[delivery.id] == "queued"
            tasks[delivery.id] = "started"

    @precondition(lambda self: any(user.tasks for user in self.users.values()))
    @rule(user_id=st.sampled_from(list(USERS.values())), pick=st.integers(0, 5))
    def end_a_task(self, user_id: str, pick: int) -> None:
        tasks = self.users[user_id].tasks
        if not tasks:
            return
        task_id = sorted(tasks)[pick % len(tasks)]
        if tasks.pop(task_id) == "queued":
            self.wait(self.queue.handle(user_id, task_id).cancel())
        else:
            assert all(self.wait(self.store.settle("w", [outcome(self.held.pop(task_id), "finished")])))

    # Whether both agree

    def compare(self, name: str) -> None:
        model, user_id = self.models[name], USERS[name]
        found = self.wait(self.scheduler.get_schedule(name))
        self.name_tasks(model, user_id)
        assert (found.state.value, found.runs, found.skipped, found.misfired) == (
            model.state,
            model.runs,
            model.skipped,
            model.misfired,
        )
        assert (found.user_id, found.max_runs) == (user_id, model.definition.max_runs)
        if model.state == "active":
            assert found.next_run is not None
            assert round((found.next_run - datetime.now(UTC)).total_seconds() / 1800) == model.next - self.now
        else:
            assert found.next_run is None

    def name_tasks(self, model: ModelSchedule, user_id: str) -> None:
        states = {
            info.task_id: info.state.value
            for state in (TaskState.QUEUED, TaskState.STARTED)
            for info in self.wait(self.queue.tasks(user_id, state=state, limit=1000))
        }
        model.name_tasks([task_id for task_id in states if task_id not in model.user.tasks])
        assert states == model.user.tasks


def options_of(definition: Definition) -> dict[str, Any]:
    return {
        "task": Task.create(payload={"number": definition.number}),
        "every": definition.every * 1800,
        "max_runs": definition.max_runs,
        "overlap": definition.overlap,
        "misfire": definition.misfire,
        "misfire_limit": MISFIRE_LIMIT,
    }


@pytest.mark.timeout(600)
@pytest.mark.leaves_keys
def test_schedules_and_their_model_agree_whatever_happens(server: Server, queue_name: str) -> None:
    numbers = itertools.count()
    phases = (Phase.explicit, Phase.generate, *([Phase.shrink] if os.environ.get("FAIRQUE_SHRINK") else []))
    run_state_machine_as_test(
        lambda: ScheduleMachine(server, f"{queue_name}/{next(numbers)}"),  # type: ignore[arg-type]
        settings=settings(
            derandomize=True,
            phases=phases,
            deadline=None,
            max_examples=GAMES,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
