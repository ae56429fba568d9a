"""The blocking face: the same names, results and errors as the async one, from threads, forks and scripts."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import fairque
from fairque import (
    ConfigError,
    FairqueError,
    InvalidInput,
    QueueUnavailable,
    Restarted,
    ResultTimeout,
    Retry,
    TaskFailed,
    TaskState,
    UnknownSchedule,
    UnknownTask,
    XComMissing,
    current_task,
    task,
)
from fairque.config.config import FairQueueConfig, QueueConfig
from fairque.embedded.server import EmbeddedServer
from fairque.sync import Batch, PipelineHandle, TaskHandle, TaskQueue, TaskScheduler, TaskStream, XComManager
from fairque.tasks.registry import unregister
from tests.support.process import WorkerProcess
from tests.support.servers import Server
from tests.workers import tasks

Start = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
def blocking(server: Server, queue_name: str) -> Iterator[TaskQueue]:
    with TaskQueue(server.url, name=queue_name) as queue:
        yield queue


@task(name="sync-divide")
def divide(a: int, b: int) -> float:
    current_task().progress(0.5, "halfway")
    return a / b


@task(name="sync-rows")
def rows(most: int) -> Iterator[int]:
    for n in range(most):
        yield n
        if n == 1 and current_task().attempt == 1:
            raise Retry(delay=0)


@task(name="sync-until")
def until(path: str) -> str:
    while not (Path(path).exists() or current_task().canceled):
        time.sleep(0.01)
    return "there"


# The two faces

INTERNAL = {"message_of", "store", "enqueue_child", "time_calls", "look"}
"""Methods of the async classes that are for the other parts of fairque."""

BLOCKING_ONLY = {"worker"}

FACES = [
    (TaskQueue, fairque.TaskQueue),
    (TaskHandle, fairque.TaskHandle),
    (TaskStream, fairque.TaskStream),
    (PipelineHandle, fairque.PipelineHandle),
    (Batch, fairque.Batch),
    (XComManager, fairque.XComManager),
    (TaskScheduler, fairque.TaskScheduler),
]


def methods_of(cls: type) -> dict[str, Any]:
    found = {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}
    return {name: value for name, value in found.items() if inspect.isroutine(value)}


def shape(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """Names, kinds, defaults and annotations of the arguments, and what is returned."""
    signature = inspect.signature(function)
    given = [(p.name, p.kind, p.default, plain(p.annotation)) for p in signature.parameters.values()]
    return [*given, plain(signature.return_annotation)]


def plain(annotation: object) -> str:
    """What a blocking one says instead of an async one."""
    text = str(annotation)
    return text.replace("AsyncIterator", "Iterator")


@pytest.mark.parametrize(("face", "original"), FACES, ids=lambda cls: cls.__name__)
def test_both_faces_have_the_same_methods_and_signatures(face: type, original: type):
    own, given = methods_of(face), methods_of(original)
    assert own.keys() - BLOCKING_ONLY == given.keys() - INTERNAL
    assert own.keys() - BLOCKING_ONLY or hasattr(face, "__iter__")
    for name in own.keys() - BLOCKING_ONLY:
        assert shape(own[name]) == shape(given[name]), name
        overloads = list(map(shape, typing.get_overloads(original.__dict__.get(name, given[name]))))
        if own[name].__module__.startswith("fairque.sync"):  # written out, not derived
            assert list(map(shape, typing.get_overloads(own[name]))) == overloads, name
        assert not inspect.iscoroutinefunction(own[name]), name
        assert not inspect.isasyncgenfunction(own[name]), name
        assert inspect.getdoc(own[name]), name


def test_a_queue_and_its_worker_take_the_same_options():
    assert shape(TaskQueue) == shape(fairque.TaskQueue)
    assert (
        list(inspect.signature(TaskQueue.worker).parameters)[1:]
        == list(inspect.signature(fairque.Worker).parameters)[1:]
    )


def test_every_async_class_that_is_returned_has_a_face():
    """Or a caller would hold coroutines that nobody can await."""
    originals = [original for _, original in FACES]
    hints = [
        str(inspect.signature(method).return_annotation) for cls in originals for method in methods_of(cls).values()
    ]
    returned = [getattr(fairque, name, None) for hint in hints for name in re.findall(r"\w+", hint)]
    is_async = [
        cls for cls in returned if inspect.isclass(cls) and any(map(inspect.iscoroutinefunction, vars(cls).values()))
    ]
    assert fairque.TaskHandle in is_async
    assert set(is_async) <= set(originals)


def test_a_configuration_makes_a_queue_of_either_kind():
    queue = TaskQueue.from_config(FairQueueConfig(queue=QueueConfig(name="photos")))
    assert isinstance(queue, TaskQueue)
    assert queue.name == "photos"


# Work


def test_what_a_task_yields_is_read_while_it_runs(blocking: TaskQueue):
    handle = blocking.enqueue(rows.options(max_retries=1)(4), user_id="anna")
    stream = handle.stream()
    with blocking.worker():
        chunks = iter(stream)
        assert [next(chunks), next(chunks)] == [0, 1]
        with pytest.raises(Restarted):
            next(chunks)
        assert list(stream) == [0, 1, 2, 3]
        assert stream.position == "2-4"
        assert list(handle.stream(after="2-3")) == [3]


def test_schedules_are_managed_and_fired(blocking: TaskQueue):
    scheduler = TaskScheduler(blocking)
    scheduler.add_schedule("0 12 * * *", tasks.add(1, 2), user_id="anna", schedule_id="noon")
    assert scheduler.update_schedule("noon", cron_expr="* * * * * *").active
    assert [each.schedule_id for each in scheduler.list_schedules("anna")] == ["noon"]
    firing = threading.Thread(target=scheduler.run, daemon=True)
    firing.start()
    wait_for(lambda: scheduler.get_schedule("noon").runs >= 2)
    scheduler.stop()
    firing.join(20)
    with blocking.worker(scheduler=False):
        assert blocking.handle("anna", scheduler.run_now("noon")).result(timeout=20) == 3
    assert scheduler.remove_schedule("noon")
    with pytest.raises(UnknownSchedule):
        scheduler.get_schedule("noon")
    blocking.purge("anna")


def test_a_scheduler_that_runs_in_a_thread_ends_with_its_queue(server: Server, queue_name: str):
    queue = TaskQueue(server.url, name=queue_name)
    firing = threading.Thread(target=TaskScheduler(queue).run, daemon=True)
    firing.start()
    wait_for(lambda: server.execute("EXISTS", f"fairque:{{{queue_name}}}:schedule-keepers"))
    queue.close()
    firing.join(20)
    assert not firing.is_alive()


@pytest.mark.smoke
def test_a_task_is_put_in_and_its_result_waited_for(blocking: TaskQueue):
    with blocking.worker(concurrency=2):
        handle = blocking.enqueue(tasks.add(1, 2), user_id="anna", task_id="t")
        assert (handle.user_id, handle.task_id, handle.created) == ("anna", "t", True)
        assert handle.result(timeout=20) == 3
        assert handle.info().state is handle.state() is TaskState.FINISHED
        assert [each.result(20) for each in blocking.enqueue_many([divide(1, 2), divide(4, 2)], user_id="ben")] == [
            0.5,
            2.0,
        ]
    assert blocking.stats().finished == 3
    assert [user.user_id for user in blocking.users(limit=1)] == ["ben"]
    assert blocking.handle("anna", "t").result(0) == 3


def test_a_task_is_watched_while_it_runs(blocking: TaskQueue, tmp_path: Path):
    path = tmp_path / "go"
    seen = []
    with blocking.worker():
        handle = blocking.enqueue(until(str(path)), user_id="anna")
        for info in handle.watch():
            seen.append(info.state)
            if info.state is TaskState.STARTED:
                path.touch()
    assert seen[-2:] == [TaskState.STARTED, TaskState.FINISHED]


def test_a_watch_that_is_left_early_is_over(blocking: TaskQueue, server: Server, tmp_path: Path):
    handle = blocking.enqueue(until(str(tmp_path)), user_id="anna")
    for info in handle.watch():
        assert info.state is TaskState.QUEUED
        assert is_waited_for(server, handle)
        break
    wait_for(lambda: not is_waited_for(server, handle))
    with blocking.worker():
        assert handle.result(20) == "there"


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_pipeline_comes_with_blocking_handles(blocking: TaskQueue):
    with blocking.worker():
        run = blocking.enqueue(
            tasks.add(1, 2).options(task_id="first") >> tasks.add(3, 4).options(task_id="last"), user_id="anna"
        )
        assert run.result(20) == 7
        assert run["first"].result() == 3
        assert list(run) == list(run.tasks) == ["first", "last"]
        assert len(run) == 2
        assert run.state().ended
        assert list(map(str, run.cancel().values())) == ["ended", "ended"]
        assert (run.user_id, run.run_id) == ("anna", run["first"].task_id.partition(".")[0])


def test_values_are_shared_with_tasks(blocking: TaskQueue):
    values = blocking.xcom("anna", "orders")
    assert (values.user_id, values.namespace) == ("anna", "orders")
    values.push("net", 10)
    values.push("rate", "0.19")
    assert values.pull("net", type=float) == 10.0
    assert values.get("nothing", 7) == 7
    assert values.keys() == ["net", "rate"]
    assert values.pull_many(["net", "gross"]) == {"net": 10}
    values.delete("net")
    with pytest.raises(XComMissing):
        values.pull("net")
    values.clear()
    assert values.keys() == []


def test_failures_come_as_the_same_errors_and_can_be_requeued(blocking: TaskQueue):
    with blocking.worker():
        handle = blocking.enqueue(divide(1, 0), user_id="anna")
        with pytest.raises(TaskFailed, match="division by zero"):
            handle.result(20)
        [letter] = blocking.dead_letters("anna")
        again = blocking.requeue(letter)
        assert isinstance(again, TaskHandle)
        with pytest.raises(TaskFailed):
            again.result(20)
        blocking.discard(handle)
        with pytest.raises(UnknownTask):
            blocking.requeue(handle)
        with pytest.raises(UnknownTask):
            blocking.handle("anna", "nothing").result()
    with pytest.raises(InvalidInput, match="user_id"):
        blocking.enqueue(divide(1, 1), user_id="")


def test_a_blocking_handle_is_a_dependency_as_well(blocking: TaskQueue):
    first = blocking.enqueue(tasks.add(1, 1), user_id="anna")
    second = blocking.enqueue(tasks.add(2, 2), user_id="anna", depends_on=[first])
    assert second.state() is TaskState.DEFERRED
    with blocking.worker():
        assert second.result(20) == 4


def test_a_function_is_put_in_without_its_decorator(blocking: TaskQueue):
    task_id = blocking.push_function_task("anna", divide, [1], {"b": 2})
    with blocking.worker():
        assert blocking.handle("anna", task_id).result(20) == 0.5


def test_nobody_sees_arguments_in_a_repr(blocking: TaskQueue):
    handle = blocking.enqueue(tasks.log("hunter2", 0), user_id="anna", task_id="t")
    shown = [repr(blocking), repr(handle), repr(blocking.xcom("anna"))]
    assert shown == [f"<fairque.sync.queue.TaskQueue {blocking.name!r}>", "<TaskHandle 'anna' 't'>", shown[2]]
    assert "hunter2" not in "".join(shown)
    handle.cancel()


# Threads and loops


def test_threads_share_a_queue(blocking: TaskQueue):
    with blocking.worker(), ThreadPoolExecutor(8) as threads:
        results = threads.map(lambda n: blocking.enqueue(tasks.add(n, 1), user_id=f"u{n}").result(30), range(64))
        assert list(results) == list(range(1, 65))


def test_threads_that_come_first_at_the_same_time_open_one_queue(server: Server, queue_name: str):
    queue = TaskQueue(server.url, name=queue_name)
    before = threading.active_count()
    together = threading.Barrier(8)

    def use(_: int) -> int:
        together.wait(20)
        return queue.stats().finished

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(use, range(8))) == [0] * 8
    assert threading.active_count() == before + 1
    queue.close()


def test_queues_share_one_loop_until_the_last_is_closed(server: Server, queue_name: str):
    before = threading.active_count()
    with TaskQueue(server.url, name=queue_name) as one, TaskQueue(server.url, name=f"{queue_name}/2") as two:
        assert one.stats().finished == two.stats().finished == 0
        assert threading.active_count() == before + 1
        one.close()
        assert two.stats().finished == 0
    assert threading.active_count() == before


@pytest.mark.smoke
async def test_it_can_be_used_where_a_loop_runs_as_in_a_notebook(server: Server, queue_name: str):
    with TaskQueue(server.url, name=queue_name) as queue, queue.worker():
        assert queue.enqueue(tasks.add(1, 2), user_id="anna").result(20) == 3


def test_a_call_from_its_own_loop_is_refused_and_not_waited_for(blocking: TaskQueue):
    @task(name="sync-inside")
    async def inside() -> str:
        with pytest.raises(FairqueError, match="own event loop would wait for itself"):
            blocking.stats()
        return "went on"

    @task(name="sync-beside")
    def beside() -> int:
        return blocking.stats().started

    try:
        with blocking.worker():
            assert blocking.enqueue(inside(), user_id="anna").result(20) == "went on"
            assert blocking.enqueue(beside(), user_id="anna").result(20) == 1
    finally:
        unregister("sync-inside")
        unregister("sync-beside")


# Opening and closing


def test_a_closed_queue_says_so_until_it_is_opened_again(server: Server, queue_name: str):
    queue = TaskQueue(server.url, name=queue_name)
    assert queue.stats().finished == 0
    handle = queue.handle("anna", "t")
    queue.close()
    queue.close()
    for call in (queue.stats, handle.state, lambda: queue.handle("anna", "t")):
        with pytest.raises(ConfigError, match="the queue is closed"):
            call()
    with queue:
        assert queue.stats().finished == 0


def test_a_wait_ends_when_another_thread_closes_the_queue(server: Server, queue_name: str, tmp_path: Path):
    queue = TaskQueue(server.url, name=queue_name)
    handle = queue.enqueue(until(str(tmp_path)), user_id="anna")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(handle.result)
        wait_for(lambda: is_waited_for(server, handle))
        queue.close()
        with pytest.raises(ConfigError, match="closed"):
            waiting.result(20)
    with queue, queue.worker():
        assert queue.handle("anna", handle.task_id).result(20) == "there"


def test_a_queue_that_cannot_be_opened_leaves_nothing(own_server: Callable[..., EmbeddedServer]):
    server = own_server()
    queue = TaskQueue(server.url, timeout=0.3)
    server.kill()
    with pytest.raises(QueueUnavailable):
        queue.open()
    queue.close()
    with pytest.raises(QueueUnavailable), queue:
        pass
    with pytest.raises(InvalidInput, match="timeout"):
        TaskQueue(server.url, timeout=-1)


def test_a_result_that_takes_too_long_is_an_error_as_ever(blocking: TaskQueue, tmp_path: Path):
    handle = blocking.enqueue(until(str(tmp_path / "never")), user_id="anna")
    with pytest.raises(ResultTimeout):
        handle.result(timeout=0.05)
    handle.cancel()


def test_an_interrupted_wait_leaves_nothing_on_the_loop(blocking: TaskQueue, server: Server, tmp_path: Path):
    handle = blocking.enqueue(until(str(tmp_path)), user_id="anna")

    def interrupt() -> None:
        wait_for(lambda: is_waited_for(server, handle))
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as threads:
        interrupting = threads.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            handle.result()
        interrupting.result(20)
    wait_for(lambda: not is_waited_for(server, handle))
    with blocking.worker():
        assert handle.result(20) == "there"


def is_waited_for(server: Server, handle: TaskHandle[Any]) -> bool:
    return bool(server.execute("PUBSUB", "SHARDCHANNELS", f"*{handle.task_id}"))


def test_an_interrupt_while_a_call_is_handed_over_ends_it_as_well(
    blocking: TaskQueue, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    handle = blocking.enqueue(until(str(tmp_path)), user_id="anna")
    portal = handle._session._portal
    start = portal.start_task_soon

    def interrupted(call: Callable[[], Any]) -> None:
        monkeypatch.undo()
        start(call)
        wait_for(lambda: is_waited_for(server, handle))
        raise KeyboardInterrupt

    monkeypatch.setattr(portal, "start_task_soon", interrupted)
    with pytest.raises(KeyboardInterrupt):
        handle.result()
    wait_for(lambda: not is_waited_for(server, handle))
    with blocking.worker():
        assert handle.result(20) == "there"


# Scripts, each in a process of its own

HEADER = """
import asyncio, os, signal, sys, threading, time
from fairque import FairqueError, ConfigError, task
from fairque.sync import TaskQueue

@task
def plain() -> int:
    return os.getpid()

@task
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)

queue = TaskQueue(sys.argv[1], name=sys.argv[2])
"""


def script(body: str, *arguments: str, header: str = HEADER) -> str:
    """What it prints. Warnings are errors, and so is anything on stderr."""
    may_fork = ["-W", "ignore:This process:DeprecationWarning"]  # with threads, says Python 3.12, which is the point
    command = [sys.executable, "-W", "error", *may_fork, "-c", header + inspect.cleandoc(body), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=40)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    "body",
    [
        "print(queue.stats().finished)",
        "with queue: print(queue.stats().finished)",
        "queue.open(); print(queue.stats().finished)",
        "queue.stats(); queue.close(); print(0)",
        "watch = queue.enqueue(sleep(1), user_id='a').watch(); next(watch); queue.purge('a'); print(0)",
        "queue.open()\nthreading.Thread(target=lambda: (time.sleep(0.3), print(queue.stats().failed))).start()",
    ],
    ids=["lazily", "with", "open", "close", "watch", "a thread that outlives the main one"],
)
def test_a_script_ends_without_a_word(server: Server, queue_name: str, body: str):
    assert script(body, server.url, queue_name) == "0\n"


@pytest.mark.parametrize("url", ["", "embedded://"], ids=["server", "embedded"])
def test_a_script_that_leaves_its_queue_open_after_a_worker_ends_all_the_same(
    server: Server, queue_name: str, url: str
):
    """Though the threads in which plain tasks ran wait for more."""
    body = """
    with queue.worker():
        print(queue.enqueue(plain(), user_id="a").result(20) == os.getpid())
    """
    assert script(body, url or server.url, queue_name) == "True\n"


def test_the_loop_ends_before_the_interpreter(server: Server, queue_name: str):
    """What is registered first is called last."""
    look = "import atexit, threading\natexit.register(lambda: print([each.name for each in threading.enumerate()]))\n"
    assert script("queue.stats()", server.url, queue_name, header=look + HEADER) == "['MainThread']\n"


def test_an_embedded_server_ends_with_the_script():
    body = "queue.stats(); print(queue._inner.connector._server.pid)"
    pid = int(script(body, "embedded://", "default"))
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


FORK = """
def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            sys.stdout.flush()
        except BaseException as error:
            print("child:", type(error).__name__, error)
        sys.exit(0)
    os.waitpid(pid, 0)
"""


def test_a_queue_that_was_used_before_a_fork_can_be_used_in_both(server: Server, queue_name: str):
    body = FORK + inspect.cleandoc("""
    handle = queue.enqueue(sleep(0), user_id="a")
    watch = handle.watch()
    next(watch)

    def work():
        print("child:", queue.stats().workers, queue.enqueue(sleep(0), user_id="a").state())
        try:
            handle.state()
        except FairqueError as error:
            print("child:", error)

    for _ in range(3):
        child(work)
        print("parent:", handle.state(), flush=True)
    with queue.worker():
        handle.result(20)
    print([info.state.value for info in watch])
    queue.purge("a")
    """)
    lines = script(body, server.url, queue_name).splitlines()
    assert [line for line in lines if "before a fork: ask the queue for a new one" not in line] == [
        *["child: () queued", "parent: queued"] * 3,
        "['finished']",
    ]
    assert len(lines) == 10


def test_a_scheduler_that_was_used_before_a_fork_can_be_used_in_both(server: Server, queue_name: str):
    body = FORK + inspect.cleandoc("""
    from fairque.sync import TaskScheduler

    scheduler = TaskScheduler(queue)
    scheduler.add_schedule(task=sleep(0), every=60, user_id="a", schedule_id="s")
    child(lambda: print(scheduler.fire_due(60)))
    print(scheduler.get_schedule("s").runs)
    queue.close()
    queue.open()
    print(scheduler.remove_schedule("s"))
    queue.purge("a")
    """)
    assert script(body, server.url, queue_name) == "1\n1\nTrue\n"


def test_a_queue_that_was_not_used_before_a_fork_is_like_any_other(server: Server, queue_name: str):
    body = FORK + "child(lambda: print(queue.stats().finished))\nprint(queue.stats().finished)"
    assert script(body, server.url, queue_name) == "0\n0\n"


def test_a_fork_in_the_middle_of_another_threads_call_does_not_hang(server: Server, queue_name: str):
    body = FORK + inspect.cleandoc("""
    queue.stats()
    going = True

    def busy():
        while going:
            queue.stats()

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        child(lambda: print(queue.stats().finished))
    going = False
    for thread in threads:
        thread.join()
    """)
    assert script(body, server.url, queue_name) == "0\n" * 20


def test_a_private_embedded_server_is_not_quietly_another_one_after_a_fork():
    body = FORK + "queue.stats()\nchild(queue.stats)\nprint(queue.stats().finished)"
    told = script(body, "embedded://", "default").splitlines()
    assert told[0].startswith("child: ConfigError the private server of embedded:// belongs to the process")
    assert told[1:] == ["0"]


async def test_ctrl_c_ends_the_wait_for_a_result_and_not_the_task(
    worker_process: Start, server: Server, queue_name: str, tmp_path: Path
):
    path = tmp_path / "interrupted.py"
    path.write_text(
        HEADER
        + inspect.cleandoc("""
        with queue, queue.worker(shutdown_timeout=30):
            handle = queue.enqueue(sleep(1), user_id="a")
            try:
                print("waits", flush=True)
                handle.result()
            except KeyboardInterrupt:
                print("interrupted in", handle.state().value)
                handle.result(20)
                print("and then", handle.state().value)
        """)
    )
    process = await worker_process(path, server.url, queue_name)
    await process.line("waits")
    process.send(signal.SIGINT)
    assert await process.wait(30) == 0
    assert process.lines[-1] == "and then finished"
    assert any(line.startswith("interrupted in") for line in process.lines)


def test_a_handle_tells_what_became_of_a_task_that_was_put_in_on_a_condition(blocking: TaskQueue):
    made = [blocking.enqueue(divide(6, n), user_id="acme", debounce=60) for n in (2, 3)]
    assert [handle.enqueued for handle in made] == ["created", "replaced"]
    assert made[0].task_id == made[1].task_id
    assert [handle.created for handle in blocking.enqueue_many([divide(1, 1)] * 2, user_id="acme", throttle=60)] == [
        True,
        False,
    ]
    blocking.purge("acme")
