"""A run of a pipeline as a whole: watched, with the cause of what did not run, and built of partials."""

import asyncio
import contextlib
import pickle

import pytest

from fairque import (
    BadArguments,
    InvalidInput,
    PipelineBlocked,
    TaskCanceled,
    TaskFailed,
    TaskInfo,
    TaskQueue,
    TaskState,
    UnknownTask,
    Worker,
    current_task,
    task,
)
from tests.support.eventually import eventually

OUTCOMES: dict[str, bool] = {}


@pytest.fixture
def steps():
    OUTCOMES.clear()

    @task(on_dependency_failure="cancel")
    async def step(name: str) -> str:
        if OUTCOMES.get(name, True):
            return name
        raise ValueError(f"{name} broke")

    return lambda name: step(name).options(task_id=name)


# Watched


async def collect(run, seen: list[tuple[str, TaskState]]) -> None:
    async for name, info in run.watch():
        assert isinstance(info, TaskInfo)
        seen.append((name, info.state))


async def test_what_comes_after_the_end_of_a_task_is_no_second_end(queue: TaskQueue, steps, server) -> None:
    run = await queue.enqueue(steps("a") >> steps("b").options(delay=3600), user_id="anna")
    seen: list[tuple[str, TaskState]] = []
    watching = asyncio.create_task(collect(run, seen))
    await eventually(lambda: len(seen) == 2)
    async with Worker(queue):
        await eventually(lambda: ("a", TaskState.FINISHED) in seen)
    before = (await run.tasks["a"].info()).dependents
    await queue.enqueue(steps("c").options(depends_on=[run.tasks["a"]], delay=3600), user_id="anna")
    assert (await run.tasks["a"].info()).dependents != before
    server.execute("SPUBLISH", f"{queue.keys.prefix}done:anna:{run.tasks['a'].task_id}", "finished")
    await run.tasks["b"].reschedule(3000)  # told on the same connection, after it
    await eventually(lambda: [name for name, _ in seen].count("b") >= 2)
    await run.tasks["b"].cancel()
    await asyncio.wait_for(watching, 20)
    assert seen.count(("a", TaskState.FINISHED)) == 1
    await queue.purge("anna")


async def test_a_run_is_watched_until_all_of_it_has_ended(queue: TaskQueue, steps):
    run = await queue.enqueue(steps("a") >> [steps("b"), steps("c")] >> steps("d"), user_id="anna")
    seen: list[tuple[str, TaskState]] = []
    watching = asyncio.create_task(collect(run, seen))
    await eventually(lambda: len(seen) == 4)
    async with Worker(queue):
        await asyncio.wait_for(watching, 20)
    first = {name: next(state for each, state in seen if each == name) for name in "abcd"}
    last = dict(seen)
    assert first["d"] is TaskState.DEFERRED
    assert last == dict.fromkeys("abcd", TaskState.FINISHED)
    for name in "abcd":
        states = [state for each, state in seen if each == name]
        assert len(states) == len(set(states)), "each change once"


async def test_a_watched_run_goes_on_when_what_failed_is_requeued(queue: TaskQueue):
    fails = True

    @task
    async def first() -> None:
        if fails:
            raise ValueError

    @task
    async def second() -> None:
        pass

    run = await queue.enqueue(first() >> second(), user_id="anna")
    seen: list[tuple[str, TaskState]] = []
    watching = asyncio.create_task(collect(run, seen))
    await eventually(lambda: seen)
    async with Worker(queue):
        with contextlib.suppress(TaskFailed):
            await run["first"].result(20)
        await eventually(lambda: ("first", TaskState.FAILED) in seen)
        fails = False
        await queue.requeue(run["first"])
        await asyncio.wait_for(watching, 20)
    assert (("first", TaskState.FAILED) in seen, dict(seen)["second"]) == (True, TaskState.FINISHED)


async def test_one_who_stops_watching_leaves_nothing_behind(queue: TaskQueue, steps):
    run = await queue.enqueue(steps("a") >> steps("b"), user_id="anna")
    watching = run.watch()
    await anext(watching)
    assert len(asyncio.all_tasks()) > 3
    await watching.aclose()
    assert {task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}} == {"fairque-listener"}
    await run.cancel()


async def test_a_run_whose_tasks_are_gone_cannot_be_watched(queue: TaskQueue, steps):
    run = await queue.enqueue(steps("a") >> steps("b"), user_id="anna")
    await queue.purge("anna")
    with pytest.raises(UnknownTask):
        async for _ in run.watch():
            pass


# The cause of what did not run


async def test_the_result_of_a_canceled_step_names_the_one_that_failed(queue: TaskQueue, steps):
    OUTCOMES["a"] = False
    run = await queue.enqueue(steps("a") >> steps("b") >> steps("c"), user_id="anna")
    async with Worker(queue):
        with pytest.raises(TaskCanceled) as canceled:
            await run.result(20)
    first = run["a"].task_id
    assert canceled.value.root == first
    assert str(canceled.value) == f"dependency {run['b'].task_id} canceled, which began with {first}"
    cause = canceled.value.__cause__
    assert isinstance(cause, TaskFailed)
    assert (cause.type_name, cause.message) == ("ValueError", "a broke")
    assert (await run["c"].info()).message == str(canceled.value)
    assert pickle.loads(pickle.dumps(canceled.value)).root == first
    await queue.discard(run["a"])
    with pytest.raises(TaskCanceled) as canceled:
        await run.result(0)
    assert (canceled.value.root, canceled.value.__cause__) == (first, None)


async def test_one_that_is_put_in_behind_a_canceled_one_has_its_cause(queue: TaskQueue, steps):
    OUTCOMES["a"] = False
    run = await queue.enqueue(steps("a") >> steps("b"), user_id="anna")
    async with Worker(queue):
        with pytest.raises(TaskCanceled):
            await run.result(20)
    late = await queue.enqueue(steps("late"), user_id="anna", depends_on=[run["b"]])
    with pytest.raises(TaskCanceled) as canceled:
        await late.result(0)
    assert canceled.value.root == run["a"].task_id
    await queue.discard(run["a"])


async def test_one_that_somebody_canceled_is_where_it_began(queue: TaskQueue, steps):
    run = await queue.enqueue(steps("a") >> steps("b") >> steps("c"), user_id="anna")
    await run["a"].cancel("not needed")
    with pytest.raises(TaskCanceled) as canceled:
        await run.result(0)
    assert (canceled.value.root, canceled.value.__cause__) == (run["a"].task_id, None)
    with pytest.raises(TaskCanceled, match="not needed") as canceled:
        await run["a"].result(0)
    assert canceled.value.root is None


async def test_a_blocked_run_comes_with_the_failure_that_blocks_it(queue: TaskQueue):
    @task
    async def broken() -> None:
        raise ValueError("no such file")

    @task
    async def after() -> None:
        pass

    run = await queue.enqueue(broken() >> after(), user_id="anna")
    async with Worker(queue):
        with pytest.raises(PipelineBlocked) as blocked:
            await run.result(20, raise_blocked=True)
    cause = blocked.value.__cause__
    assert isinstance(cause, TaskFailed)
    assert cause.message == "no such file"
    await queue.discard(run["broken"])


# Partials


@pytest.fixture
def parts():
    @task
    async def fetch(name: str) -> str:
        return f"<{name}>"

    @task
    async def resize(image: str, scale: int = 1, *, width: int = 800) -> str:
        return f"{image} {scale} {width}"

    @task
    async def album(images: list[str], title: str) -> str:
        return f"{title}: {', '.join(images)}, of {current_task().user_id}"

    return fetch, resize, album


async def test_a_partial_takes_what_comes_before_it_as_its_first_argument(queue: TaskQueue, parts):
    fetch, resize, album = parts
    chain = fetch("logo") >> resize.partial(2, width=3) >> album.partial(title="all").options(user_id="anna")
    fan = [fetch("a"), fetch("b")] >> album.partial("two")
    out = fetch("c") >> [resize.partial(width=1), resize.partial(width=2)] >> album.partial("sizes")
    async with Worker(queue):
        with pytest.raises(TaskFailed):  # one image is no list of images
            await (await queue.enqueue(chain, user_id="anna")).result(20)
        assert await (await queue.enqueue(fan, user_id="anna")).result(20) == "two: <a>, <b>, of anna"
        assert await (await queue.enqueue(out, user_id="anna")).result(20) == "sizes: <c> 1 1, <c> 1 2, of anna"
    await queue.purge("anna")


async def test_a_partial_is_called_with_the_rest(queue: TaskQueue, parts):
    _, resize, _ = parts
    wide = resize.partial(width=3)
    async with Worker(queue):
        assert await (await queue.enqueue(wide("logo"), user_id="anna")).result(20) == "logo 1 3"
        assert await (await queue.enqueue(wide("logo", scale=2, width=4), user_id="anna")).result(20) == "logo 2 4"
    high = wide.options(priority=5)("logo")
    assert high.task_options.priority == 5


def test_what_a_partial_cannot_be_is_said(parts):
    fetch, resize, album = parts
    for wrong in ({"height": 3}, {"image": "a"}):
        with pytest.raises(BadArguments, match="resize"):
            resize.partial(**wrong)
    with pytest.raises(BadArguments):
        resize.partial(1, 2, 3)
    with pytest.raises(InvalidInput, match="takes the output of what comes before it"):
        [album.partial("x")] >> fetch("a")
    with pytest.raises(InvalidInput, match="takes the output of what comes before it"):
        fetch("a") | resize.partial()
