"""Wherever a span of time is taken, it may be a timedelta, and a wrong one is refused in the same words."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import fairque
from fairque import Breaker, InvalidInput, Rate, ResultTimeout, Retry, RetryPolicy, TaskOptions, TaskQueue, Worker, task
from fairque.queue.xcom import ttl_to_ms
from fairque.redis.connector import Connector
from fairque.schedule.spec import spec_of
from fairque.settings import checked_settings
from fairque.tasks.registry import unregister
from fairque.tasks.xcom import XComOptions


@task
async def nothing() -> None: ...


def of_worker(name: str) -> Callable[[Any], Any]:
    return lambda span: getattr(Worker(TaskQueue(), **{name: span}).options, name)


def of_task(span: Any) -> float | None:
    made = task(name="made for its options", result_ttl=span)(lambda: None)
    unregister(made.name)
    return made.defaults.result_ttl


TAKE: dict[str, Callable[[Any], Any]] = {
    **{name: of_worker(name) for name in ("poll_interval", "shutdown_timeout", "stall_timeout", "cancel_grace")},
    **{name: of_worker(name) for name in ("unknown_task_patience", "task_timeout")},
    **{
        f"option {name}": lambda span, name=name: getattr(nothing.options(**{name: span}).defaults, name)
        for name in ("timeout", "result_ttl", "delay")
    },
    "TaskOptions": lambda span: TaskOptions(timeout=span).timeout,
    "@task": of_task,
    "base": lambda span: RetryPolicy(base=span).base,
    "cap": lambda span: RetryPolicy(cap=span).cap,
    "per": lambda span: Rate(1, per=span).per,
    "window": lambda span: Breaker(window=span).window,
    "cooldown": lambda span: Breaker(cooldown=span).cooldown,
    "ttl_seconds": lambda span: XComOptions(ttl_seconds=span).ttl_seconds,
    "ttl": lambda span: ttl_to_ms(span) / 1000,
    "timeout of a queue": lambda span: TaskQueue(timeout=span).connector.timeout,
    "timeout of a connector": lambda span: Connector(timeout=span).timeout,
    "every": lambda span: spec_of({"every": span}).every_ms / 1000,
    "jitter": lambda span: spec_of({"every": 60, "jitter": span}).jitter_ms / 1000,
    "misfire_grace": lambda span: spec_of({"every": 60, "misfire_grace": span}).misfire_grace_ms / 1000,
    **{
        f"setting {name}": lambda span, name=name: checked_settings(**{name: span})[f"{name}_ms"] / 1000
        for name in ("priority_step", "lease", "result_ttl", "dead_letter_ttl")
    },
    "Retry": lambda span: Retry(span).delay,
}


@pytest.mark.parametrize("name", TAKE)
def test_a_timedelta_is_its_seconds(name: str):
    assert TAKE[name](timedelta(seconds=90)) == TAKE[name](90) == 90


@pytest.mark.parametrize("name", sorted(TAKE.keys() - {"Retry"}))
@pytest.mark.parametrize("wrong", [timedelta(seconds=-1), timedelta.max, "90", True, float("nan")], ids=repr)
def test_what_is_no_span_is_refused_by_name(name: str, wrong: Any):
    with pytest.raises(InvalidInput, match="must be a number from"):
        TAKE[name](wrong)


async def test_waiting_takes_one_as_well(queue: TaskQueue):
    handle = await queue.enqueue(nothing(), user_id="anna", delay=timedelta(hours=1))
    soon = timedelta(milliseconds=20)
    with pytest.raises(ResultTimeout, match=r"within 0\.02 s"):
        await handle.result(soon)
    run = await queue.enqueue(nothing() >> nothing(), user_id="anna")
    with pytest.raises(ResultTimeout):
        await run.result(soon)
    assert (await queue.demand(target_wait=timedelta(seconds=5), cooldown=timedelta(minutes=1))).target_wait == 5
    await queue.purge("anna", timeout=timedelta(seconds=30))


def test_nobody_drops_the_seconds_that_were_made_of_a_span():
    """A call of `check_seconds` whose value is not used would leave a timedelta behind."""
    root = Path(inspect.getfile(fairque)).parent
    allowed = {"cli", "message.py"}  # a number by then
    for path in root.rglob("*.py"):
        if allowed.isdisjoint(path.relative_to(root).parts):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                    assert getattr(node.value.func, "id", "") != "check_seconds", f"{path}:{node.lineno}"
