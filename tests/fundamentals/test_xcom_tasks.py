"""10. XCom in tasks: results that others find under a key, and parameters that come from there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from fairque import (
    BadArguments,
    BlockingXCom,
    FairqueError,
    InvalidInput,
    RetryPolicy,
    Task,
    TaskCanceled,
    TaskFailed,
    TaskHandler,
    TaskQueue,
    TaskState,
    Worker,
    XCom,
    XComMissing,
    current_task,
    task,
    xcom_task,
)
from fairque.tasks.registry import registry
from tests.fundamentals import in_processes
from tests.support.calls import call_of
from tests.support.proxy import CuttingProxy
from tests.support.servers import Server

LEASE = 1.0


async def run(queue: TaskQueue, made: Task[Any], user_id: str = "anna", **options: Any) -> Any:
    """Its result, when everything has been served."""
    handle = await queue.enqueue(made, user_id=user_id)
    await Worker(queue, **options).run_until_idle()
    return await handle.result(20)


# Pushing by the decorator


async def test_a_result_lies_under_its_key_when_the_task_has_finished(queue: TaskQueue):
    @xcom_task("prices")
    async def fetch() -> dict[str, float]:
        assert await current_task().xcom.pull("prices", None) is None
        return {"bolt": 0.25}

    assert await run(queue, fetch()) == {"bolt": 0.25}
    assert await queue.xcom("anna").get("prices") == {"bolt": 0.25}


async def test_the_namespace_is_that_of_what_is_pushed_and_of_what_is_pulled(queue: TaskQueue):
    @xcom_task("total", pull_keys=["rate"], namespace="de: ü/%")
    async def add_up(*, rate: float = 0.0) -> float:
        await current_task().xcom.push("seen", True)
        return rate * 2

    values = queue.xcom("anna", "de: ü/%")
    await values.push("rate", 1.5)
    await queue.xcom("anna").push("rate", 99)
    assert await run(queue, add_up()) == 3.0
    assert await values.keys() == ["rate", "seen", "total"]
    assert await values.get("total") == 3.0
    assert await queue.xcom("anna").keys() == ["rate"]


async def test_a_pushed_result_lives_as_long_as_was_said(queue: TaskQueue, server: Server, queue_name: str):
    @xcom_task("short", ttl_seconds=600)
    async def short() -> int:
        return 1

    @xcom_task("usual")
    async def usual() -> int:
        return 1

    def ttl(user: str) -> float:
        return server.execute("PTTL", f"fairque:{{{queue_name}}}:xcom:{user}:default") / 1000

    await run(queue, short(), "anna")
    await run(queue, usual(), "zoe")
    assert 590 < ttl("anna") <= 600
    assert 3590 < ttl("zoe") <= 3600


async def test_a_result_that_has_expired_is_not_there(queue: TaskQueue):
    @xcom_task("gone", ttl_seconds=0.001)
    async def blink() -> int:
        return 1

    await run(queue, blink())
    await asyncio.sleep(0.002)  # by then it has expired on the server as well
    assert await queue.xcom("anna").get("gone") is None


@pytest.mark.parametrize("result", [None, 0, "", [1, {"a": b"\0"}]])
async def test_any_result_is_a_value(queue: TaskQueue, result: object):
    @task(push_key="r: %:{}\0 ü")
    async def give() -> object:
        return result

    await run(queue, give())
    assert await queue.xcom("anna").pull("r: %:{}\0 ü") == result


async def test_enable_xcom_pushes_under_the_name_of_the_function_or_the_key(queue: TaskQueue):
    @task(enable_xcom=True)
    async def plain() -> int:
        return 1

    @task(auto_xcom=True, enable_xcom=True, push_key="processed_result")
    async def named() -> int:
        return 2

    await run(queue, plain())
    await run(queue, named())
    assert await queue.xcom("anna").pull_many(["plain", "processed_result"]) == {"plain": 1, "processed_result": 2}


async def test_a_result_that_is_not_kept_is_pushed_all_the_same(queue: TaskQueue):
    @xcom_task("value", result_ttl=0)
    async def give() -> int:
        return 7

    handle = await queue.enqueue(give(), user_id="anna")
    await Worker(queue).run_until_idle()
    assert await handle.state() is TaskState.FINISHED
    assert await queue.xcom("anna").get("value") == 7


@pytest.mark.parametrize("where", ["loop", "thread", "process"])
async def test_results_are_pushed_wherever_the_function_runs(queue: TaskQueue, where: str):
    @xcom_task("value")
    async def loop() -> int:
        return 7

    @xcom_task("value")
    def thread() -> int:
        return 7

    registry[in_processes.seven.name] = in_processes.seven
    functions = {"loop": loop, "thread": thread, "process": in_processes.seven}
    await run(queue, functions[where]())
    assert await queue.xcom("anna").get("value") == 7


# Pulling by the decorator


@dataclass
class Rate:
    percent: int


@pytest.mark.smoke
async def test_pulled_values_arrive_as_parameters_converted_to_the_annotations(queue: TaskQueue):
    @xcom_task(pull_keys={"rate": "vat", "names": "all names"})
    def invoice(number: int, rate: Rate, *, names: tuple[str, ...] = ()) -> list[object]:
        return [number, type(rate).__name__, rate.percent, names, current_task().inputs]

    await queue.xcom("anna").push("vat", {"percent": 19})
    await queue.xcom("anna").push("all names", ["a", "b"])
    got = await run(queue, invoice(3))
    assert got[:4] == [3, "Rate", 19, ["a", "b"]]
    assert got[4] == {"rate": {"percent": 19}, "names": ["a", "b"]}


async def test_what_the_caller_passes_is_not_replaced(queue: TaskQueue):
    @xcom_task(pull_keys=["a", "b"])
    async def pair(a: int, b: int = 0) -> list[int]:
        return [a, b]

    await queue.xcom("anna").push("a", 1)
    await queue.xcom("anna").push("b", 2)
    assert await run(queue, pair()) == [1, 2]
    assert await run(queue, pair(10)) == [10, 2]
    assert await run(queue, pair(10, b=20)) == [10, 20]


async def test_defaults_stand_in_for_values_that_are_not_there(queue: TaskQueue):
    @xcom_task(pull_keys={"size": "page size", "order": "page order"}, pull_defaults={"size": 50, "order": None})
    async def page(size: int, order: str | None) -> list[object]:
        return [size, order]

    assert await run(queue, page()) == [50, None]
    await queue.xcom("anna").push("page size", 10)
    assert await run(queue, page()) == [10, None]


async def test_a_missing_value_without_a_default_is_an_error_that_names_it(queue: TaskQueue):
    @xcom_task(pull_keys={"size": "page size"}, namespace="pages", max_retries=5, name="page")
    async def page(size: int) -> int:
        return size

    handle = await queue.enqueue(page(), user_id="anna")
    await Worker(queue).run_until_idle()
    with pytest.raises(TaskFailed, match="task 'page' pulls XCom 'page size' from 'pages', where it is not") as failed:
        await handle.result(20)
    assert failed.value.kind == "bad-arguments"
    assert (await handle.info()).attempt == 1, "it is not tried again"


async def test_a_pulled_value_that_does_not_fit_is_an_error(queue: TaskQueue):
    @xcom_task(pull_keys=["size"], name="page")
    async def page(size: int) -> int:
        return size

    await queue.xcom("anna").push("size", "s3cret")
    with pytest.raises(TaskFailed, match="arguments of task 'page' do not fit: Expected `int`, got `str`") as failed:
        await run(queue, page())
    assert failed.value.kind == "bad-arguments"


def test_what_is_pulled_may_be_left_out_by_callers_and_nothing_else():
    @xcom_task(pull_keys=["b"])
    async def pair(a: int, b: int, *, c: int) -> None: ...

    pair(1, c=3)
    pair(a=1, b=2, c=3)
    for args, kwargs in (((), {"c": 3}), ((1,), {}), ((1, "2"), {"c": 3}), ((1,), {"c": 3, "d": 4})):
        with pytest.raises(BadArguments):
            pair(*args, **kwargs)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pull_keys": "abc"}, "pull_keys must map parameters to keys, or list them, not 'abc'"),
        ({"pull_keys": 3}, "pull_keys must map"),
        ({"pull_keys": [""]}, "an entry of pull_keys must not be empty"),
        ({"pull_keys": [3]}, "an entry of pull_keys must be a str, not 3"),
        ({"pull_keys": [str(n) for n in range(101)]}, "pull_keys has 101 entries, the limit is 100"),
        ({"pull_keys": ["a"], "pull_defaults": {"b": 1}}, "pull_defaults has 'b', which pull_keys has not"),
        ({"push_key": ""}, "push_key must not be empty"),
        ({"push_key": 5}, "push_key must be a str, not 5"),
        ({"push_key": "x" * 513}, "push_key has 513 bytes, the limit is 512"),
        ({"push_key": "\ud800"}, "push_key .* cannot be encoded as UTF-8"),
        ({"namespace": ""}, "namespace must not be empty"),
        ({"namespace": None}, "namespace must be a str, not None"),
        ({"ttl_seconds": 0}, "ttl_seconds must be a number from 0.001 to 316224000 seconds, not 0"),
        ({"ttl_seconds": 1e9}, "ttl_seconds must be a number"),
        ({"ttl_seconds": float("nan")}, "ttl_seconds must be a number"),
        ({"prio": 3}, "unknown task option 'prio'"),
    ],
)
def test_options_that_cannot_work_are_refused_by_the_decorator(options: dict[str, Any], text: str):
    async def fn() -> None: ...

    with pytest.raises(InvalidInput, match=text):
        xcom_task(**options)(fn)


def test_the_decorator_without_a_key_says_what_it_takes():
    with pytest.raises(InvalidInput, match=r"as in @xcom_task\('prices'\)"):

        @xcom_task  # type: ignore[arg-type]
        async def prices() -> None: ...


def test_options_of_tasks_are_options_of_these_tasks():
    @xcom_task("key", name="named", run_in="thread", timeout=3, depends_on=["other"], result_ttl=5)
    def function() -> None: ...

    options = function().task_options
    assert (function.name, function.run_in) == ("named", "thread")
    assert (options.timeout, options.depends_on, options.result_ttl) == (3, ("other",), 5)


# Results of dependencies


@task
async def width() -> int:
    return 3


@task(name="shapes.height")
async def height() -> int:
    return 5


@pytest.fixture(autouse=True)
def _known() -> None:
    registry.update({each.name: each for each in (width, height)})


async def test_results_of_dependencies_arrive_as_parameters_of_their_names(queue: TaskQueue):
    @task(auto_xcom=True)
    def area(width: int, height: int, *, unit: str = "m²") -> str:
        assert current_task().inputs == {"width": width, "height": height}
        return f"{width * height} {unit}"

    assert await (await made(queue, (width() | height()) >> area())).result(20) == "15 m²"


async def made(queue: TaskQueue, pipeline) -> Any:
    handle = await queue.enqueue(pipeline, user_id="anna")
    await Worker(queue).run_until_idle()
    return handle


async def test_only_those_of_direct_dependencies_arrive(queue: TaskQueue):
    @task(auto_xcom=True)
    async def names() -> list[str]:
        return sorted(current_task().inputs)

    assert await (await made(queue, width() >> height() >> names())).result(20) == ["height"]
    assert await (await made(queue, names())).result(20) == []


async def test_a_static_id_is_the_name_of_an_input(queue: TaskQueue):
    @task(auto_xcom=True)
    async def add(left: int, right: int) -> int:
        return left - right

    both = width().options(task_id="right") | width().options(task_id="left") | height()
    assert await (await made(queue, both >> add())).result(20) == 0


async def test_results_of_one_name_arrive_as_a_list_in_the_order_of_the_pipeline(queue: TaskQueue):
    @task
    async def count(n: int) -> int:
        return n

    @task(auto_xcom=True)
    async def total(count: list[int]) -> list[int]:
        return count

    assert await (await made(queue, [count(n) for n in (3, 1, 2)] >> total())).result(20) == [3, 1, 2]


async def test_dependencies_outside_of_pipelines_are_named_by_their_functions(queue: TaskQueue):
    @task(auto_xcom=True)
    async def area(width: int, height: int) -> int:
        return width * height

    ids = [await queue.enqueue(each, user_id="anna") for each in (width().options(task_id="2026.may"), height())]
    handle = await queue.enqueue(area(), user_id="anna", depends_on=ids)
    await Worker(queue).run_until_idle()
    assert await handle.result(20) == 15


async def test_inputs_come_with_outputs_and_pulled_values_and_callers_have_the_last_word(queue: TaskQueue):
    @xcom_task(pull_keys={"depth": "d"}, auto_xcom=True)
    async def volume(width: int, height: int, depth: int) -> int:
        return width * height * depth

    await queue.xcom("anna").push("d", 7)
    assert await (await made(queue, width() >> volume(height=height().output))).result(20) == 105
    assert await (await made(queue, (width() | height()) >> volume(100))).result(20) == 3500


async def test_a_parameter_that_nobody_fills_is_an_error(queue: TaskQueue):
    @task(auto_xcom=True, name="area")
    async def area(width: int, height: int) -> int:
        return width * height

    with pytest.raises(TaskFailed, match=r"arguments of task 'area' do not fit: missing .*'height'") as failed:
        await (await made(queue, width() >> area())).result(20)
    assert failed.value.kind == "bad-arguments"


async def test_a_result_that_is_not_kept_is_no_input(queue: TaskQueue):
    @task(auto_xcom=True)
    async def names(width: int = -1) -> list[object]:
        return [width, current_task().inputs]

    assert await (await made(queue, width().options(result_ttl=0) >> names())).result(20) == [-1, {}]


async def test_a_dependency_that_failed_is_no_input(queue: TaskQueue):
    @task
    async def fail() -> int:
        raise OSError

    @task(auto_xcom=True, on_dependency_failure="run")
    async def names() -> list[str]:
        return sorted(current_task().inputs)

    assert await (await made(queue, (width() | fail()) >> names())).result(20) == ["width"]


async def test_a_subprocess_has_its_inputs(queue: TaskQueue):
    registry[in_processes.inputs.name] = in_processes.inputs
    assert await (await made(queue, width() >> in_processes.inputs())).result(20) == {"width": 3}


# Written with the outcome, and never apart from it


@pytest.mark.parametrize("end", ["fails", "is too large", "cannot be encoded", "times out"])
async def test_what_does_not_finish_pushes_nothing(queue: TaskQueue, end: str):
    @xcom_task("value", timeout=0.1 if end == "times out" else None)
    async def give() -> object:
        if end == "fails":
            raise OSError
        if end == "times out":
            await asyncio.Event().wait()
        return "x" * 300_000 if end == "is too large" else object()

    with pytest.raises(TaskFailed):
        await run(queue, give())
    assert await queue.xcom("anna").keys() == []


async def test_only_the_attempt_that_finishes_pushes(queue: TaskQueue):
    seen = []

    @xcom_task("value", retry=RetryPolicy(base=0))
    async def give() -> int:
        seen.append(await current_task().xcom.pull("value", None))
        if current_task().attempt < 3:
            raise OSError
        return current_task().attempt

    assert await run(queue, give()) == 3
    assert seen == [None] * 3
    assert await queue.xcom("anna").get("value") == 3


async def test_a_canceled_task_pushes_nothing(queue: TaskQueue):
    began = asyncio.Event()

    @xcom_task("value")
    async def give() -> int:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 7  # it has been canceled all the same
        return 0

    async with Worker(queue):
        handle = await queue.enqueue(give(), user_id="anna")
        await began.wait()
        await handle.cancel()
        with pytest.raises(TaskCanceled):
            await handle.result(20)
    assert await queue.xcom("anna").keys() == []


@pytest.fixture
async def far(queue: TaskQueue, proxy: CuttingProxy, queue_name: str) -> AsyncIterator[TaskQueue]:
    await queue.change_settings(lease=LEASE)
    async with TaskQueue(proxy.url, name=queue_name, timeout=0.5) as queue:
        yield queue


async def test_an_outcome_that_comes_too_late_pushes_nothing(
    queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy, server: Server
):
    """The first worker is cut off; the second one takes the task over. Then the first one is back."""
    began, go_on = asyncio.Event(), asyncio.Event()

    @xcom_task("value")
    async def give() -> int:
        attempt = current_task().attempt
        if attempt == 1:
            began.set()
            await go_on.wait()
        return attempt

    lost = asyncio.Event()
    handle = await queue.enqueue(give(), user_id="anna")
    async with Worker(far, on_lost=lambda _: lost.set()):
        await began.wait()
        await proxy.refuse()
        go_on.set()  # it ends, and cannot say so
        async with TaskQueue(server.url, name=queue.name) as near, Worker(near):
            assert await handle.result(20) == 2
        await queue.xcom("anna").push("value", "newer")
        await proxy.accept()
        await asyncio.wait_for(lost.wait(), 10)
    assert await queue.xcom("anna").get("value") == "newer"
    assert (await handle.info()).attempt == 2


async def test_a_value_whose_report_was_cut_is_pushed_once(queue: TaskQueue, far: TaskQueue, proxy: CuttingProxy):
    """The report went through, its reply did not: when it is repeated, what is newer by then is left alone."""

    @xcom_task("value")
    async def give() -> int:
        return 7

    cut = proxy.cut_reply(call_of("turn"))
    handle = await queue.enqueue(give(), user_id="anna")
    async with Worker(far):
        await cut.done.wait()
        await proxy.refuse()
        assert await handle.result(20) == 7
        assert await queue.xcom("anna").get("value") == 7
        await queue.xcom("anna").push("value", "newer")
        await proxy.accept()
        other = await queue.enqueue(width(), user_id="anna")
        assert await other.result(20) == 3  # the report was repeated before that of this one
    assert await queue.xcom("anna").get("value") == "newer"
    assert (await queue.stats()).finished == 2


# In a task: current_task().xcom


async def test_an_async_function_awaits_it(queue: TaskQueue):
    @task
    async def use() -> list[object]:
        xcom = current_task().xcom
        assert isinstance(xcom, XCom)
        await xcom.push("a", [1], ttl=60)
        await xcom.push("b", 2)
        found = [await xcom.pull("a"), await xcom.pull("no", "else"), await xcom.pull_many(["a", "b"])]
        found.append(await xcom.keys())
        await xcom.delete("b")
        found.append(await xcom.keys())
        await xcom.clear()
        return [*found, await xcom.keys()]

    assert await run(queue, use()) == [[1], "else", {"a": [1], "b": 2}, ["a", "b"], ["a"], []]


async def test_a_plain_function_has_the_same_without_await(queue: TaskQueue):
    @task
    def use() -> list[object]:
        xcom = current_task().xcom
        assert isinstance(xcom, BlockingXCom)
        xcom.push("a", [1], ttl=60)
        xcom.push("b", 2)
        found = [xcom.pull("a"), xcom.pull("no", "else"), xcom.pull_many(["a", "b"]), xcom.keys()]
        xcom.delete("b")
        found.append(xcom.keys())
        xcom.clear()
        return [*found, xcom.keys()]

    assert await run(queue, use()) == [[1], "else", {"a": [1], "b": 2}, ["a", "b"], ["a"], []]


async def test_a_handler_has_it_as_well(queue: TaskQueue):
    class Keeper(TaskHandler):
        async def process_task(self, payload: dict[str, Any]) -> None:
            await current_task().xcom.push("payload", payload)

    await run(queue, Task.create(payload={"n": 1}), handler=Keeper())
    assert await queue.xcom("anna").get("payload") == {"n": 1}


async def test_a_subprocess_is_told_that_it_has_none(queue: TaskQueue):
    registry[in_processes.push.name] = in_processes.push
    with pytest.raises(TaskFailed, match=r"XCom is not available in a subprocess: .* push it with push_key"):
        await run(queue, in_processes.push())


async def test_outside_of_a_task_there_is_none():
    with pytest.raises(FairqueError, match="outside a task"):
        _ = current_task().xcom


async def test_a_missing_value_fails_the_task_with_a_name(queue: TaskQueue):
    @task
    async def use() -> None:
        await current_task().xcom.pull("nothing")

    with pytest.raises(TaskFailed, match="XComMissing: user 'anna' has no XCom value 'nothing' in 'default'"):
        await run(queue, use())


# Users


async def test_nobody_reaches_the_values_of_another_user(queue: TaskQueue):
    users = ["a", "a:b", "a%3Ab", "b"]
    names = ["b:key", "key", ":key", "%3Akey"]

    @xcom_task("key")
    async def give() -> str:
        for name in names:
            await current_task().xcom.push(name, current_task().user_id)
        return current_task().user_id

    @task
    async def look() -> list[str]:
        values = [await current_task().xcom.pull_many(names, namespace=space) for space in ("default", "b:default")]
        return sorted({value for found in values for value in found.values()})

    for user in users:
        await queue.enqueue(give(), user_id=user)
    handles = [await queue.enqueue(look(), user_id=user, delay=0) for user in users]
    await Worker(queue, concurrency=1).run_until_idle()
    assert [await handle.result(20) for handle in handles] == [[user] for user in users]
    assert await queue.xcom("nobody").keys() == []


# Outside of tasks


async def test_from_outside_it_is_the_same(queue: TaskQueue):
    @xcom_task("doubled", pull_keys=["n"])
    async def double(n: int) -> int:
        return 2 * n

    values = queue.xcom("anna")
    await values.push("n", 21)
    await run(queue, double())
    assert await values.get("doubled") == 42
    assert await values.get("nothing") is None
    with pytest.raises(XComMissing):
        await values.pull("nothing")
    await values.clear()
    assert await values.keys() == []
