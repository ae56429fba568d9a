"""What a task costs that uses one of the doors of the core, more than one that uses none: CPU of the process that puts
it in and runs it. In turns, so that whatever else runs here hits all, and as medians of the differences in a turn.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from time import process_time
from typing import Any

from bodies import noop, tally
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from fairque import Encrypt, Sign, TaskQueue, Worker, task
from fairque.contrib.depends import Depends
from fairque.contrib.opentelemetry import Tracing

TURNS = 20
PRODUCERS = 100
KEYS = {"2026-11": bytes(range(32))}
USERS = [f"user-{i}" for i in range(100)]
HEADERS = {"request-id": "7f3a11c0", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


async def passing(_: Any, call_next: Any) -> Any:
    """The least middleware there is, around a run or an enqueue."""
    return await call_next()


def made() -> int:
    return 1


@asynccontextmanager
async def opened():
    yield 1


async def depends(n: int, _one: int = Depends(made)) -> int:
    return await noop(n)


async def depends_opened(n: int, _one: int = Depends(opened)) -> int:
    return await noop(n)


class Nowhere(SpanExporter):
    def export(self, *_: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def recorded() -> Tracing:
    """By an SDK that keeps all spans until they would be sent, and counts."""
    spans = TracerProvider()
    spans.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=100_000))
    return Tracing(tracer_provider=spans, meter_provider=MeterProvider([InMemoryMetricReader()]))


@dataclass(frozen=True)
class Door:
    """Options of the queue, of its worker, and of each task; and which task it is."""

    queue: Mapping[str, Any] = field(default_factory=dict)
    worker: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    name: str = "noop"


DOORS = {
    "nothing": Door(),
    "again": Door(),  # tells how much of a difference is noise
    "run_middleware": Door(worker={"run_middleware": [passing]}),
    "enqueue_middleware": Door(queue={"enqueue_middleware": [passing]}),
    "headers": Door(task={"headers": HEADERS}),
    "signing": Door(queue={"codec": Sign(KEYS)}),
    "encryption": Door(queue={"codec": Encrypt(KEYS)}),
    "depends": Door(name="depends"),
    "depends_opened": Door(name="depends_opened"),
    "tracing": Door(queue=Tracing().doors),
    "recording": Door(queue=recorded().doors),
}


async def measure(client: Any, url: str, tasks: int) -> dict[str, float]:
    """`client` is that of fairque."""
    spent: dict[str, list[float]] = {name: [] for name in DOORS}
    tasks_by_name = client.tasks | {body.__name__: task(name=body.__name__)(body) for body in (depends, depends_opened)}
    async with AsyncExitStack() as stack:
        queues = {
            name: await stack.enter_async_context(TaskQueue(url, name=name, **door.queue))
            for name, door in DOORS.items()
        }
        for turn in range(1 + TURNS):
            for name, door in DOORS.items():
                seconds = await _served(queues[name], tasks_by_name[door.name], door, tasks // TURNS)
                if turn:  # in the first one, connections are opened and scripts loaded
                    spent[name].append(1e6 * seconds / (tasks // TURNS))
    more = {f"{name}_us": _median_of_differences(spent, name) for name in DOORS}
    return more | {"nothing_us": median(spent["nothing"])}


def _median_of_differences(spent: dict[str, list[float]], name: str) -> float:
    return median(mine - nothing for mine, nothing in zip(spent[name], spent["nothing"], strict=True))


async def _served(queue: TaskQueue, task: Any, door: Door, count: int) -> float:
    """Seconds of CPU for all of them, from their calls to their outcomes."""
    began = process_time()
    left = iter(range(count))

    async def producer() -> None:
        for n in left:
            await queue.enqueue(task(n), user_id=USERS[n % 100], **door.task)

    await asyncio.gather(*(producer() for _ in range(PRODUCERS)))
    tally.expect(count)
    await Worker(queue, concurrency=100, scheduler=False, **door.worker).run_until_idle()
    return process_time() - began
