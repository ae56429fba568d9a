"""Traces across real processes: a producer, a worker, and the subprocesses of its tasks, each with spans in a file."""

from __future__ import annotations

import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.process import WorkerProcess
from tests.support.servers import Server

Start = Callable[..., Awaitable[WorkerProcess]]
Span = dict[str, Any]
SCRIPT = "tests/workers/traced.py"


def spans_in(directory: Path) -> list[Span]:
    return [json.loads(line) for file in directory.glob("*.jsonl") for line in file.read_text().splitlines()]


def named(spans: list[Span], name: str, task_name: str | None = None) -> list[Span]:
    return [
        each
        for each in spans
        if each["name"] == name and task_name in (None, each["attributes"].get("fairque.task.name"))
    ]


class Family:
    """Who is whose child, by ids."""

    def __init__(self, spans: list[Span]) -> None:
        self._by_id = {each["id"]: each for each in spans}

    def line(self, span: Span) -> list[str]:
        """Its name, that of what it is a child of, and so on."""
        found = [span["name"]]
        while (parent := span["parent"]) is not None:
            assert self._by_id[parent]["trace"] == span["trace"]
            span = self._by_id[parent]
            found.append(span["name"])
        return found


@pytest.mark.smoke
async def test_one_trace_goes_through_all_processes(
    worker_process: Start, server: Server, queue_name: str, tmp_path: Path
):
    env = {"SPANS": str(tmp_path), "URL": server.url, "PYTHONPATH": str(Path(__file__).parents[1])}
    worker = await worker_process(SCRIPT, "worker", server.url, queue_name, env=env)
    await worker.line("ready")
    producer = await worker_process(SCRIPT, "produce", server.url, queue_name, env=env)
    assert await producer.wait() == 0, producer.output
    # order twice, bill, label of it, two of the pipeline, stocks, what follows that, and three mails
    await eventually(lambda: len(named(spans_in(tmp_path), "process")) == 11)
    worker.send(signal.SIGTERM)
    assert await worker.wait() == 0, worker.output
    spans = spans_in(tmp_path)
    family = Family(spans)

    [request] = named(spans, "request")
    first, second = sorted(
        named(spans, "process", "order"), key=lambda each: each["attributes"]["fairque.task.attempt"]
    )
    assert (first["error"], second["error"]) == ("ConnectionError", None)
    assert family.line(first) == family.line(second) == ["process", "enqueue", "request"]
    [billed] = named(spans, "process", "bill")
    assert family.line(billed) == ["process", "enqueue", "process", "enqueue", "request"]
    [in_subprocess] = named(spans, "bill")
    assert in_subprocess["parent"] == billed["id"]
    assert len({request["pid"], billed["pid"], in_subprocess["pid"]}) == 3
    [labeled] = [
        each for each in named(spans, "process", "label") if each["attributes"]["messaging.message.id"] == "label"
    ]
    assert family.line(labeled) == ["process", "enqueue", *family.line(billed)]
    assert {family.line(each)[-1] for each in spans if each["trace"] == request["trace"]} == {"request"}
    assert all(each["attributes"]["tenant"] == "blue" for each in spans if "tenant" in each["attributes"])
    [streamed] = named(spans, "process", "stocks")
    assert [each["parent"] for each in named(spans, "stocks")] == [streamed["id"]] * 2

    apart = named(spans, "process", "mails")
    assert [family.line(each) for each in apart] == [["process", "create"]] * 3
    assert len({each["trace"] for each in apart} | {request["trace"]}) == 4
    [call] = [each for each in named(spans, "enqueue") if each["kind"] == "CLIENT"]
    assert [each["links"] for each in named(spans, "create")] == [[call["id"]]] * 3
    assert family.line(call) == ["enqueue", "request"]
