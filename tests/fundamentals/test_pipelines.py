"""9. Pipelines: tasks that run one after the other, put in at once, and hand their results on as arguments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from fairque import (
    BadArguments,
    Cancellation,
    DependencyError,
    InvalidInput,
    PipelineHandle,
    Priority,
    ResultTimeout,
    RetryPolicy,
    Task,
    TaskCanceled,
    TaskFailed,
    TaskHandler,
    TaskQueue,
    TaskState,
    UnknownTask,
    Worker,
    current_task,
    parallel,
    sequential,
    task,
)
from fairque.queue.plan import MAX_TASKS
from fairque.tasks.registry import registry
from tests.fundamentals import in_processes
from tests.support.calls import call_of, scripts_called
from tests.support.eventually import eventually
from tests.support.proxy import CuttingProxy
from tests.support.servers import Server

AT_ONCE = RetryPolicy(base=0)
ran: list[str] = []


@task
async def step(name: str) -> str:
    """Notes that it ran."""
    ran.append(name)
    return name


@task
async def extract(source: str) -> list[int]:
    return [len(source), 1]


@task
def transform(rows: list[int], factor: int = 10) -> list[int]:
    return [factor * row for row in rows]


@task
async def load(rows: list[int], *, table: str = "t") -> str:
    return f"{table}: {rows}"


@task
async def fail_until(attempt: int) -> int:
    if current_task().attempt < attempt:
        raise LookupError(current_task().attempt)
    return attempt


is_broken = True


@task
async def fragile() -> str:
    if is_broken:
        raise OSError("the disk")
    return "repaired"


@pytest.fixture(autouse=True)
def _known() -> None:
    global is_broken
    is_broken = True
    ran.clear()
    registry.update({each.name: each for each in (step, extract, transform, load, fail_until, fragile)})


async def serve(queue: TaskQueue, **options) -> None:
    await Worker(queue, **options).run_until_idle()


# Order


@pytest.mark.smoke
async def test_a_pipeline_runs_in_its_order(queue: TaskQueue):
    run = await queue.enqueue(step("a") >> (step("b") | step("c")) >> step("d"), user_id="anna")
    assert isinstance(run, PipelineHandle)
    await serve(queue)
    assert await run.result(20) == "d"
    assert ran[0] == "a"
    assert sorted(ran[1:3]) == ["b", "c"]
    assert ran[3:] == ["d"]


@pytest.mark.parametrize("shape", ["<<", "lists", "functions"])
async def test_however_it_is_written(queue: TaskQueue, shape: str):
    a, b, c, d = map(step, "abcd")
    written = {"<<": d << (b | c) << a, "lists": a >> [b, [c]] >> d, "functions": sequential(a, parallel(b, c), d)}
    run = await queue.enqueue(written[shape], user_id="anna")
    await serve(queue, concurrency=1)
    assert await run.result(20) == "d"
    assert ran == ["a", "b", "c", "d"]


async def test_what_waits_is_deferred_and_says_for_what(queue: TaskQueue):
    run = await queue.enqueue(extract("x").options(task_id="first") >> step("then"), user_id="anna")
    first, then = run["first"], run["step"]
    assert [await first.state(), await then.state()] == [TaskState.QUEUED, TaskState.DEFERRED]
    assert (await then.info()).dependencies == (first.task_id,)
    assert (await first.info()).dependents == (then.task_id,)
    await serve(queue)
    assert [await first.state(), await then.state()] == [TaskState.FINISHED, TaskState.FINISHED]


async def test_a_task_may_wait_for_others_than_those_of_its_pipeline(queue: TaskQueue):
    global is_broken
    before, a = await queue.enqueue(fragile(), user_id="anna"), step("a")
    run = await queue.enqueue(a | step("b").options(depends_on=[before, a]), user_id="anna")
    await serve(queue)
    assert ran == ["a"]
    assert (await run["step-2"].info()).dependencies == (before.task_id, run["step"].task_id)
    is_broken = False
    await queue.requeue(before)
    await serve(queue)
    assert await run.result(20) == ["a", "b"]


# One call


async def test_it_is_added_in_one_call(queue: TaskQueue, server: Server):
    await queue.enqueue(step("0"), user_id="anna")  # the script is loaded
    for pipeline in (step("a") >> [step("b"), step("c")] >> step("d"), sequential(*(step(str(n)) for n in range(100)))):
        before = scripts_called(server.execute)
        await queue.enqueue(pipeline, user_id="anna")
        assert scripts_called(server.execute) == before + 1
    await serve(queue, concurrency=50)
    assert (await queue.stats()).finished == 105


@pytest.mark.parametrize("shape", ["chain", "fan-out", "fan-in"])
async def test_a_pipeline_may_have_a_thousand_tasks(queue: TaskQueue, server: Server, shape: str):
    many = [step(str(n)) for n in range(MAX_TASKS - 1)]
    one = step("one")
    pipeline = {"chain": sequential(*many, one), "fan-out": one >> many, "fan-in": many >> one}[shape]
    await queue.enqueue(step("0"), user_id="anna")
    before = scripts_called(server.execute)
    run = await queue.enqueue(pipeline, user_id="anna")
    assert scripts_called(server.execute) == before + 1
    assert len(run) == MAX_TASKS
    await serve(queue, concurrency=100)
    assert await run.result(20) == (ran[-1] if shape != "fan-out" else [str(n) for n in range(MAX_TASKS - 1)])
    assert (await run.state()).tasks == {TaskState.FINISHED: MAX_TASKS}


async def test_one_task_more_is_refused_before_anything_is_written(queue: TaskQueue, server: Server, queue_name: str):
    with pytest.raises(InvalidInput, match="a pipeline has 1 to 1000 tasks, not 1001"):
        await queue.enqueue(parallel([step(str(n)) for n in range(MAX_TASKS + 1)]), user_id="anna")
    assert server.keys(queue_name) == []


async def test_pipelines_that_are_added_at_the_same_time_share_calls_and_no_errors(queue: TaskQueue, server: Server):
    await queue.enqueue(step("0"), user_id="anna")
    before = scripts_called(server.execute)
    adding = [queue.enqueue(step(str(n)) >> [step("b"), step("c")], user_id=f"user {n % 7}") for n in range(300)]
    runs = await asyncio.gather(*adding)
    assert scripts_called(server.execute) - before <= 3, "one for the first, then 500 tasks in each"
    bad = step("x") >> step("y").options(depends_on=["nobody"])
    more = [queue.enqueue(bad if n == 5 else step("d") >> step("e"), user_id="anna") for n in range(10)]
    ended = await asyncio.gather(*more, return_exceptions=True)
    assert [n for n, each in enumerate(ended) if isinstance(each, DependencyError)] == [5]
    await serve(queue, concurrency=100)
    assert [await run["step"].result(20) for run in runs] == [str(n) for n in range(300)]
    assert (await queue.stats()).finished == 1 + 3 * 300 + 2 * 9


async def test_closing_waits_for_pipelines_that_are_being_added(server: Server, queue: TaskQueue, queue_name: str):
    other = await TaskQueue(server.url, name=queue_name).open()
    adding = [asyncio.create_task(other.enqueue(step("a") >> step("b"), user_id="anna")) for _ in range(20)]
    await asyncio.sleep(0)  # the first is on its way, the others wait for their turn
    await other.close()
    assert [len(run) for run in await asyncio.gather(*adding)] == [2] * 20
    await serve(queue, concurrency=100)
    assert (await queue.stats()).finished == 40


# Refused


@pytest.mark.parametrize(
    ("refused", "error", "text"),
    [
        (lambda: step("a") >> step("b").options(task_id="x" * 512), InvalidInput, "task_id has 529 bytes"),
        (lambda: step("a") >> step("b").options(depends_on=["nobody"]), DependencyError, "depends on 'nobody', never"),
        (lambda: step("a") >> step("b").options(depends_on=[step("c")]), DependencyError, "has no task_id yet"),
        (lambda: step("a") >> Task.create(payload={"n": "x" * 300_000}), InvalidInput, "the limit is 262144"),
    ],
)
async def test_what_cannot_be_added_is_refused_as_a_whole(
    queue: TaskQueue, server: Server, queue_name: str, refused, error, text: str
):
    with pytest.raises(error, match=text):
        await queue.enqueue(refused(), user_id="anna")
    assert {key.rpartition(":")[2] for key in server.keys(queue_name)} <= {"settings", "state"}


async def test_a_cycle_through_options_is_refused_by_name(queue: TaskQueue):
    first = step("a").options(task_id="first")
    second = step("b").options(task_id="second", depends_on=[first])
    third = (second >> step("c").options(task_id="third")) >> first
    with pytest.raises(DependencyError, match=r"wait for each other: \S+\.(first|second|third) → \S+ → \S+ → "):
        await queue.enqueue(third, user_id="anna")


async def test_options_belong_to_the_tasks(queue: TaskQueue):
    with pytest.raises(InvalidInput, match="a pipeline takes no priority: give it to its tasks"):
        await queue.enqueue(step("a") >> step("b"), user_id="anna", priority=Priority.HIGH)  # type: ignore[call-overload]


async def test_a_pipeline_belongs_to_one_user(queue: TaskQueue, server: Server, queue_name: str):
    mixed = step("a").options(user_id="anna") >> step("b").options(user_id="zoe")
    with pytest.raises(InvalidInput, match="belong to one user, not to anna, zoe"):
        await queue.enqueue(mixed)
    with pytest.raises(InvalidInput, match="has no user_id"):
        await queue.enqueue(step("a") >> step("b"))
    assert server.keys(queue_name) == []
    assert (await queue.enqueue(mixed, user_id="carl")).user_id == "carl"
    run = await queue.enqueue(step("c") >> step("d").options(user_id="zoe"))
    assert {handle.user_id for handle in run.tasks.values()} == {"zoe"}
    await serve(queue)
    assert [(await queue.user(user)).finished for user in ("anna", "carl", "zoe")] == [0, 2, 2]


# Ids and names


async def test_each_run_has_ids_of_its_own(queue: TaskQueue):
    pipeline = step("a").options(task_id="first") >> step("b")
    runs = [await queue.enqueue(pipeline, user_id="anna") for _ in range(3)]
    ids = {handle.task_id for run in runs for handle in run.tasks.values()}
    assert len(ids) == 6
    assert len({run.run_id for run in runs}) == 3
    await serve(queue)
    assert sorted(ran) == ["a"] * 3 + ["b"] * 3


async def test_a_static_id_is_a_name_within_the_run(queue: TaskQueue):
    pipeline = extract("x").options(task_id="rows") >> (step("a") | step("b")) >> step("c").options(task_id="end: ü")
    run = await queue.enqueue(pipeline, user_id="anna")
    assert list(run) == list(run.tasks) == ["rows", "step", "step-2", "end: ü"]
    assert run["rows"].task_id == f"{run.run_id}.rows"
    with pytest.raises(KeyError):
        run["nothing"]
    await serve(queue)
    assert await run["rows"].result(20) == [1, 1]
    assert [await run[name].result(20) for name in ("step", "step-2", "end: ü")] == ["a", "b", "c"]
    assert repr(run) == f"<PipelineHandle {run.run_id} of 'anna', 4 tasks>"


async def test_a_task_of_a_run_is_found_later_by_its_id(queue: TaskQueue):
    run = await queue.enqueue(step("a") >> step("b").options(task_id="last"), user_id="anna")
    await serve(queue)
    assert await queue.handle("anna", f"{run.run_id}.last").result(20) == "b"


# Results and state


async def test_the_result_is_that_of_the_last_task_or_of_all_that_are_last(queue: TaskQueue):
    one = await queue.enqueue(step("a") >> step("b"), user_id="anna")
    several = await queue.enqueue(step("c") >> [step("d"), extract("xy"), step("e")], user_id="anna")
    with pytest.raises(ResultTimeout, match=f"run {one.run_id} of user 'anna' has not ended within 0 s"):
        await one.result(timeout=0)
    await serve(queue)
    assert await one.result(timeout=0) == "b"
    assert await several.result(timeout=0) == ["d", [2, 1], "e"]


@pytest.mark.leaves_keys
async def test_a_patience_that_makes_no_sense_is_refused(queue: TaskQueue):
    run = await queue.enqueue(step("a") >> step("b"), user_id="anna")
    for timeout in (-1, float("nan"), "soon"):
        with pytest.raises(InvalidInput, match=f"timeout must be .*, not {timeout!r}"):
            await run.result(timeout)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(ResultTimeout, match=r"within 0\.05 s"):
        await run.result(timeout=0.05)
    assert 0.05 <= time.monotonic() - began < 10


async def test_the_state_of_a_run_counts_its_tasks(queue: TaskQueue):
    run = await queue.enqueue(step("a") >> [step("b"), step("c")], user_id="anna")
    state = await run.state()
    assert state.tasks == {TaskState.QUEUED: 1, TaskState.DEFERRED: 2}
    assert (state.ended, state.failed, state.stuck) == (False, False, False)
    await serve(queue)
    state = await run.state()
    assert state.tasks == {TaskState.FINISHED: 3}
    assert (state.ended, state.failed, state.stuck) == (True, False, False)


# Options of the tasks


async def test_priorities_hold_among_what_runs_side_by_side(queue: TaskQueue):
    names = {"low": Priority.LOW, "critical": Priority.CRITICAL, "high": Priority.HIGH}
    fan = [step(name).options(priority=priority) for name, priority in names.items()]
    run = await queue.enqueue(step("first") >> fan, user_id="anna")
    await serve(queue, concurrency=1)
    assert await run.result(20) == list(names)
    assert ran == ["first", "critical", "high", "low"]


async def test_a_delay_begins_when_what_comes_before_has_ended(queue: TaskQueue):
    run = await queue.enqueue(step("a") >> [step("soon"), step("late").options(delay=3600)], user_id="anna")
    await serve(queue)
    assert ran == ["a", "soon"]
    ended = (await run["step"].info()).ended_at
    assert ended
    assert ((await run["step-3"].info()).due_at or 0) >= ended + 3599.9
    assert await run["step-3"].state() is TaskState.SCHEDULED
    await run.cancel()


async def test_a_task_that_is_tried_again_holds_up_the_others_until_it_succeeds(queue: TaskQueue):
    first = fail_until(3).options(max_retries=5, retry=AT_ONCE)
    run = await queue.enqueue(first >> step("then"), user_id="anna")
    await serve(queue)
    assert await run.result(20) == "then"
    assert (await run["fail_until"].info()).attempt == 3
    assert ran == ["then"]


async def test_a_timeout_holds_within_a_pipeline(queue: TaskQueue):
    @task(timeout=0.05)
    async def hang() -> None:
        await asyncio.Event().wait()

    run = await queue.enqueue(step("a") >> hang() >> step("never"), user_id="anna")
    await serve(queue)
    with pytest.raises(TaskFailed, match="ran longer than"):
        await run["hang"].result(20)
    assert ran == ["a"]
    await run.cancel()


# Failure, repair, cancellation


async def test_what_waits_for_a_failed_task_goes_on_when_that_is_requeued_and_finishes(queue: TaskQueue):
    global is_broken
    run = await queue.enqueue(step("a") >> fragile() >> step("b") >> step("c"), user_id="anna")
    await serve(queue)
    state = await run.state()
    assert state.tasks == {TaskState.FINISHED: 1, TaskState.FAILED: 1, TaskState.DEFERRED: 2}
    assert (state.ended, state.failed, state.stuck) == (False, True, True)
    with pytest.raises(ResultTimeout):
        await run.result(0.05)
    is_broken = False
    [letter] = await queue.dead_letters("anna")
    assert letter.task_id == run["fragile"].task_id
    await queue.requeue(letter)
    await serve(queue)
    assert await run.result(20) == "c"
    assert ran == ["a", "b", "c"], "what had finished is not run again"
    assert (await run.state()).ended


async def test_canceling_a_run_says_what_became_of_each_task(queue: TaskQueue):
    run = await queue.enqueue(step("a") >> (fragile() | step("b")) >> step("c"), user_id="anna")
    await serve(queue)
    assert await run.cancel("not needed") == {
        "step-3": Cancellation.CANCELED,
        "step-2": Cancellation.ENDED,
        "fragile": Cancellation.ENDED,
        "step": Cancellation.ENDED,
    }
    with pytest.raises(TaskCanceled, match="not needed"):
        await run.result(20)
    assert (await run.state()).ended
    assert set((await run.cancel()).values()) == {Cancellation.ENDED}
    assert (await queue.stats()).deferred == 0


async def test_canceling_a_run_stops_what_runs(queue: TaskQueue):
    began = asyncio.Event()

    @task
    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    async with Worker(queue):
        run = await queue.enqueue(hang() >> step("never"), user_id="anna")
        await began.wait()
        assert await run.cancel() == {"step": Cancellation.CANCELED, "hang": Cancellation.CANCELING}
        with pytest.raises(TaskCanceled):
            await run["hang"].result(20)
    assert ran == []


async def test_canceling_passes_over_what_has_been_forgotten(queue: TaskQueue):
    run = await queue.enqueue(step("a") >> step("b"), user_id="anna")
    await serve(queue)
    await queue.purge("anna")
    assert set((await run.cancel()).values()) == {Cancellation.ENDED}
    with pytest.raises(UnknownTask):
        await run.state()


@pytest.mark.parametrize(("policy", "ended"), [("cancel", "canceled"), ("run", "finished")])
async def test_the_policy_of_a_task_holds_within_a_pipeline(queue: TaskQueue, policy: str, ended: str):
    last = step("last").options(on_dependency_failure=policy)
    run = await queue.enqueue(fragile() >> last, user_id="anna")
    await serve(queue)
    state = await run.state()
    assert state.tasks == {TaskState.FAILED: 1, TaskState(ended): 1}
    assert state.ended


# Data flow by argument


async def test_an_output_as_an_argument_arrives_as_the_value(queue: TaskQueue):
    handle = await queue.enqueue(load(transform(extract("abc").output).output), user_id="anna")
    await serve(queue)
    assert await handle.result(20) == "t: [30, 10]"
    assert (await queue.stats()).finished == 3


async def test_a_task_itself_may_stand_for_its_output(queue: TaskQueue):
    handle = await queue.enqueue(load(transform(extract("abc"))), user_id="anna")  # type: ignore[arg-type]
    await serve(queue)
    assert await handle.result(20) == "t: [30, 10]"


async def test_outputs_may_be_anywhere_within_the_arguments(queue: TaskQueue):
    @task
    async def collect(parts: list[list[int]], by_name: dict[str, list[str]], *rest: str, **named: object) -> list:
        return [parts, by_name, rest, named]

    x, y, name = extract("x"), extract("yy"), step("z")
    made = collect(
        [x.output, [0], y.output], {"n": [name.output, "!"]}, name.output, deep=[{"a": (x.output,)}], again=y.output
    )
    handle = await queue.enqueue(made, user_id="anna")
    await serve(queue)
    assert await handle.result(20) == [
        [[1, 1], [0], [2, 1]],
        {"n": ["z", "!"]},
        ["z"],
        {"deep": [{"a": [[1, 1]]}], "again": [2, 1]},
    ]
    assert (await queue.stats()).finished == 4, "each of them ran once"


@pytest.mark.smoke
async def test_data_flow_and_operators_go_together(queue: TaskQueue):
    rows = extract("abc")
    pipeline = step("first") >> rows >> [load(rows.output), load(transform(rows.output, 2).output, table="u")]
    run = await queue.enqueue(pipeline >> step("last"), user_id="anna")
    await serve(queue)
    assert await run.result(20) == "last"
    assert [await run[name].result(20) for name in ("load", "load-2")] == ["t: [3, 1]", "u: [6, 2]"]
    assert ran == ["first", "last"]


@dataclass
class Order:
    number: int
    tags: frozenset[str] = frozenset()


async def test_an_output_is_converted_to_the_annotation(queue: TaskQueue):
    @task
    async def place(number: int) -> Order:
        return Order(number, frozenset("ab"))

    @task
    def ship(order: Order, others: tuple[Order, ...], *, by_number: dict[int, Order]) -> list[str]:
        return [type(each).__name__ + str(each.number) for each in (order, *others, *by_number.values())]

    one, two = place(1), place(2)
    handle = await queue.enqueue(ship(one.output, (two.output,), by_number={1: one.output}), user_id="anna")
    await serve(queue)
    assert await handle.result(20) == ["Order1", "Order2", "Order1"]


async def test_an_output_that_does_not_fit_fails_at_once(queue: TaskQueue):
    handle = await queue.enqueue(load(step("text").output).options(max_retries=5), user_id="anna")  # type: ignore[arg-type]
    await serve(queue)
    with pytest.raises(TaskFailed, match=r"load' do not fit: Expected `array`, got `str`") as failed:
        await handle.result(20)
    assert (failed.value.kind, (await handle.info()).attempt) == ("bad-arguments", 1)


async def test_the_output_of_a_task_that_was_tried_again_is_its_last_one(queue: TaskQueue):
    @task
    async def double(n: int) -> int:
        return 2 * n

    handle = await queue.enqueue(double(fail_until(3).options(max_retries=5, retry=AT_ONCE).output), user_id="anna")
    await serve(queue)
    assert await handle.result(20) == 6


async def test_a_requeued_task_is_given_its_inputs_again(queue: TaskQueue):
    attempts = []

    @task
    async def use(rows: list[int]) -> list[int]:
        attempts.append(rows)
        if len(attempts) == 1:
            raise OSError
        return rows

    handle = await queue.enqueue(use(extract("abc").output), user_id="anna")
    await serve(queue)
    await queue.requeue(handle)
    await serve(queue)
    assert await handle.result(20) == [3, 1]
    assert attempts == [[3, 1], [3, 1]]


async def test_a_missing_output_fails_a_task_that_runs_all_the_same(queue: TaskQueue):
    @task
    async def double(n: str) -> str:
        return n + n

    handle = await queue.enqueue(double(fragile().output).options(on_dependency_failure="run"), user_id="anna")
    await serve(queue)
    with pytest.raises(TaskFailed, match=r"the output of task '\S+\.fragile' is an argument, and it has none: failed"):
        await handle.result(20)
    assert (await handle.info()).error.kind == "bad-arguments"


async def test_functions_in_subprocesses_are_given_outputs_as_well(queue: TaskQueue):
    registry[in_processes.mirrored.name] = in_processes.mirrored

    @task
    async def locate(x: int) -> in_processes.Point:
        return in_processes.Point(x, 0)

    handle = await queue.enqueue(in_processes.mirrored(locate(5).output), user_id="anna")
    await serve(queue)
    assert await handle.result(20) == in_processes.Point(0, 5)


async def test_a_result_that_others_wait_for_is_kept_for_them(queue: TaskQueue, server: Server, queue_name: str):
    """However long that takes: it may be that somebody has to repair something first."""
    global is_broken
    rows = extract.options(result_ttl=0.05)("abc")
    run = await queue.enqueue(fragile() >> load(rows.output), user_id="anna")
    await serve(queue)
    result = f"fairque:{{{queue_name}}}:result:anna:{run['extract'].task_id}"
    assert server.execute("PTTL", result) == -1, "it stays"
    is_broken = False
    await queue.requeue(run["fragile"])
    await serve(queue)
    assert await run.result(20) == "t: [3, 1]"
    assert server.execute("PTTL", result) <= 50, "from the end of the last that needed it on"


class Doubler(TaskHandler):
    async def process_task(self, payload: dict) -> object:
        return payload["of"] * 2


async def test_payloads_take_outputs_as_well(queue: TaskQueue):
    doubled = Task.create(payload={"of": extract("abc").output, "not": [None]}, name="double")
    handle = await queue.enqueue(load(doubled.output), user_id="anna")
    await serve(queue, handler=Doubler())
    assert await handle.result(20) == "t: [3, 1, 3, 1]"


# Where no results are kept


async def test_the_output_of_a_task_that_keeps_no_result_is_refused_on_the_spot():
    with pytest.raises(InvalidInput, match=r"the output of '\S+extract' cannot be an argument: it keeps no result"):
        load(extract.options(result_ttl=0)("x").output)
    with pytest.raises(BadArguments, match="too many positional"):
        load(extract("x").output, 3)  # type: ignore[call-arg]


@pytest.fixture
async def forgetful(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(server.url, name=queue_name, result_ttl=0) as queue:
        yield queue


async def test_a_queue_that_keeps_no_results_keeps_those_that_are_arguments(forgetful: TaskQueue):
    seen: list[object] = []

    @task
    async def see(rows: list[int]) -> None:
        seen.append(rows)

    handle = await forgetful.enqueue(see(transform(extract("abc").output).output), user_id="anna")
    await serve(forgetful)
    assert await handle.state() is TaskState.FINISHED
    assert seen == [[30, 10]]


# Outages


async def test_an_outage_while_inputs_are_fetched_is_not_the_fault_of_the_task(
    queue: TaskQueue, proxy: CuttingProxy, queue_name: str, caplog: pytest.LogCaptureFixture
):
    run = await queue.enqueue(load(extract("abc").output) | step("side"), user_id="anna")
    async with TaskQueue(proxy.url, name=queue_name, timeout=0.2) as far, Worker(far):
        cut = proxy.cut_reply(call_of("records"))
        await cut.done.wait()
        await proxy.refuse()
        await eventually(lambda: "needs what others give it, which cannot be fetched" in caplog.text)
        await proxy.accept()
        assert await run["load"].result(20) == "t: [3, 1]"
    assert (await run["load"].info()).errors == ()
