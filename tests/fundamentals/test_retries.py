"""5. Retries: when a failed task runs again, and what is kept of those that do not."""

import asyncio
import random
import re
import time

import pytest

from fairque import (
    Attempt,
    FailureKind,
    InvalidInput,
    Priority,
    Retry,
    RetryPolicy,
    Task,
    TaskFailed,
    TaskQueue,
    TaskState,
    Worker,
    current_task,
    task,
)
from fairque.settings import QueueSettings
from fairque.tasks.registry import registry, unregister
from tests.support.eventually import eventually

AT_ONCE = RetryPolicy(max=3, base=0)


class Drawn(random.Random):
    """Always draws the same share."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def random(self) -> float:
        return self.share


async def ended(queue: TaskQueue, made: Task, **options: object) -> TaskFailed | object:
    """How it ends, served by a worker of its own."""
    handle = await queue.enqueue(made, user_id="anna", **options)
    async with Worker(queue):
        try:
            return await handle.result(20)
        except TaskFailed as failed:
            return failed


# The policy


def test_the_wait_grows_by_the_factor_up_to_the_cap():
    policy = RetryPolicy(base=2, factor=3, cap=50, jitter=0)
    assert [policy.delay(failures) for failures in range(1, 6)] == [2, 6, 18, 50, 50]


def test_a_share_of_the_wait_is_random():
    policy = RetryPolicy(base=8, factor=1, cap=100, jitter=0.25)
    assert policy.delay(1, Drawn(0.0)) == 8
    assert policy.delay(1, Drawn(1.0)) == 6
    full = RetryPolicy(base=8, factor=1, cap=100, jitter=1)
    assert full.delay(1, Drawn(1.0)) == 0
    assert full.delay(1, Drawn(0.5)) == 4


@pytest.mark.parametrize("jitter", [0, 0.25, 0.5, 1])
def test_the_wait_stays_between_its_bounds_and_spreads_over_them(jitter: float):
    policy = RetryPolicy(base=1, factor=2, cap=60, jitter=jitter)
    for failures in (1, 2, 5, 10):
        most = min(60, 2 ** (failures - 1))
        waits = [policy.delay(failures) for _ in range(500)]
        assert most * (1 - jitter) <= min(waits) <= max(waits) <= most
        assert max(waits) - min(waits) >= most * jitter * 0.9


def test_the_wait_stays_finite_for_any_number_of_failures():
    for policy in (RetryPolicy(factor=1e9), RetryPolicy(factor=0), RetryPolicy(base=0), RetryPolicy(cap=0)):
        for failures in (1, 2, 1000, 1_000_000):
            assert 0 <= policy.delay(failures) <= 300


def test_a_policy_that_makes_no_sense_is_refused():
    for options, text in (
        ({"max": -1}, "retry max must be a whole number from 0 .*, not -1"),
        ({"max": 1.5}, "retry max must be .*, not 1.5"),
        ({"base": -1}, "retry base must be .*, not -1"),
        ({"base": float("nan")}, "retry base must be .*, not nan"),
        ({"factor": float("inf")}, "retry factor must be .*, not inf"),
        ({"cap": "long"}, "retry cap must be .*, not 'long'"),
        ({"jitter": 1.1}, "retry jitter must be a number from 0 to 1, not 1.1"),
        ({"retry_on": (7,)}, "retry_on takes exception classes or their names, not 7"),
        ({"retry_on": (int,)}, "retry_on takes exception classes or their names"),
    ):
        with pytest.raises(InvalidInput, match=text):
            RetryPolicy(**options)
    for delay in (-1, float("nan"), float("inf"), "5"):
        with pytest.raises(InvalidInput, match=f"delay of a Retry must be .*, not {delay!r}"):
            Retry(delay)
    with pytest.raises(InvalidInput, match="retry must be a RetryPolicy, not 5"):
        Task.create(retry=5)
    with pytest.raises(InvalidInput, match=r"max_retries must be a whole number from 0 .*, not 1\.5"):
        Task.create(max_retries=1.5)


# Running again


async def test_without_a_policy_an_error_is_final(queue: TaskQueue):
    @task
    async def fail() -> None:
        raise ValueError(f"attempt {current_task().attempt}")

    failed = await ended(queue, fail())
    assert failed.message == "attempt 1"


@pytest.mark.smoke
async def test_a_task_runs_again_until_it_succeeds(queue: TaskQueue):
    @task(retry=AT_ONCE)
    async def flaky() -> int:
        if current_task().attempt < 3:
            raise ValueError
        return current_task().attempt

    assert await ended(queue, flaky()) == 3
    user = await queue.user("anna")
    assert (user.finished, user.failed, user.retried, user.dead_letters) == (1, 0, 2, 0)


@pytest.mark.parametrize(
    ("options", "attempts"),
    [
        ({"retry": AT_ONCE}, 4),
        ({"retry": AT_ONCE, "max_retries": 1}, 2),
        ({"retry": AT_ONCE, "max_retries": 0}, 1),
        ({"retry": RetryPolicy(max=0)}, 1),
    ],
    ids=["policy", "fewer", "none", "policy of none"],
)
@pytest.mark.parametrize("given", ["at the decorator", "at the call"])
async def test_retries_are_counted_after_the_first_attempt(queue: TaskQueue, options, attempts: int, given: str):
    async def fail() -> None:
        raise ValueError(f"attempt {current_task().attempt}")

    made = task(**options)(fail)() if given == "at the decorator" else task(fail)().options(**options)
    failed = await ended(queue, made)
    assert failed.message == f"attempt {attempts}"


async def test_between_two_attempts_a_task_is_scheduled(queue: TaskQueue):
    @task(retry=RetryPolicy(max=1, base=1.5, jitter=0))
    async def flaky() -> None:
        if current_task().attempt == 1:
            raise ValueError("once")

    handle = await queue.enqueue(flaky(), user_id="anna", priority=Priority.CRITICAL)
    async with Worker(queue):
        await eventually(lambda: is_in(handle, TaskState.SCHEDULED))
        info = await handle.info()
        assert (info.attempt, info.error.message, info.started_at) == (1, "once", None)
        assert (await queue.user("anna")).scheduled == 1
        await handle.result(20)
        info = await handle.info()
    assert info.attempt == 2
    assert info.wait_seconds < 1.2, "the wait for the retry is none of the queue's"
    assert (await queue.stats()).scheduled == 0


async def test_the_wait_of_the_policy_is_kept(queue: TaskQueue):
    times = []

    @task(retry=RetryPolicy(max=2, base=0.2, factor=2, jitter=0))
    async def fail() -> None:
        times.append(time.monotonic())
        raise ValueError

    await ended(queue, fail())
    assert 0.199 <= times[1] - times[0] < 10
    assert 0.399 <= times[2] - times[1] < 10


async def test_only_named_errors_are_worth_a_retry(queue: TaskQueue):
    class MyTimeout(TimeoutError): ...

    @task(retry=RetryPolicy(max=2, base=0, retry_on=(ConnectionError, "TimeoutError")))
    async def fail(how: str) -> None:
        kinds = {"reset": ConnectionResetError, "mine": MyTimeout, "value": ValueError, "exit": SystemExit}
        raise kinds[how](f"attempt {current_task().attempt}")

    assert (await ended(queue, fail("reset"))).message == "attempt 3", "a subclass counts"
    assert (await ended(queue, fail("mine"))).message == "attempt 3", "a name is as good as a class"
    assert (await ended(queue, fail("value"))).message == "attempt 1"
    assert (await ended(queue, fail("exit"))).message == "attempt 1"


async def test_a_timeout_is_retried_like_an_error(queue: TaskQueue):
    @task(timeout=0.05, retry=RetryPolicy(max=1, base=0, retry_on=(TimeoutError,)))
    async def slow() -> str:
        if current_task().attempt == 1:
            await asyncio.Event().wait()
        return "in time"

    @task(timeout=0.05, retry=RetryPolicy(max=1, base=0, retry_on=(ValueError,)))
    async def slower() -> None:
        await asyncio.Event().wait()

    assert await ended(queue, slow()) == "in time"
    assert (await ended(queue, slower())).kind == "timeout"
    assert (await queue.user("anna")).retried == 1


# Asking for it


async def test_a_task_may_ask_to_run_again(queue: TaskQueue):
    times = []

    @task(retry=RetryPolicy(base=100))
    async def not_yet() -> int:
        times.append(time.monotonic())
        if current_task().attempt == 1:
            raise Retry(delay=1, reason="the file is not there yet")
        return current_task().attempt

    handle = await queue.enqueue(not_yet(), user_id="anna")
    async with Worker(queue):
        await eventually(lambda: is_in(handle, TaskState.SCHEDULED))
        assert (await handle.info()).error.message == "the file is not there yet"
        assert await handle.result(20) == 2
    assert 0.999 <= times[1] - times[0] < 10


async def test_asking_is_granted_as_often_as_the_policy_says(queue: TaskQueue):
    @task
    async def never() -> None:
        raise Retry(delay=0, reason=f"attempt {current_task().attempt}")

    assert (await ended(queue, never())).message == "attempt 4", "three times where nothing is said"
    assert (await ended(queue, never().options(max_retries=1))).message == "attempt 2"
    picky = RetryPolicy(max=1, base=0, retry_on=(ValueError,))
    assert (await ended(queue, never().options(retry=picky))).message == "attempt 2", "who asks needs no name"


async def test_without_a_delay_the_policy_decides(queue: TaskQueue):
    times = []

    @task(retry=RetryPolicy(max=1, base=0.2, jitter=0))
    def ask_in_a_thread() -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise Retry

    assert await ended(queue, ask_in_a_thread()) is None
    assert 0.199 <= times[1] - times[0] < 10


async def test_a_wrong_delay_is_a_failure_with_a_reason(queue: TaskQueue):
    @task
    async def ask() -> None:
        raise Retry(delay=float("inf"))

    failed = await ended(queue, ask())
    assert (failed.type_name, failed.kind) == ("InvalidInput", "error")
    assert "must be a finite number" in failed.message


# What is kept


async def test_the_errors_of_all_attempts_are_kept(queue: TaskQueue):
    @task(retry=RetryPolicy(max=2, base=0))
    async def fail() -> None:
        raise (ValueError, KeyError, OSError)[current_task().attempt - 1](f"number {current_task().attempt}")

    began = time.time()
    handle = await queue.enqueue(fail(), user_id="anna")
    async with Worker(queue) as worker:
        with pytest.raises(TaskFailed, match="OSError: number 3"):
            await handle.result(20)
    info = await handle.info()
    assert (info.state, info.attempt) == (TaskState.FAILED, 3)
    assert [error.attempt for error in info.errors] == [1, 2, 3]
    assert [error.type_name for error in info.errors] == ["ValueError", "KeyError", "OSError"]
    assert info.error == info.errors[-1]
    for error in info.errors:
        assert isinstance(error, Attempt)
        assert error.kind is FailureKind.ERROR
        assert error.worker == worker.worker_id
        assert "in fail" in error.traceback
        assert abs(error.at - began) < 30


async def test_a_success_forgets_the_errors_before_it(queue: TaskQueue):
    @task(retry=AT_ONCE)
    async def flaky() -> None:
        if current_task().attempt < 3:
            raise ValueError

    handle = await queue.enqueue(flaky(), user_id="anna")
    async with Worker(queue):
        await handle.result(20)
    info = await handle.info()
    assert (info.state, info.attempt, info.errors) == (TaskState.FINISHED, 3, ())


async def test_of_many_errors_the_last_twenty_are_kept(queue: TaskQueue):
    @task(retry=RetryPolicy(max=30, base=0))
    async def fail() -> None:
        raise ValueError

    handle = await queue.enqueue(fail(), user_id="anna")
    async with Worker(queue):
        with pytest.raises(TaskFailed):
            await handle.result(20)
    assert [error.attempt for error in (await handle.info()).errors] == list(range(12, 32))


async def test_a_long_error_is_kept_with_its_end(queue: TaskQueue):
    @task
    async def fail() -> None:
        raise ValueError("x" * 1_000_000)

    failed = await ended(queue, fail())
    assert len(failed.message) <= 16_384
    assert len(failed.traceback) <= 16_384


@pytest.mark.smoke
async def test_what_failed_for_good_is_a_dead_letter(server, queue: TaskQueue, queue_name: str):
    @task(retry=RetryPolicy(max=1, base=0))
    async def fail() -> None:
        raise ValueError

    for task_id in ("a", "b"):
        await ended(queue, fail(), task_id=task_id)
    user = await queue.user("anna")
    assert (user.dead_letters, user.failed, user.retried) == (2, 2, 2)
    assert server.execute("ZRANGE", f"fairque:{{{queue_name}}}:dead:anna", 0, -1) == [b"a", b"b"]
    assert (await queue.stats()).failed == 2


async def test_dead_letters_are_kept_for_their_time(server, queue_name: str):
    @task
    async def fail() -> None:
        raise ValueError

    async with TaskQueue(server.url, name=queue_name, dead_letter_ttl=1) as queue:
        handle = await queue.enqueue(fail(), user_id="anna")
        async with Worker(queue):
            with pytest.raises(TaskFailed):
                await handle.result(20)
        assert (await queue.user("anna")).dead_letters == 1
        await eventually(lambda: no_keys_of_the_task(server, queue_name, handle.task_id))
        assert (await queue.user("anna")).dead_letters == 0


# Kinds of failure


async def test_arguments_that_do_not_fit_the_function_of_the_worker_fail_at_once(queue: TaskQueue):
    async def old(number: int) -> None: ...

    async def new(number: int, unit: str) -> None: ...

    async def other(number: list) -> None: ...

    for changed, text in ((new, "missing a required argument: 'unit'"), (other, "Expected `array`, got `int`")):
        unregister("convert")
        made = task(name="convert", retry=AT_ONCE)(old)(7)
        unregister("convert")
        task(name="convert", retry=AT_ONCE)(changed)
        failed = await ended(queue, made)
        assert (failed.kind, failed.type_name) == ("bad-arguments", "BadArguments")
        assert text in failed.message
    assert (await queue.user("anna")).retried == 0
    assert {letter.name for letter in await queue.dead_letters("anna")} == {"convert"}


async def test_an_unknown_task_is_put_back_ever_longer_for_workers_that_know_it(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture
):
    @task(name="deployed-later")
    async def later() -> int:
        return current_task().attempt

    handle = await queue.enqueue(later(), user_id="anna")
    unregister("deployed-later")
    async with Worker(queue):
        await eventually(lambda: len(waits(caplog)) == 2)
        assert waits(caplog) == [0.5, 1.0]
        assert await handle.state() is TaskState.SCHEDULED
        registry["deployed-later"] = later
        assert await handle.result(20) == 1, "being put back counts no attempt"
    info = await handle.info()
    assert (info.attempt, info.errors) == (1, ())


async def test_a_task_that_nobody_knows_fails_when_patience_ends(queue: TaskQueue):
    made = task(name="nobody-knows")(lambda: None)()
    unregister("nobody-knows")
    handle = await queue.enqueue(made, user_id="anna")
    async with Worker(queue, unknown_task_patience=0.3):
        with pytest.raises(TaskFailed, match=r"no worker knew a task 'nobody-knows' for 0\.3 s") as failed:
            await handle.result(20)
    assert (failed.value.kind, failed.value.type_name) == ("unknown-task", "UnknownTask")
    assert (await queue.user("anna")).dead_letters == 1


async def test_a_payload_without_a_handler_waits_for_a_worker_that_has_one(queue: TaskQueue):
    handle = await queue.enqueue(Task.create(payload={}), user_id="anna")
    async with Worker(queue, unknown_task_patience=0.3):
        with pytest.raises(TaskFailed) as failed:
            await handle.result(20)
    assert failed.value.kind == "unknown-task"


@pytest.mark.leaves_keys("workers")
async def test_a_task_whose_workers_fell_silent_too_often_is_lost(server, queue_name: str):
    made = task(name="never-run")(lambda: None)()
    async with TaskQueue(server.url, name=queue_name, lease=0.1) as queue:
        handle = await queue.enqueue(made, user_id="anna")
        store = queue.store()
        for silent in ("as any other", "as the only suspect", "alone", "alone again"):
            await eventually(lambda worker=silent: claimed(store, worker))
        await store.close()
        async with Worker(queue, max_deliveries=2):
            with pytest.raises(TaskFailed, match="2 workers fell silent that ran nothing else") as failed:
                await handle.result(20)
    assert failed.value.kind == "lost"


async def claimed(store, worker: str) -> bool:
    claim = await store.claim(worker, 1, settings=QueueSettings(lease_ms=100), wait=False)
    for delivery in claim.deliveries:
        await store.receive(worker, delivery)
    return bool(claim.deliveries)


async def is_in(handle, state: TaskState) -> bool:
    return await handle.state() is state


def no_keys_of_the_task(server, queue_name: str, task_id: str) -> bool:
    return not [key for key in server.keys(queue_name) if task_id in key or ":dead:" in key]


def waits(caplog: pytest.LogCaptureFixture) -> list[float]:
    """For how long tasks were put back, as the worker says in its log."""
    found = (re.search(r"put back for ([\d.]+) s", record.getMessage()) for record in caplog.records)
    return [float(each[1]) for each in found if each]
