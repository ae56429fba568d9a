"""Tasks for subprocesses. A subprocess imports the module of its function, so that module should be light."""

from __future__ import annotations

import builtins
import os
import time
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from fairque import Retry, Snooze, current_task, task, xcom_task


@dataclass
class Point:
    x: int
    y: int


class TwoPartError(Exception):
    """Cannot be rebuilt from its `args`, so it does not survive pickling."""

    def __init__(self, subject: str, reason: str) -> None:
        super().__init__(f"{subject}: {reason}")


@task(run_in="process")
def ask_for_state() -> None:
    _ = current_task().state


@task(run_in="process")
def pid() -> int:
    return os.getpid()


@task(run_in="process")
def where_am_i() -> list[str | int]:
    here = current_task()
    return [here.user_id, here.task_id, here.name, here.attempt]


@task(run_in="process")
def mirrored(point: Point, *, twice: bool = False) -> Point:
    return Point(point.x, point.y) if twice else Point(point.y, point.x)


@task(run_in="process", timeout=(0.2, 60))
def look_at_the_clock() -> str:
    while not current_task().soft_timed_out:
        time.sleep(0.01)
    return "in time"


@task(run_in="process")
def late() -> int:
    if not current_task().snoozed:
        raise Snooze(0.001)
    return current_task().snoozed


def _shout(text: str) -> str:
    return text.upper()


shout = task(run_in="process", name="shout")(_shout)


def make_counter(step: int) -> object:
    @task(run_in="process")
    def count(n: int) -> int:
        return n + step

    return count


count_by_two = make_counter(2)


mark: ContextVar[str] = ContextVar("mark", default="clean")


@task(run_in="process")
def marked() -> str:
    found = mark.get()
    mark.set("dirty")
    return found


@contextmanager
def marking(given: dict[str, str]) -> Iterator[None]:
    token = mark.set(given["mark"])
    try:
        yield
    finally:
        mark.reset(token)


@contextmanager
def failing(given: dict[str, str]) -> Iterator[None]:
    raise LookupError(f"no {given['mark']} here")
    yield


@task(run_in="process")
def name_of_queue() -> str:
    return current_task().queue_name


@task(run_in="process")
def raises(name: str) -> None:
    kinds: dict[str, type[BaseException]] = {"CancelledError": CancelledError, "TwoPartError": TwoPartError}
    if name == "TwoPartError":
        raise TwoPartError("the door", "is locked")
    raise (kinds.get(name) or getattr(builtins, name))("raised on purpose")


@task(run_in="process", max_retries=1)
def asks_for_a_retry() -> int:
    if current_task().attempt == 1:
        raise Retry(delay=0.01, reason="the door is locked")
    return current_task().attempt


@task(run_in="process")
def dies() -> None:
    os._exit(7)


@task(run_in="process")
def returns_an_object() -> object:
    return object()


@task(run_in="process")
def hangs(pid_file: str) -> None:
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(60)


@xcom_task("value", run_in="process")
def seven() -> int:
    return 7


@task(run_in="process", auto_xcom=True)
def inputs() -> dict[str, object]:
    return current_task().inputs


@task(run_in="process")
def push() -> None:
    current_task().xcom.push("key", 1)


@task(run_in="process")
def firing() -> str | None:
    schedule = current_task().schedule
    return schedule and schedule.schedule_id


@task(run_in="process")
def headers_here() -> dict[str, str]:
    return dict(current_task().headers)
