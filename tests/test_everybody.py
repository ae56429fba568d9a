"""A service that passes user ids on as they come: none of them is everybody."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from fairque import EVERYBODY, Everybody, InvalidInput, Policy, TaskQueue, TaskScheduler, Worker, sync, task
from fairque.testing import enqueued
from tests.support.servers import Server

FROM_OUTSIDE = "*"


@task
async def work() -> None: ...


CALLS: dict[str, Callable[[TaskQueue], Any]] = {
    "enqueue": lambda queue: queue.enqueue(work(), user_id=FROM_OUTSIDE),
    "enqueue with options": lambda queue: queue.enqueue(work().options(user_id=FROM_OUTSIDE)),
    "enqueue_many": lambda queue: queue.enqueue_many([work()], user_id=FROM_OUTSIDE),
    "a pipeline": lambda queue: queue.enqueue(work() >> work(), user_id=FROM_OUTSIDE),
    "set_policy": lambda queue: queue.set_policy(FROM_OUTSIDE, weight=2),
    "get_policy": lambda queue: queue.get_policy(FROM_OUTSIDE),
    "clear_policy": lambda queue: queue.clear_policy(FROM_OUTSIDE),
    "pause": lambda queue: queue.pause(FROM_OUTSIDE),
    "resume": lambda queue: queue.resume(FROM_OUTSIDE),
    "usage": lambda queue: queue.usage(FROM_OUTSIDE),
    "explain": lambda queue: queue.explain(FROM_OUTSIDE),
    "user": lambda queue: queue.user(FROM_OUTSIDE),
    "tasks": lambda queue: queue.tasks(FROM_OUTSIDE),
    "dead_letters": lambda queue: queue.dead_letters(FROM_OUTSIDE),
    "purge": lambda queue: queue.purge(FROM_OUTSIDE),
    "set_limit": lambda queue: queue.set_limit("key", max_running=1, user_id=FROM_OUTSIDE),
    "clear_limit": lambda queue: queue.clear_limit("key", user_id=FROM_OUTSIDE),
    "a schedule": lambda queue: TaskScheduler(queue).add_schedule(task=work(), every=60, user_id=FROM_OUTSIDE),
    "what waits": lambda queue: enqueued(queue, user_id=FROM_OUTSIDE),
}


@pytest.mark.parametrize("call", CALLS)
async def test_no_call_takes_an_id_from_outside_for_everybody(queue: TaskQueue, call: str) -> None:
    with pytest.raises(InvalidInput, match=r"'\*' is the id of nobody; .* fairque\.EVERYBODY"):
        await CALLS[call](queue)
    assert await queue.users() == []
    assert await queue.get_policy(EVERYBODY) == Policy()


def test_nor_does_what_is_made_for_one(server: Server) -> None:
    queue = TaskQueue(server.url)
    for make in (
        lambda: queue.handle(FROM_OUTSIDE, "x"),
        lambda: Worker(queue, assigned_users=[FROM_OUTSIDE]),
        lambda: Worker(queue, assigned_users=["acme"], steal_targets=[FROM_OUTSIDE]),
    ):
        with pytest.raises(InvalidInput, match="id of nobody"):
            make()


async def test_everybody_is_meant_by_its_own_name_only(queue: TaskQueue) -> None:
    await queue.pause(EVERYBODY)
    assert (await queue.get_policy("acme")).paused is True
    await queue.resume(EVERYBODY)
    assert (await queue.get_policy("acme")).paused is None
    assert await queue.usage(EVERYBODY) == []
    assert await queue.clear_policy(EVERYBODY) is None


def test_nothing_from_outside_equals_it() -> None:
    assert all(text != EVERYBODY for text in ("*", "everybody", "EVERYBODY", str(EVERYBODY), repr(EVERYBODY), ""))
    assert pickle.loads(pickle.dumps(EVERYBODY)) is copy.deepcopy(EVERYBODY) is EVERYBODY
    assert isinstance(EVERYBODY, Everybody)


def test_blocking_code_names_it_alike(server: Server, queue_name: str) -> None:
    with sync.TaskQueue(server.url, name=queue_name) as queue:
        assert queue.set_policy(EVERYBODY, max_running=3).max_running == 3
        with pytest.raises(InvalidInput, match="id of nobody"):
            queue.set_policy(FROM_OUTSIDE, max_running=1)
        queue.clear_policy(EVERYBODY)
