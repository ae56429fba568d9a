"""Children: tasks that a running task puts in, once each, however often it runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fairque import (
    DependencyError,
    FairqueError,
    InvalidInput,
    QueueFull,
    Retry,
    TaskCanceled,
    TaskHandle,
    TaskQueue,
    TaskState,
    Worker,
    current_task,
    parallel,
    task,
)
from fairque.tasks.registry import registry
from tests.support.eventually import eventually
from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys("*")
ran: list[str] = []
made: list[TaskHandle[Any]] = []
state: dict[str, Any] = {}


@task
async def leaf(value: int = 1) -> int:
    ran.append(current_task().task_id)
    return value


@task(max_retries=3)
async def parent(fails: int = 0) -> str | None:
    made.extend([await current_task().enqueue(leaf(n)) for n in range(2)])
    made.append(await current_task().enqueue(leaf(7), key="named"))
    if current_task().attempt <= fails:
        raise Retry(delay=0.01)
    if state.get("broken"):
        raise ValueError("on purpose")
    return current_task().parent


@task
async def nest(depth: int) -> None:
    ran.append(current_task().task_id)
    if depth:
        made.append(await current_task().enqueue(nest(depth - 1), key="x" * 100))


@task
async def wait_with(together: bool) -> None:
    made.append(await current_task().enqueue(leaf(), key="later", delay=3600, cancel_with_parent=together))
    made.append(await current_task().enqueue(sleep(), key="runs", cancel_with_parent=together))
    made.append(
        await current_task().enqueue(
            leaf(), key="after", depends_on=[made[0]], on_dependency_failure="run", cancel_with_parent=together
        )
    )
    await asyncio.sleep(state.get("seconds", 60))


@task
async def sleep() -> None:
    ran.append("sleep")
    await asyncio.sleep(60)


@task
def from_a_thread() -> str:
    return current_task().enqueue_from_thread(leaf(5), key="t")


@task(run_in="process", name="tests.child-in-a-process")
def from_a_process() -> str:
    try:
        current_task().enqueue_from_thread(leaf(5))
    except FairqueError as exc:
        return str(exc)
    return ""


@pytest.fixture(autouse=True)
def _registered() -> None:
    ran.clear()
    made.clear()
    state.clear()
    functions = (leaf, parent, conduct, nest, wait_with, sleep, from_a_thread, from_a_process)
    registry.update({function.name: function for function in functions})


async def serve(queue: TaskQueue) -> None:
    await Worker(queue, scheduler=False).run_until_idle()


async def test_children_are_of_the_same_user_with_ids_made_from_the_parents(queue: TaskQueue) -> None:
    handle = await queue.enqueue(parent(), user_id="acme", task_id="p")
    await serve(queue)
    assert await handle.result(5) is None
    assert [child.task_id for child in made] == ["p/leaf", "p/leaf-2", "p/named"]
    assert {child.user_id for child in made} == {"acme"}
    assert [await child.result(5) for child in made] == [0, 1, 7]
    assert all(child.created for child in made)


async def test_a_parent_that_is_tried_again_makes_no_second_child_also_of_one_that_has_ended(queue: TaskQueue) -> None:
    await queue.enqueue(parent(3), user_id="acme", task_id="p")
    async with Worker(queue, scheduler=False):
        await eventually(lambda: len(made) == 12)
        for child in made:
            await child.result(10)
    assert sorted(ran) == ["p/leaf", "p/leaf-2", "p/named"]
    assert [child.created for child in made] == [True] * 3 + [False] * 9


@task(max_retries=3)
async def conduct(fails: int, together: bool = False) -> list[str]:
    run = await current_task().enqueue(leaf(1) >> leaf(2).options(task_id="last"), key="run")
    unnamed = await current_task().enqueue(parallel(leaf(3)), cancel_with_parent=together)
    last = await current_task().enqueue(leaf(leaf(4).output), key="output")
    if current_task().attempt <= fails:
        raise Retry(delay=0.01)
    if together:
        await asyncio.sleep(60)
    made.extend([*run.tasks.values(), *unnamed.tasks.values(), last])
    return [run.run_id, unnamed.run_id, last.task_id]


async def test_a_pipeline_is_put_in_once_however_often_its_parent_runs(queue: TaskQueue) -> None:
    handle = await queue.enqueue(conduct(2), user_id="acme", task_id="p")
    async with Worker(queue, scheduler=False):
        assert await handle.result(20) == ["p/run", "p/pipeline", "p/output.leaf-2"]
        assert [await child.result(10) for child in made] == [1, 2, 3, 4]
    ids = ["p/output.leaf", "p/output.leaf-2", "p/pipeline.leaf", "p/run.last", "p/run.leaf"]
    assert sorted(ran) == ids
    assert not any(child.created for child in made)


async def test_the_tasks_of_a_pipeline_know_their_parent_and_may_be_canceled_with_it(queue: TaskQueue) -> None:
    await queue.pause_task(leaf.name)
    async with Worker(queue, scheduler=False):
        handle = await queue.enqueue(conduct(0, True), user_id="acme", task_id="p")
        await eventually(lambda: has_children(handle, 5))
        assert "p/run.last" in (await handle.info()).children
        assert (await queue.handle("acme", "p/run.last").info()).parent == "p"
        await handle.cancel()
        with pytest.raises(TaskCanceled, match="its parent p was canceled"):
            await queue.handle("acme", "p/pipeline.leaf").result(10)
        assert await queue.handle("acme", "p/run.leaf").state() is TaskState.QUEUED
    await queue.resume_task(leaf.name)
    await queue.purge("acme")


async def has_children(handle: TaskHandle[Any], many: int) -> bool:
    return len((await handle.info()).children) == many


async def test_a_pipeline_of_a_long_id_and_from_a_thread_is_put_in(queue: TaskQueue) -> None:
    @task
    def from_there() -> str:
        return current_task().enqueue_from_thread(leaf(1) >> leaf(2), key="x" * 200)

    handle = await queue.enqueue(from_there(), user_id="acme", task_id="p" * 310)
    await serve(queue)
    run_id = await handle.result(5)
    assert len(run_id) == 64
    assert await queue.handle("acme", f"{run_id}.leaf-2").result(5) == 2


async def test_what_was_put_in_before_is_refused_by_no_quota(queue: TaskQueue) -> None:
    handle = await queue.enqueue(parent(1), user_id="acme", task_id="p")
    store = queue.store()
    [taken] = (await store.claim("ghost", 1)).deliveries
    first = await queue.enqueue_child(handle, "leaf", leaf(), with_parent=False, options={})
    await queue.set_policy("acme", max_queued=1)
    again = await queue.enqueue_child(handle, "leaf", leaf(), with_parent=False, options={})
    assert (first.created, again.created, taken.id) == (True, False, "p")
    with pytest.raises(QueueFull):
        await queue.enqueue_child(handle, "another", leaf(), with_parent=False, options={})
    await store.leave("ghost", [()])
    await store.close()
    await queue.purge("acme", timeout=0)


async def test_a_requeued_parent_makes_no_second_child_and_a_new_one_of_its_id_does(queue: TaskQueue) -> None:
    state["broken"] = True
    handle = await queue.enqueue(parent(), user_id="acme", task_id="p", max_retries=0)
    await serve(queue)
    assert (await handle.info()).children == ("p/leaf", "p/leaf-2", "p/named")
    state["broken"] = False
    await queue.requeue(handle)
    await serve(queue)
    assert len(ran) == 3
    await queue.enqueue(parent(), user_id="acme", task_id="p")
    await serve(queue)
    assert len(ran) == 6


async def test_parent_and_child_know_each_other(queue: TaskQueue) -> None:
    async with Worker(queue, scheduler=False):
        handle = await queue.enqueue(wait_with(False), user_id="acme", task_id="p")
        await eventually(lambda: len(made) == 3)
        assert (await handle.info()).children == ("p/after", "p/later", "p/runs")
        assert (await made[0].info()).parent == "p"
        explained = await queue.explain("acme", "p/later")
        assert explained.parent == "p"
        assert "put in by 'p'" in str(explained)
        await handle.cancel()
        with pytest.raises(TaskCanceled):
            await handle.result(10)
        assert await made[0].state() is TaskState.SCHEDULED, "it was not asked to go with its parent"
        await made[1].cancel()


async def test_children_are_canceled_with_their_parent_where_asked_wherever_they_are(queue: TaskQueue) -> None:
    async with Worker(queue, scheduler=False):
        handle = await queue.enqueue(wait_with(True), user_id="acme", task_id="p")
        await eventually(lambda: "sleep" in ran)
        await handle.cancel("enough")
        for child in made:
            with pytest.raises(TaskCanceled, match="its parent p was canceled"):
                await child.result(10)
    assert await queue.handle("acme", "p").state() is TaskState.CANCELED
    assert ran == ["sleep"]


async def test_the_set_of_children_goes_with_a_parent_for_which_nobody_waits_any_more(
    queue: TaskQueue, server: Server
) -> None:
    async with Worker(queue):
        handle = await queue.enqueue(wait_with(False), user_id="a")
        dependent = await queue.enqueue(leaf(), user_id="a", depends_on=[handle])
        await eventually(lambda: len(made) == 3)
        assert await dependent.cancel()
        assert await handle.cancel()
        with pytest.raises(TaskCanceled):
            await handle.result(timeout=10)
    assert not [key for key in server.keys(queue.name) if ":children:" in key]


async def test_children_go_on_when_their_parent_has_finished(queue: TaskQueue) -> None:
    state["seconds"] = 0
    async with Worker(queue, scheduler=False):
        handle = await queue.enqueue(wait_with(True), user_id="acme", task_id="p")
        assert await handle.result(10) is None
        assert await made[0].state() is TaskState.SCHEDULED
        await made[0].cancel()
        await made[1].cancel()
        assert await made[2].result(10) == 1


async def test_many_children_are_canceled_over_several_calls(queue: TaskQueue) -> None:
    @task
    async def many() -> None:
        for n in range(1200):
            await current_task().enqueue(leaf(n), key=str(n), delay=3600, cancel_with_parent=True)
        ran.append("made")
        await asyncio.sleep(60)

    async with Worker(queue, scheduler=False):
        handle = await queue.enqueue(many(), user_id="acme")
        await eventually(lambda: ran == ["made"])
        await handle.cancel()
        await eventually(lambda: all_canceled(queue))


async def all_canceled(queue: TaskQueue) -> bool:
    return (await queue.stats()).canceled == 1201


async def test_deep_children_have_ids_that_are_no_longer_than_may_be(queue: TaskQueue) -> None:
    await queue.enqueue(nest(8), user_id="acme", task_id="p")
    await serve(queue)
    assert len(ran) == len(set(ran)) == 9
    assert max(len(task_id) for task_id in ran) <= 512


async def test_plain_functions_put_children_in_from_their_threads(queue: TaskQueue) -> None:
    handle = await queue.enqueue(from_a_thread(), user_id="acme", task_id="p")
    await serve(queue)
    assert await handle.result(5) == "p/t"
    assert await queue.handle("acme", "p/t").result(5) == 5


async def test_a_subprocess_is_told_what_to_use_instead(queue: TaskQueue) -> None:
    handle = await queue.enqueue(from_a_process(), user_id="acme")
    await serve(queue)
    assert "use fairque.sync there" in await handle.result(5)


async def test_a_task_that_does_not_run_any_more_puts_in_no_child(queue: TaskQueue) -> None:
    parent_handle = await queue.enqueue(leaf(), user_id="acme", task_id="waits", delay=3600)
    with pytest.raises(DependencyError, match="'waits' of user 'acme' does not run any more, and puts in no child"):
        await queue.enqueue_child(parent_handle, "k", leaf(), with_parent=False, options={})
    assert (await queue.stats()).queued == 0


async def test_a_child_of_another_user_is_refused_and_what_is_no_child(queue: TaskQueue) -> None:
    errors: list[str] = []

    @task
    async def wrong() -> None:
        for child, options in (
            (leaf().options(task_id="own"), {}),
            (leaf() >> leaf().options(user_id="zoe"), {}),
            (leaf() >> leaf(), {"delay": 1}),
            (leaf(), {"key": ""}),
            (leaf().options(user_id="zoe"), {}),
            (leaf, {}),
        ):
            try:
                await current_task().enqueue(child, **options)  # type: ignore[arg-type]
            except InvalidInput as exc:
                errors.append(str(exc))

    handle = await queue.enqueue(wrong(), user_id="acme", task_id="p")
    await serve(queue)
    await handle.result(5)
    assert [text for text, part in zip(errors, ERRORS, strict=True) if part not in text] == []
    assert (await queue.stats()).finished == 1


ERRORS = [
    "has a task_id",
    "is of user 'zoe'",
    "takes no delay",
    "key must not be empty",
    "is of user 'zoe'",
    "must be a Task",
]
