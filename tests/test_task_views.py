"""A task for pages: its timeline, and what hangs on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace

import pytest

from fairque import Retry, TaskInfo, TaskQueue, TaskState, UnknownTask, Worker, current_task, task
from fairque.tasks.registry import unregister

pytestmark = pytest.mark.leaves_keys()


@pytest.fixture
def known() -> Iterator[SimpleNamespace]:
    async def ok(value: int = 0) -> int:
        return value

    async def broken() -> None:
        raise ValueError("on purpose")

    async def flaky() -> None:
        if current_task().attempt == 1:
            raise Retry("not yet", delay=0.01)

    async def letters() -> AsyncIterator[str]:
        for letter in "abc":
            yield letter

    async def parent() -> None:
        await current_task().enqueue(ok2(), key="c", delay=3600)
        raise ValueError("so that what it put in is remembered")

    functions = {fn.__name__: task(name=f"views.{fn.__name__}", max_retries=1)(fn) for fn in (ok, flaky, letters)}
    functions |= {fn.__name__: task(name=f"views.{fn.__name__}")(fn) for fn in (broken, parent)}
    ok2 = functions["ok"]
    yield SimpleNamespace(**functions)
    for function in functions.values():
        unregister(function.name)


async def serve(queue: TaskQueue) -> None:
    await Worker(queue, scheduler=False).run_until_idle()


def whats(info: TaskInfo) -> list[str]:
    return [moment.what for moment in info.timeline]


async def test_the_timeline_of_a_task_tells_its_attempts_with_their_tracebacks(
    queue: TaskQueue, known: SimpleNamespace
) -> None:
    handle = await queue.enqueue(known.broken(), user_id="acme")
    assert whats(await handle.info()) == ["enqueued"]
    await serve(queue)
    info = await handle.info()
    assert whats(info) == ["queued", "started", "attempt failed", "failed"]
    [failed] = [moment for moment in info.timeline if moment.error is not None]
    assert failed.attempt == 1
    assert failed.error is not None
    assert "on purpose" in failed.error.traceback
    assert [moment.at for moment in info.timeline] == sorted(moment.at for moment in info.timeline)


async def test_what_is_going_to_happen_is_in_the_timeline(queue: TaskQueue, known: SimpleNamespace) -> None:
    handle = await queue.enqueue(known.ok(), user_id="acme", delay=60, expires=120)
    info = await handle.info()
    assert whats(info) == ["enqueued", "due", "expires"]
    assert info.timeline[1].at - info.timeline[0].at == pytest.approx(60, abs=1)


async def test_a_task_tells_how_many_chunks_it_has_yielded(queue: TaskQueue, known: SimpleNamespace) -> None:
    handle = await queue.enqueue(known.letters(), user_id="acme")
    assert (await handle.info()).chunks == 0
    await serve(queue)
    assert (await handle.info()).chunks == 3


async def test_a_graph_goes_in_both_directions_from_any_of_its_tasks(queue: TaskQueue, known: SimpleNamespace) -> None:
    first = await queue.enqueue(known.ok(), user_id="acme", task_id="first", delay=3600)
    middle = await queue.enqueue(known.ok(), user_id="acme", task_id="middle", depends_on=[first])
    await queue.enqueue(known.ok(), user_id="acme", task_id="beside", depends_on=[first])
    await queue.enqueue(known.ok(), user_id="acme", task_id="last", depends_on=[middle])
    await queue.enqueue(known.ok(), user_id="acme", task_id="alone")
    await queue.enqueue(known.ok(), user_id="another", task_id="first")
    for begin in ("first", "middle", "last"):
        graph = await queue.graph("acme", begin)
        assert graph.tasks[0].task_id == begin
        assert {node.task_id: node.state for node in graph.tasks} == {
            "first": TaskState.SCHEDULED,
            "middle": TaskState.DEFERRED,
            "beside": TaskState.DEFERRED,
            "last": TaskState.DEFERRED,
        }
        assert {node.name for node in graph.tasks} == {"views.ok"}
        assert sorted((link.before, link.after, link.kind) for link in graph.links) == [
            ("first", "beside", "dependency"),
            ("first", "middle", "dependency"),
            ("middle", "last", "dependency"),
        ]
        assert not graph.is_part


async def test_a_graph_tells_children_and_parents(queue: TaskQueue, known: SimpleNamespace) -> None:
    handle = await queue.enqueue(known.parent(), user_id="acme", task_id="p")
    await serve(queue)
    for begin in ("p", "p/c"):
        graph = await queue.graph("acme", begin)
        assert [(link.before, link.after, link.kind) for link in graph.links] == [("p", "p/c", "child")]
        assert {node.task_id: node.name for node in graph.tasks} == {"p": "views.parent", "p/c": "views.ok"}
    await queue.discard(handle)


async def test_a_graph_of_many_tasks_ends_somewhere(queue: TaskQueue, known: SimpleNamespace) -> None:
    first = await queue.enqueue(known.ok(), user_id="acme", delay=3600)
    await queue.enqueue_many([known.ok().options(depends_on=[first])] * 300, user_id="acme")
    graph = await queue.graph("acme", first.task_id, limit=50)
    assert len(graph.tasks) == 50
    assert len(graph.links) == 49
    assert graph.is_part
    assert await asyncio.wait_for(queue.graph("acme", first.task_id, limit=1000), 5)


async def test_there_is_no_graph_of_what_is_not_known(queue: TaskQueue) -> None:
    with pytest.raises(UnknownTask):
        await queue.graph("acme", "nothing")
