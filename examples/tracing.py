"""A request, the tasks that it puts in, and what these put in, as one trace. It needs the SDK of OpenTelemetry:
pip install opentelemetry-sdk. Run it as it is: python examples/tracing.py
"""

import asyncio
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fairque import RetryPolicy, TaskQueue, Worker, current_task, task
from fairque.contrib.opentelemetry import Tracing

exporter = InMemorySpanExporter()  # stands for one that sends them to a collector
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("shop")

queue = TaskQueue("embedded://", **Tracing().doors)


@task(name="order", max_retries=1, retry=RetryPolicy(base=0.01))
async def order(item: str) -> str:
    if current_task().attempt == 1:
        raise ConnectionError("no answer")
    with tracer.start_as_current_span("check the stock"):
        await asyncio.sleep(0.01)  # the work
    return (await current_task().enqueue(print_label(item))).task_id


@task(name="label")
def print_label(item: str) -> str:  # in a thread
    with tracer.start_as_current_span("print"):
        return f"a label for {item}"


def show(spans: Sequence[ReadableSpan], parent: ReadableSpan | None = None, depth: int = 0) -> None:
    """What belongs to a span is indented."""
    parent_id = parent.context.span_id if parent is not None else None
    children = [each for each in spans if (each.parent.span_id if each.parent is not None else None) == parent_id]
    for span in sorted(children, key=lambda each: each.start_time or 0):
        attributes = span.attributes or {}
        words = [span.name, attributes.get("fairque.task.name"), attributes.get("error.type")]
        print("  " * depth + ", ".join(str(word) for word in words if word))
        show(spans, span, depth + 1)


async def main() -> None:
    async with queue, Worker(queue):
        with tracer.start_as_current_span("POST /orders"):
            ordered = await queue.enqueue(order("a lamp"), user_id="acme")
        label_id = await ordered.result(timeout=10)
        await queue.handle("acme", label_id).result(timeout=10)
    show(exporter.get_finished_spans())


if __name__ == "__main__":
    asyncio.run(main())
