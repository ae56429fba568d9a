"""What a task raises to say what becomes of it, and errors that are handed around."""

import asyncio
import copy
import inspect
import pickle
import time
from datetime import UTC, datetime, timedelta

import pytest

from fairque import (
    Fail,
    FairqueError,
    InvalidInput,
    QueueFull,
    Retry,
    Snooze,
    TaskFailed,
    TaskQueue,
    Worker,
    current_task,
    task,
)
from fairque.errors import QuotaExceeded
from fairque.tasks.failure import raised_by


@pytest.mark.parametrize("in_a_group", [False, True])
async def test_a_task_that_gives_up_is_not_tried_again(queue: TaskQueue, in_a_group: bool):
    attempts = []

    @task(max_retries=5)
    async def hopeless() -> None:
        attempts.append(current_task().attempt)
        if not in_a_group:
            raise Fail("no such customer")
        async with asyncio.TaskGroup() as group:
            group.create_task(_raise(Fail("no such customer")))

    handle = await queue.enqueue(hopeless(), user_id="anna")
    await Worker(queue).run_until_idle()
    with pytest.raises(TaskFailed, match="no such customer") as failed:
        await handle.result(20)
    assert (attempts, failed.value.type_name) == ([1], "Fail")


async def _raise(error: BaseException) -> None:
    raise error


async def test_a_retry_in_a_task_group_is_a_retry(queue: TaskQueue):
    @task(max_retries=1)
    async def grouped() -> int:
        if current_task().attempt == 1:
            async with asyncio.TaskGroup() as group:
                group.create_task(_raise(Retry(0)))
        return current_task().attempt

    handle = await queue.enqueue(grouped(), user_id="anna")
    await Worker(queue).run_until_idle()
    assert await handle.result(20) == 2


def test_a_group_is_what_all_of_it_asks_for():
    def asked(*errors: Exception) -> tuple[bool, float | None, bool]:
        raised = raised_by(ExceptionGroup("", [ExceptionGroup("", list(errors))]))
        return raised.retry_asked, raised.retry_delay, raised.is_final

    assert asked(Retry(1), Retry(3)) == (True, 3, False)
    assert asked(Retry(1), Retry()) == (True, None, False)
    assert asked(Retry(1), Fail()) == (False, None, True)
    assert asked(Retry(1), ValueError()) == (False, None, False)


def test_a_retry_takes_a_delay_or_a_moment():
    assert Retry(timedelta(minutes=2)).delay == 120
    soon = datetime.fromtimestamp(time.time() + 60, UTC)
    delay = raised_by(Retry(at=soon)).retry_delay
    assert delay is not None
    assert 50 < delay <= 60
    assert raised_by(Retry(at=datetime(2000, 1, 1, tzinfo=UTC))).retry_delay == 0
    for wrong in ({"delay": 1, "at": soon}, {"at": 3}, {"delay": -1}, {"delay": timedelta(-1)}):
        with pytest.raises(InvalidInput, match="Retry"):
            Retry(**wrong)


def _kinds(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _kinds(child))]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_survive_copy_and_pickle(duplicate):
    made = [
        QueueFull("full", 2.5),
        QuotaExceeded("full", 2.5, 1, 2, 3),
        Retry(3, "later"),
        Fail("never"),
        Snooze(3),
        TaskFailed("error", "ValueError", "text", "traceback"),
        *(kind("text") for kind in _kinds(FairqueError) if not inspect.isfunction(kind.__init__)),
    ]
    assert len(made) > 12
    for error in made:
        twin = duplicate(error)
        assert (type(twin), str(twin), twin.args, vars(twin)) == (type(error), str(error), error.args, vars(error))
