"""A program that is traced: ``traced.py worker|produce URL QUEUE``. Whoever imports it, a subprocess of a task as well,
writes the spans that it ends into a file of its own, in the directory ``SPANS``: a line of JSON for each.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from fairque import Collect, RetryPolicy, TaskQueue, Worker, current_task, task
from fairque.contrib.opentelemetry import Tracing
from fairque.sync import TaskQueue as BlockingQueue


class Lines(SpanExporter):
    """One line each, of which a process that is killed leaves all that it wrote."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with (Path(os.environ["SPANS"]) / f"{os.getpid()}.jsonl").open("a") as file:
            for span in spans:
                file.write(json.dumps(_packed(span)) + "\n")
        return SpanExportResult.SUCCESS


def _packed(span: ReadableSpan) -> dict[str, Any]:
    return {
        "name": span.name.split()[0],
        "kind": span.kind.name,
        "trace": trace.format_trace_id(span.context.trace_id),
        "id": trace.format_span_id(span.context.span_id),
        "parent": trace.format_span_id(span.parent.span_id) if span.parent is not None else None,
        "links": [trace.format_span_id(each.context.span_id) for each in span.links],
        "attributes": dict(span.attributes or {}),
        "error": span.status.description,
        "pid": os.getpid(),
    }


provider = TracerProvider(resource=Resource.create({"service.name": "traced"}))
provider.add_span_processor(SimpleSpanProcessor(Lines()))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("traced")
tracing = Tracing()


def step(name: str) -> None:
    """What the program does itself, as a span of its own."""
    with tracer.start_as_current_span(name, attributes={"tenant": str(baggage.get_baggage("tenant"))}):
        pass


@task(name="order", max_retries=1, retry=RetryPolicy(base=0))
async def order() -> str:
    step("order")
    if current_task().attempt == 1:
        raise ConnectionError
    return (await current_task().enqueue(bill("a lamp"))).task_id


@task(name="bill", run_in="process")
def bill(item: str) -> str:
    step("bill")
    with BlockingQueue(os.environ["URL"], name=current_task().queue_name, **tracing.doors) as queue:
        return queue.enqueue(label(item), user_id="acme", task_id="label").task_id


@task(name="label")
def label(item: str) -> str:  # in a thread
    step("label")
    return item


@task(name="stocks")
def stocks(many: int) -> Iterator[int]:
    for n in range(many):
        step("stocks")
        yield n


@task(name="mails", collect=Collect(5, within=0.2))
async def mails(addresses: list[str]) -> list[str]:
    step("mails")
    return addresses


async def produce(queue: TaskQueue) -> None:
    """One of each, and what comes of them."""
    context.attach(baggage.set_baggage("tenant", "blue"))
    with tracer.start_as_current_span("request"):
        ordered = await queue.enqueue(order(), user_id="acme", task_id="order")
        pipeline = await queue.enqueue(label("1") >> label("2"), user_id="acme")
        stream = await queue.enqueue(stocks(2), user_id="acme", on_success=label("told"))
        many = await queue.enqueue_many([mails(each) for each in "abc"], user_id="acme")
    await queue.results([ordered, stream, *many], 30)
    await pipeline.result(timeout=30)
    await queue.handle("acme", await ordered.result()).result(30)
    await queue.handle("acme", "label").result(30)
    print("produced")


async def work(queue: TaskQueue) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Worker(queue):
        print("ready")
        await stop.wait()


async def main(role: str, url: str, queue_name: str) -> None:
    async with TaskQueue(url, name=queue_name, **tracing.doors) as queue:
        await {"worker": work, "produce": produce}[role](queue)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
