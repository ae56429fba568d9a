"""Metrics of processes and of queues, as Prometheus reads them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from fairque import (
    EVERYBODY,
    InvalidInput,
    Retry,
    RetryPolicy,
    Snooze,
    Task,
    TaskHandler,
    TaskQueue,
    Worker,
    current_task,
    task,
)
from fairque.contrib.prometheus import QueueMetrics, Sum, WorkerMetrics, queue_reader
from fairque.contrib.prometheus.catalogue import CATALOGUE, PROCESS, QUEUE
from fairque.embedded.server import EmbeddedServer
from fairque.tasks.registry import unregister
from tests.apps import served
from tests.support.eventually import eventually
from tests.support.plugin import load_scripts
from tests.support.process import WorkerProcess
from tests.support.servers import Server
from tests.support.users import denials, user_with, words_of
from tests.test_monitoring import VALUES

pytestmark = pytest.mark.usefixtures("functions")
Start = Callable[..., Awaitable[WorkerProcess]]
Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(page: bytes) -> Page:
    """The samples by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def value(page: Page, metric: str, /, **labels: str) -> float | None:
    """Of all samples with these labels, the sum; None where there are none."""
    wanted = labels.items()
    found = [number for (sample, has), number in page.items() if sample == metric and wanted <= has]
    return sum(found) if found else None


def values_of(page: Page, metric: str, label: str) -> set[str]:
    return {text for sample, has in page if sample == metric for name, text in has if name == label}


def labels_of(page: Page, label: str) -> set[str]:
    return {text for _, has in page for name, text in has if name == label}


@pytest.fixture
def functions() -> Iterator[None]:
    made = [task(name=fn.__name__, retry=RetryPolicy(max=1, base=0))(fn) for fn in (increase, stumble, put_off, linger)]
    yield
    for each in made:
        unregister(each.name)


MANY = 10_000
"""Names: the functions of all other tests are there as well."""


async def increase(n: int) -> int:
    return n + 1


async def stumble(always: bool) -> None:
    if always or current_task().attempt == 1:
        raise Retry(reason="again")


async def put_off() -> None:
    if current_task().snoozed == 0:
        raise Snooze(0.01)


async def linger() -> None:
    await asyncio.Event().wait()


class Echo(TaskHandler):
    async def process_task(self, payload: dict) -> dict:
        return payload


async def run(queue: TaskQueue, name: str, *args: object, user_id: str = "acme") -> None:
    handle = await queue.enqueue_by_name(name, args, user_id=user_id)
    async for _ in handle.watch():
        pass


# Of a process


@pytest.mark.smoke
@pytest.mark.leaves_keys
async def test_each_end_of_a_task_is_counted_by_its_name_and_its_outcome(queue: TaskQueue) -> None:
    worker = Worker(queue)
    metrics = WorkerMetrics(worker, most_names=MANY)
    async with worker:
        await run(queue, "increase", 1)
        await run(queue, "increase", 1)
        await run(queue, "stumble", False)
        await run(queue, "stumble", True)
        await run(queue, "put_off")
        await run(queue, "increase", "one")
        handle = await queue.enqueue_by_name("linger", user_id="acme")
        await eventually(lambda: worker.stats().busy == 1)
        await handle.cancel()
        await eventually(lambda: worker.stats().busy == 0)
    page = read(metrics.render())
    told = {
        (name, outcome): value(page, "fairque_tasks_total", queue=queue.name, name=name, outcome=outcome)
        for name in ("increase", "stumble", "put_off", "linger")
        for outcome in VALUES["fairque_tasks_total", "outcome"]
    }
    assert {key: number for key, number in told.items() if number} == {
        ("increase", "finished"): 2,
        ("increase", "failed"): 1,
        ("stumble", "finished"): 1,
        ("stumble", "failed"): 1,
        ("stumble", "retried"): 2,
        ("put_off", "snoozed"): 1,
        ("put_off", "finished"): 1,
        ("linger", "canceled"): 1,
    }
    runs = {
        name: value(page, "fairque_task_run_seconds_count", name=name) for name in ("increase", "stumble", "put_off")
    }
    assert runs == {"increase": 2, "stumble": 4, "put_off": 1}, "bad arguments never ran"
    waits = {
        name: value(page, "fairque_task_wait_seconds_count", name=name) for name in ("increase", "stumble", "put_off")
    }
    assert waits == {"increase": 3, "stumble": 2, "put_off": 1}, "one for each task"


async def test_calls_to_redis_are_timed_by_script(queue: TaskQueue) -> None:
    worker = Worker(queue)
    metrics = WorkerMetrics(worker, Worker(queue), most_names=MANY)
    async with worker:
        await run(queue, "increase", 1)
    page = read(metrics.render())
    assert value(page, "fairque_redis_seconds_count", queue=queue.name, script="enqueue") == 1, "though two share it"
    assert value(page, "fairque_redis_seconds_count", script="claim") >= 1
    assert 0 < value(page, "fairque_redis_seconds_sum", script="enqueue") < 5


async def test_slots_are_those_of_workers_that_run(queue: TaskQueue) -> None:
    worker = Worker(queue, concurrency=3, shutdown_timeout=0)
    metrics = WorkerMetrics(worker, most_names=MANY)

    def slots() -> tuple[float | None, float | None]:
        page = read(metrics.render())
        return value(page, "fairque_slots", state="busy"), value(page, "fairque_slots", state="free")

    assert slots() == (0, 0)
    assert values_of(read(metrics.render()), "fairque_slots", "state") == VALUES["fairque_slots", "state"]
    async with worker:
        assert slots() == (0, 3)
        handle = await queue.enqueue_by_name("linger", user_id="acme")
        await eventually(lambda: slots() == (1, 2))
    assert slots() == (0, 0)
    assert value(read(metrics.render()), "fairque_tasks_total", outcome="released") == 1
    await handle.cancel()


async def test_names_that_users_make_up_have_no_label(queue: TaskQueue) -> None:
    worker = Worker(queue, handler=Echo(), unknown_task_patience=0)
    metrics = WorkerMetrics(worker, names=["prometheus-echo"], most_names=MANY)
    async with worker:
        for n in range(20):
            await queue.enqueue_by_name(f"made-up-{n}", user_id="mallory")
            await queue.enqueue(Task.create(payload={"n": n}, name=f"paid-up-{n}"), user_id="mallory")
        await run(queue, "increase", 1)
        echo = await queue.enqueue(Task.create(payload={}, name="prometheus-echo"), user_id="acme")
        await echo.result(timeout=10)
        await eventually(lambda: value(read(metrics.render()), "fairque_tasks_total", name="other") >= 40)
    assert labels_of(read(metrics.render()), "name") == {"increase", "prometheus-echo", "other"}
    await queue.cancel_all("mallory")


async def test_so_many_names_have_a_label_and_no_more(queue: TaskQueue) -> None:
    worker = Worker(queue, handler=Echo())
    metrics = WorkerMetrics(worker, names=["increase", "increase", "paid"], most_names=2)
    async with worker:
        await run(queue, "stumble", False)
        await run(queue, "increase", 1)
    page = read(metrics.render())
    assert labels_of(page, "name") == {"increase", "other"}, "not those that came first, which users could see to"
    assert value(page, "fairque_tasks_total", name="increase") == 1


async def test_a_function_that_is_defined_later_has_a_label(queue: TaskQueue) -> None:
    worker = Worker(queue)
    metrics = WorkerMetrics(worker, most_names=MANY)
    async with worker:
        await run(queue, "increase", 1)
        made = task(name="late")(served.greet.fn)
        await run(queue, "late", "you")
    unregister(made.name)
    assert labels_of(read(metrics.render()), "name") == {"increase", "late"}


async def test_failed_claims_are_counted(own_server: Callable[..., EmbeddedServer]) -> None:
    server = own_server()
    async with TaskQueue(server.url, name="q", timeout=0.5, lease=1) as queue:
        worker = Worker(queue, poll_interval=0.05)
        metrics = WorkerMetrics(worker, most_names=MANY)
        async with worker:
            assert value(read(metrics.render()), "fairque_claim_errors_total", queue="q") == 0
            server.kill()
            await eventually(lambda: value(read(metrics.render()), "fairque_claim_errors_total", queue="q") > 0)
            assert value(read(metrics.render()), "fairque_leases_stolen_total", queue="q") == 0


@pytest.mark.leaves_keys("workers")
async def test_leases_that_were_stolen_are_counted(
    worker_process: Start, server: Server, queue_name: str, tmp_path: Path
) -> None:
    env = {"SERVED_URL": server.url, "SERVED_QUEUE": queue_name}
    process = await worker_process("fairque", "worker", "tests.apps.served:queue", env=env)
    async with TaskQueue(server.url, name=queue_name, lease=1) as queue:
        handle = await queue.enqueue(served.hold(f"{tmp_path}/go"), user_id="acme", task_id="held")
        await process.line("runs held")
        process.send(signal.SIGKILL)
        (tmp_path / "go").touch()
        worker = Worker(queue)
        metrics = WorkerMetrics(worker, most_names=MANY)
        async with worker:
            assert await handle.result(timeout=30) == "let go"
    assert value(read(metrics.render()), "fairque_leases_stolen_total", queue=queue_name) == 1


@pytest.mark.damages
@pytest.mark.leaves_keys
async def test_what_was_lost_is_counted_by_its_name(server: Server, queue: TaskQueue, tmp_path: Path) -> None:
    worker = Worker(queue)
    metrics = WorkerMetrics(worker, most_names=MANY)
    async with worker:
        await queue.enqueue(served.hold(f"{tmp_path}/go"), user_id="acme", task_id="held")
        await eventually(lambda: worker.stats().busy == 1)
        server.execute("DEL", f"{queue.keys.prefix}task:acme:held")
        (tmp_path / "go").touch()
        name = served.hold.name
        await eventually(lambda: value(read(metrics.render()), "fairque_tasks_total", name=name, outcome="lost") == 1)


async def test_a_registry_of_prometheus_client_takes_them(queue: TaskQueue) -> None:
    registry = CollectorRegistry(auto_describe=True)
    metrics, sums = WorkerMetrics(Worker(queue), most_names=MANY), Sum()
    registry.register(metrics)
    assert {family.name for family in registry.collect()} == {name.removesuffix("_total") for name in names(PROCESS)}
    registry.unregister(metrics)
    registry.register(sums)
    assert {family.name for family in registry.collect()} == {name.removesuffix("_total") for name in names(PROCESS)}


def names(metrics: object) -> set[str]:
    return {metric.name for metric in metrics}


async def test_a_worker_that_runs_is_refused(queue: TaskQueue) -> None:
    async with Worker(queue) as worker:
        with pytest.raises(InvalidInput, match="before a worker runs"):
            WorkerMetrics(worker, most_names=MANY)
    with pytest.raises(InvalidInput, match="'sucess' is no event of a worker: success, failure"):
        Worker(queue).add_hooks({"sucess": print})


# Of a queue


@pytest.mark.leaves_keys
@pytest.mark.partitions(4)
async def test_a_queue_of_partitions_tells_each_of_them(queue: TaskQueue) -> None:
    metrics = QueueMetrics(queue, max_age=0)
    users = [f"user {n}" for n in range(12)]
    for user in users:
        await queue.enqueue_by_name("increase", [1], user_id=user)
    page = read(await metrics.render())
    parts = {str(part.number): await part.stats() for part in queue.reader.parts}
    assert values_of(page, "fairque_queue_depth", "partition") == set(parts) == {"0", "1", "2", "3"}
    for label, stats in parts.items():
        assert value(page, "fairque_queue_depth", partition=label, state="queued") == stats.queued > 0
        assert value(page, "fairque_partition_up", partition=label) == 1
    assert value(page, "fairque_queue_depth", queue=queue.name, state="queued") == len(users)
    assert value(page, "fairque_up", queue=queue.name) == 1
    assert values_of(page, "fairque_dead_letters", "partition") == set(), "only what is of one of them"
    watched = Worker(queue)
    own = WorkerMetrics(watched)
    async with watched:
        page = read(own.render())
    assert values_of(page, "fairque_claim_errors_total", "partition") == set(parts)
    for user in users:
        await queue.purge(user)


@pytest.mark.leaves_keys
async def test_a_queue_tells_its_backlog_its_workers_and_its_shares(queue: TaskQueue) -> None:
    metrics = QueueMetrics(queue, max_age=0)
    worker = Worker(queue, concurrency=1)
    async with worker:
        await run(queue, "stumble", True)
        running = await queue.enqueue_by_name("linger", user_id="acme")
        await eventually(lambda: worker.stats().busy == 1)
        handles = [await queue.enqueue_by_name("increase", [1], user_id="zoe", delay=delay) for delay in (0, 0, 3600)]
        page = read(await metrics.render())
        await running.cancel()
        await asyncio.gather(*(handle.result(10) for handle in handles[:2]))
    for name, wanted in {
        "fairque_up": 1,
        "fairque_dead_letters": 1,
        "fairque_dead_letters_blocking": 0,
        "fairque_users_starved": 0,
        "fairque_tasks_late_seconds": 0,
        "fairque_schedules_late_seconds": 0,
    }.items():
        assert value(page, name, queue=queue.name) == wanted, name
    states = ("queued", "started", "scheduled", "deferred")
    depth = {state: value(page, "fairque_queue_depth", queue=queue.name, state=state) for state in states}
    assert depth == {"queued": 2, "started": 1, "scheduled": 1, "deferred": 0}
    assert {text for each in ("fairque_queue_depth", "fairque_workers") for text in values_of(page, each, "state")} == (
        VALUES["fairque_queue_depth", "state"] | VALUES["fairque_workers", "state"]
    )
    assert value(page, "fairque_workers", state="alive") == 1
    assert value(page, "fairque_workers", state="silent") == 0
    assert value(page, "fairque_slots_needed") >= 2
    assert 0 < value(page, "fairque_queue_latency_seconds") < 30
    assert 0 < value(page, "fairque_share_jain") <= 1
    assert not labels_of(page, "user")
    of_some = names(metric for metric in QUEUE if "user" in metric.labels) | {"fairque_partition_up"}
    assert {name for name, _ in page} == names(QUEUE) - of_some
    assert not any(labels_of(page, "partition"))
    await handles[2].cancel()


HOSTILE = ('" } evil 1\n#', "back\\slash", "ze\u2028ro\x00", "x" * 256, "{a}")


async def test_users_have_labels_only_where_asked_for_and_so_many(queue: TaskQueue) -> None:
    for at, user in enumerate(HOSTILE):
        await queue.enqueue_many([served.greet("you")] * (at + 1), user_id=user)
    silent, some, all_of_them = (QueueMetrics(queue, top_users=top) for top in (0, 2, 100))
    assert not labels_of(read(await silent.render()), "user")
    assert len(labels_of(read(await some.render()), "user")) == 2
    page = read(await all_of_them.render())
    assert labels_of(page, "user") == set(HOSTILE)
    for at, user in enumerate(HOSTILE):
        assert value(page, "fairque_user_queued", user=user) == at + 1
    await asyncio.gather(*map(queue.purge, HOSTILE))


async def test_several_queues_are_on_one_page(server: Server, queue: TaskQueue) -> None:
    gone = TaskQueue("redis://127.0.0.1:1", name="gone")
    async with TaskQueue(server.url, name=f"{queue.name}-2") as other:
        page = await QueueMetrics(queue, other, gone).render()
    up = {name: value(read(page), "fairque_up", queue=name) for name in (queue.name, other.name, gone.name)}
    assert up == {queue.name: 1, other.name: 1, gone.name: 0}, "one that is gone keeps nothing from the others"
    assert page.count(b"# TYPE fairque_up ") == 1


async def test_queues_that_cannot_be_told_apart_are_refused(queue: TaskQueue) -> None:
    with pytest.raises(InvalidInput, match=f"2 queues are called '{queue.name}'"):
        QueueMetrics(queue, queue)
    with pytest.raises(InvalidInput, match="no queue"):
        QueueMetrics()
    with pytest.raises(InvalidInput, match="top_users must be"):
        QueueMetrics(queue, top_users=101)


async def test_whoever_comes_with_many_users_hides_nobody_who_starves(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_reader, "MOST_RECENT", 5)
    monkeypatch.setattr(queue_reader, "MOST_WAITING", 4)
    monkeypatch.setattr("fairque.queue.shares.MOST_BEHIND", 0)
    await queue.enqueue_many([served.greet("you")] * 50, user_id="noisy")
    await Worker(queue).run_until_idle()
    await queue.enqueue_many([served.greet("you")] * 2, user_id="noisy")
    await queue.enqueue_many([served.greet("you")] * 2, user_id="ann")
    for n in range(10):
        await queue.enqueue(served.greet("you"), user_id=f"mallory-{n}")
    page = read(await QueueMetrics(queue, top_users=100).render())
    assert "ann" in labels_of(page, "user")
    assert value(page, "fairque_users_starved") >= 1
    await asyncio.gather(*(queue.purge(user.user_id) for user in await queue.users()))


@pytest.mark.every_server
async def test_who_may_only_read_may_read_the_metrics(server: Server, queue: TaskQueue) -> None:
    load_scripts(server)
    await queue.enqueue(served.greet("you"), user_id="acme")
    user = f"reader-{queue.name}"
    with user_with(server.execute, server.url, user, words_of(queue.name, "reader")) as url:
        async with TaskQueue(url, name=queue.name) as far:
            page = read(await QueueMetrics(far, top_users=5).render())
        assert denials(server.execute, user) == []
    assert value(page, "fairque_up") == 1
    assert value(page, "fairque_user_queued", user="acme") == 1
    await queue.purge("acme")


async def test_many_who_ask_cost_one_read(queue: TaskQueue) -> None:
    calls: list[str] = []
    queue.time_calls(lambda script, _: calls.append(script))
    metrics = QueueMetrics(queue, max_age=60)
    pages = await asyncio.gather(*(metrics.render() for _ in range(50)))
    assert len(set(pages)) == 1
    assert await metrics.render() == pages[0]
    assert calls.count("health") == calls.count("demand") == 1
    anew = QueueMetrics(queue, max_age=0)
    await anew.render()
    await anew.render()
    assert calls.count("health") == 3


async def test_who_gives_up_takes_nothing_from_the_others(queue: TaskQueue) -> None:
    metrics = QueueMetrics(queue)
    asked = [asyncio.create_task(metrics.render()) for _ in range(3)]
    await asyncio.sleep(0)
    asked[0].cancel()
    assert value(read(await asked[1]), "fairque_up") == 1
    assert await asked[1] == await asked[2]


async def test_a_redis_that_hangs_or_is_gone_is_told_in_time(own_server: Callable[..., EmbeddedServer]) -> None:
    server = own_server()
    async with TaskQueue(server.url, name="q", timeout=30) as queue:
        metrics = QueueMetrics(queue, timeout=0.3, max_age=0)
        assert value(read(await metrics.render()), "fairque_up", queue="q") == 1
        os.kill(server.pid, signal.SIGSTOP)
        began = time.monotonic()
        page = read(await metrics.render())
        assert time.monotonic() - began < 5
        assert page == {("fairque_up", frozenset({("queue", "q")})): 0}, "nothing that is out of date"
        os.kill(server.pid, signal.SIGCONT)
        assert value(read(await metrics.render()), "fairque_workers", state="alive") == 0
        server.kill()
        assert value(read(await metrics.render()), "fairque_up", queue="q") == 0


@pytest.mark.damages
@pytest.mark.leaves_keys
async def test_a_damaged_part_keeps_nothing_from_the_rest(server: Server, queue: TaskQueue) -> None:
    await queue.enqueue(served.greet("you"), user_id="acme")
    server.execute("SET", f"{queue.keys.prefix}schedules", "broken")
    page = read(await QueueMetrics(queue).render())
    assert value(page, "fairque_up") == 0
    assert value(page, "fairque_share_jain") == 1


async def test_a_fault_of_ours_in_one_part_keeps_nothing_from_the_rest(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def demand(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(queue, "demand", demand)
    page = read(await QueueMetrics(queue).render())
    assert (value(page, "fairque_up"), value(page, "fairque_slots_needed")) == (0, None)
    assert value(page, "fairque_workers", state="alive") == 0
    assert "ZeroDivisionError" in caplog.text


# Of several processes


async def counted(queue: TaskQueue, times: int) -> WorkerMetrics:
    worker = Worker(queue)
    metrics = WorkerMetrics(worker, most_names=MANY)
    async with worker:
        for _ in range(times):
            await run(queue, "increase", 1)
    return metrics


async def test_no_counter_of_a_sum_ever_falls(queue: TaskQueue) -> None:
    first, second, sums = await counted(queue, 2), await counted(queue, 1), Sum()

    def finished() -> float | None:
        return value(read(sums.render()), "fairque_tasks_total", queue=queue.name, outcome="finished")

    assert finished() is None
    sums.add(1, first.snapshot())
    assert finished() == 2
    sums.add(2, second.snapshot())
    assert finished() == 3
    assert value(read(sums.render()), "fairque_task_run_seconds_count", name="increase") == 3
    assert value(read(sums.render()), "fairque_task_run_seconds_bucket", name="increase", le="+Inf") == 3
    sums.add(2, second.snapshot())
    assert finished() == 3
    sums.drop(2)
    sums.drop(2)
    sums.drop(77)
    assert finished() == 3
    sums.add(2, second.snapshot())  # another process with the same pid
    assert finished() == 4


async def test_what_an_ended_process_had_at_the_moment_goes(queue: TaskQueue) -> None:
    sums = Sum()
    worker = Worker(queue, concurrency=5)
    metrics = WorkerMetrics(worker, most_names=MANY)
    async with worker:
        sums.add(1, metrics.snapshot())
    assert value(read(sums.render()), "fairque_slots", state="free") == 5
    sums.drop(1)
    assert value(read(sums.render()), "fairque_slots", state="free") is None


@pytest.mark.parametrize("bytes_", [b"", b"\xc1", b"\x81\xa1x\x80", b"\x81\xb3fairque_tasks_total\x81\x91\xa1q\x90"])
def test_what_is_no_snapshot_is_refused(bytes_: bytes) -> None:
    with pytest.raises(InvalidInput, match="no snapshot of metrics"):
        Sum().add(1, bytes_)


@pytest.mark.leaves_keys("workers")
async def test_processes_report_to_their_supervisor_until_their_end(
    worker_process: Start, server: Server, queue_name: str, tmp_path: Path
) -> None:
    page = tmp_path / "page"
    command = ("-m", "fairque", "worker", "tests.apps.served:queue", "--concurrency=3")
    env = {"SERVED_URL": server.url, "SERVED_QUEUE": queue_name}
    process = await worker_process("tests/workers/summed.py", str(page), "2", *command, env=env)

    def told(metric: str, /, **labels: str) -> float | None:
        return value(read(page.read_bytes()), metric, queue=queue_name, **labels) if page.exists() else None

    await eventually(lambda: told("fairque_slots", state="free") == 6, 30)
    async with TaskQueue(server.url, name=queue_name, lease=1) as queue:
        for n in range(10):
            assert await (await queue.enqueue(served.greet(str(n)), user_id="acme")).result(10) == f"hello {n}"
        await eventually(lambda: told("fairque_tasks_total", outcome="finished") == 10, 10)
        first = int(re.findall(r"process 1 started, pid (\d+)", process.output)[0])
        os.kill(first, signal.SIGKILL)
        await process.line("ended with code -9")
        await eventually(lambda: told("fairque_slots", state="free") == 6, 30)
        assert told("fairque_tasks_total", outcome="finished") == 10, "a killed process takes nothing along"
        blocked = await queue.enqueue(served.block(4), user_id="acme")
        await eventually(lambda: told("fairque_slots", state="busy") == 1, 3.5)
        assert await blocked.result(10) == "blocked"
    process.send(signal.SIGTERM)
    assert await process.wait() == 0
    assert told("fairque_tasks_total", outcome="finished") == 11, "the last report comes at the end"
    assert told("fairque_slots") is None


async def test_what_processes_have_counted_that_were_replaced_stays(
    worker_process: Start, server: Server, queue_name: str, tmp_path: Path
) -> None:
    """Those of a configuration, which reads variables of its own."""
    page, config = tmp_path / "page", tmp_path / "fairque.toml"
    config.write_text(
        f'[redis]\nurl = "{server.url}"\n[queue]\nname = "{queue_name}"\n[[workers]]\nid = "a"\nmax_tasks = 2\n'
    )
    command = ("-m", "fairque", "worker", f"--config={config}", "tests.apps.served")
    process = await worker_process("tests/workers/summed.py", str(page), "1", *command)
    async with TaskQueue(server.url, name=queue_name) as queue:
        for n in range(5):
            assert await (await queue.enqueue(served.greet(str(n)), user_id="acme")).result(30) == f"hello {n}"
        await process.line("has retired with code 0")

    def finished() -> float | None:
        return value(read(page.read_bytes()), "fairque_tasks_total", name=served.greet.name, outcome="finished")

    await eventually(lambda: finished() == 5)
    process.send(signal.SIGTERM)
    assert await process.wait() == 0, process.output
    assert finished() == 5


def test_every_metric_says_what_it_is_and_has_no_label_of_its_own_making() -> None:
    for metric in CATALOGUE.values():
        assert metric.name.startswith("fairque_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(metric.buckets)
        assert set(metric.labels) <= {"queue", "name", "outcome", "partition", "script", "state", "user"}
        assert metric.labels[0] == "queue"
    assert {metric.name for metric in CATALOGUE.values() if "user" in metric.labels} == {
        "fairque_user_share",
        "fairque_user_entitled_share",
        "fairque_user_queued",
    }
    assert EVERYBODY not in CATALOGUE


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import fairque.contrib.prometheus"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stderr.splitlines()[-1].endswith("needs prometheus_client: pip install 'fairque[prometheus]'"), (
        ran.stderr
    )
