"""What is measured: a file per kind of measurement, and here the list of rows with what each should reach."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ALL = ("fairque", "saq", "streaq", "taskiq")


@dataclass(frozen=True)
class Figure:
    """One line of the table: a number that the row's measurement returns, and what fairque should reach."""

    key: str
    label: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    times: float | None = None  # at least so many times what saq does in the same run
    saq: float | None = None  # what saq did on the machine for which the figure to reach was set


@dataclass(frozen=True)
class Row:
    """One measurement: `measure` of a module of this package, called in a process of its own."""

    name: str
    module: str
    figures: tuple[Figure, ...]
    options: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)  # what differs for slower contenders, to save time
    quick: dict[str, Any] = field(default_factory=dict)
    contenders: tuple[str, ...] = ALL
    repeats: int = 3
    derive: Callable[[dict[str, float]], dict[str, float]] | None = None


def _spread(values: dict[str, float]) -> dict[str, float]:
    totals = [v for k, v in values.items() if k.startswith("total_")]
    return {"spread": max(totals) / min(totals)}


def _ratio(values: dict[str, float]) -> dict[str, float]:
    return {"ratio": values["diamond_us"] / values["four_us"]}


ROWS = (
    Row(
        "drain",
        "drain",
        (
            Figure("rate", "drain: no-op tasks, results kept, concurrency 100", "/s", 20_000, times=4, saq=4_091),
            Figure("cpu_us", "the same: CPU of the worker for each", "µs"),
        ),
        {"task": "noop", "tasks": 20_000},
        {"tasks": 5_000},
        {"tasks": 3_000},
        contenders=(*ALL, "raw"),
    ),
    Row(
        "naps",
        "drain",
        (
            Figure("rate", "10 ms tasks, concurrency 100 (ideal 10,000)", "/s", 9_000),
            Figure("cpu_us", "the same: CPU of the worker for each", "µs"),
            Figure("bare", "the same: 100 bare loops of asyncio.sleep(0.01)", "/s"),
        ),
        {"task": "nap", "tasks": 10_000},
        {"tasks": 5_000},
        {"tasks": 3_000},
    ),
    Row(
        "single",
        "enqueue",
        (
            Figure("rate", "one awaited enqueue after another", "/s", 10_000, saq=8_315),
            Figure("cpu_us", "the same: CPU of the producer for each", "µs"),
        ),
        {"how": "single", "tasks": 10_000},
        quick={"tasks": 3_000},
        contenders=(*ALL, "raw"),
    ),
    Row(
        "bulk",
        "enqueue",
        (
            Figure("rate", "bulk enqueue", "/s", 60_000, saq=17_147),
            Figure("cpu_us", "the same: CPU of the producer for each", "µs"),
        ),
        {"how": "bulk", "tasks": 50_000},
        {"tasks": 10_000},
        {"tasks": 10_000},
        contenders=(*ALL, "raw"),
    ),
    Row(
        "concurrent",
        "enqueue",
        (
            Figure("rate", "100 concurrent single enqueues", "/s", 40_000, saq=17_147),
            Figure("cpu_us", "the same: CPU of the producer for each", "µs"),
        ),
        {"how": "concurrent", "tasks": 40_000},
        {"tasks": 10_000},
        {"tasks": 10_000},
        contenders=(*ALL, "raw"),
    ),
    Row(
        "results",
        "results",
        (
            Figure("rate", "enqueue and wait for the result, 1,000 at a time", "/s", 10_000),
            Figure("share", "the same ÷ the drain in the same process", "×", 0.35),
        ),
        {"calls": 20_000, "callers": 1_000, "tasks": 20_000},
        {"calls": 3_000, "tasks": 3_000},
        {"calls": 3_000, "tasks": 3_000},
        contenders=("fairque", "saq", "taskiq"),  # a hundred waits of streaq at a time do not end
    ),
    Row(
        "latency",
        "latency",
        (
            Figure("p50", "idle queue, enqueue to start, p50", "ms", at_most=0.7, saq=1.15),
            Figure("p99", "idle queue, enqueue to start, p99", "ms", at_most=1.5, saq=1.85),
        ),
        {"tasks": 300},
        quick={"tasks": 100},
        contenders=(*ALL, "raw"),
    ),
    Row(
        "streams",
        "streams",
        (
            Figure("rate", "chunks of one task, as fast as it yields", "/s", 50_000),
            Figure("p50", "age of a chunk that is read, of 20 a second, p50", "ms", at_most=5),
            Figure("p99", "age of a chunk that is read, of 20 a second, p99", "ms", at_most=20),
            Figure("many_p50", "the same with 100 such tasks at once, p50", "ms", at_most=20),
        ),
        {"chunks": 100_000, "slow": 200, "streams": 100},
        quick={"chunks": 20_000, "slow": 60, "streams": 20},
        contenders=("fairque",),
    ),
    Row(
        "idle",
        "idle",
        (
            Figure("commands", "idle worker, commands a second", "/s", at_most=0.5),
            Figure("cpu", "idle worker, CPU", "%", at_most=0.5),
        ),
        {"seconds": 30},
        quick={"seconds": 10},
        repeats=1,
    ),
    Row(
        "memory-int",
        "memory",
        (Figure("bytes", "memory per waiting task, one int argument", "B", at_most=400),),
        {"task": "noop", "argument": 12_345, "tasks": 10_000},
    ),
    Row(
        "memory-100",
        "memory",
        (Figure("bytes", "memory per waiting task, 100 bytes of arguments", "B", at_most=650),),
        {"task": "text", "argument": "x" * 100, "tasks": 10_000},
    ),
    Row(
        "quiet",
        "quiet",
        (
            Figure("first", "quiet user behind 5,000 10 ms tasks, concurrency 10", "ms", at_most=30),
            Figure("worst", "the same, worst of 20 arrivals", "ms", at_most=30),
        ),
        {"tasks": 5_000, "arrivals": 20},
        quick={"arrivals": 10},
    ),
    Row(
        "diamond",
        "diamond",
        (
            Figure("ratio", "diamond of 4 no-op tasks ÷ 4 independent ones, enqueue and serve", "×", at_most=1.5),
            Figure("diamond_us", "the same: time per diamond", "µs"),
            Figure("four_us", "the same: time per 4 independent tasks", "µs"),
            Figure("round_trips", "enqueue of a pipeline of 100 tasks, round trips", "", at_most=1),
        ),
        {"fours": 3_000},
        quick={"fours": 1_000},
        contenders=("fairque",),
        derive=_ratio,
    ),
    Row(
        "doors",
        "doors",
        (
            Figure("nothing_us", "a no-op task put in and run, no door used: CPU of its process", "µs"),
            Figure("again_us", "the same, more when measured again", "µs"),
            Figure("run_middleware_us", "more with one middleware around the run", "µs"),
            Figure("enqueue_middleware_us", "more with one middleware around the enqueue", "µs"),
            Figure("headers_us", "more with headers of 84 bytes", "µs"),
            Figure("signing_us", "more with argument and result signed", "µs"),
            Figure("encryption_us", "more with both encrypted", "µs"),
            Figure("depends_us", "more with one dependency, made by a plain function", "µs"),
            Figure("depends_opened_us", "more with one dependency, of an async context manager", "µs"),
            Figure("tracing_us", "more with `Tracing` and the API of OpenTelemetry alone", "µs"),
            Figure("recording_us", "more with its SDK, spans and metrics", "µs"),
        ),
        {"tasks": 20_000},
        quick={"tasks": 2_000},
        contenders=("fairque",),
        repeats=1,
    ),
    Row(
        "redis-time",
        "redis_time",
        (
            Figure("total_10", "Redis time per task, whole life, 10 users", "µs", at_most=35),
            Figure("total_1000", "Redis time per task, whole life, 1,000 users", "µs", at_most=35),
            Figure("total_100000", "Redis time per task, whole life, 100,000 users", "µs", at_most=35),
            Figure("spread", "most ÷ least of these three", "×", at_most=1.2),
            Figure("cpu_1000", "CPU of the server per task, all told, 1,000 users", "µs"),
        ),
        {"users": [10, 1_000, 100_000], "tasks": 10_000},
        quick={"tasks": 5_000},
        contenders=("fairque",),
        derive=_spread,
    ),
    Row(
        "governed",
        "governed",
        (
            Figure("claim_free", "Redis time to claim a task, without policies", "µs"),
            Figure("claim_limits", "the same, each user with weight, limit, rate, quota, breaker", "µs", at_most=40),
            Figure("claim_all", "the same, with groups and reservations as well", "µs", at_most=40),
            Figure("settle_free", "Redis time to settle a task, without policies", "µs"),
            Figure("settle_all", "the same, with all policies", "µs"),
        ),
        {"tasks": 20_000},
        quick={"tasks": 2_000},
        contenders=("fairque",),
    ),
)
