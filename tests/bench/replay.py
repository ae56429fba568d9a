"""Replays a trace through real workers with time scaled down, fair beside first come, first served.

    python tests/bench/replay.py TRACE [--days 52 64] [--workers 2] [--seconds 170] [--plot FILE] [--json FILE]

Each way of serving has a process of its own, with a queue, its workers and a producer that puts in every job of the
trace at its time. Jobs sleep for their run time. All ways run at once, against one private server. First come, first
served is the same code with one difference: all jobs are enqueued by one user. What was measured stands beside what
`fairque simulate` says of the same jobs. Times are printed in seconds of the trace.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from server import server

from fairque import TaskQueue, Worker, task
from fairque.fairness.contention import Contention
from fairque.fairness.report import Report, report_on
from fairque.fairness.simulate import Simulation, new_policy, simulate
from fairque.fairness.trace_files import TraceJob, in_order, read_trace
from fairque.tasks.options import MAX_COST, MIN_COST

DAY = 86_400
BOUND = 60.0  # seconds of the trace: some milliseconds of ours, and nothing shorter can be measured
WAYS = ("fair, charged by seconds", "fair, charged by tasks", "first come, first served")
BY_SECONDS, BY_TASKS, FIRST_COME = WAYS
began: dict[int, float] = {}
all_began = asyncio.Event()


@task(name="bench.replay", result_ttl=0)
async def work(number: int, of: int, seconds: float) -> None:
    began[number] = time.time()
    if len(began) == of:
        all_began.set()
    await asyncio.sleep(seconds)


def main() -> None:
    args = _arguments()
    jobs = in_order(_between(read_trace(args.trace).jobs, *args.days))
    simulated = {way: simulate(_charged(jobs, way), _policy(way), args.workers) for way in WAYS}
    scale = max(_end(run) for run in simulated.values()) / args.seconds
    if args.child:
        asyncio.run(_serve(_charged(jobs, args.child), args, scale))
        return
    measured = _measure(jobs, scale)
    reports = [(way, _report(way, measured[way], args), _report(way, simulated[way], args)) for way in WAYS]
    _print(reports, jobs, scale, args)
    if args.json:
        args.json.write_text(json.dumps({way: run.starts for way, run in measured.items()}))
    if args.plot:
        from fairque.cli.screens.simulation_plot import draw_lines

        users = {way: report.users for way, report, _ in reports}
        waits = {way: [user.wait_mean for user in of_way] for way, of_way in users.items()}
        slowdowns = {way: [user.slowdown for user in of_way] for way, of_way in users.items()}
        draw_lines({"mean wait of a user, in seconds": waits, "mean slowdown of a user": slowdowns}, args.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--days", type=float, nargs=2, default=(52, 64), metavar=("FIRST", "END"), help="of the trace")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="with one slot each")
    parser.add_argument("--seconds", type=float, default=170.0, help="how long it may take")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=".png or .svg")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write when each job started there")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    return parser.parse_args()


def _between(jobs: Sequence[TraceJob], first: float, end: float) -> Iterator[TraceJob]:
    return (job for job in jobs if first * DAY <= job.time < end * DAY)


def _charged(jobs: Sequence[TraceJob], way: str) -> list[TraceJob]:
    if way != BY_SECONDS:
        return list(jobs)
    return [job._replace(cost=min(MAX_COST, max(MIN_COST, job.seconds))) for job in jobs]


def _policy(way: str):
    return new_policy("fifo" if way == FIRST_COME else "fair", {})


def _end(run: Simulation) -> float:
    return max(start + job.seconds for start, job in zip(run.starts, run.jobs, strict=True))


# The measurement


def _measure(jobs: Sequence[TraceJob], scale: float) -> dict[str, Simulation]:
    with server(None) as url, ExitStack() as stack:
        ways = {way: stack.enter_context(_started(way, url)) for way in WAYS}
        for process in ways.values():
            process.stdout.readline()  # its workers are up
        at = time.time() + 0.5
        for process in ways.values():
            process.stdin.write(f"{at}\n")
            process.stdin.flush()
        starts = {way: json.loads(process.stdout.readline()) for way, process in ways.items()}
    return {way: _as_run(_charged(jobs, way), [(of - at) * scale for of in starts[way]]) for way in WAYS}


@contextmanager
def _started(way: str, url: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, *sys.argv, "--child", way, "--url", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
            process.wait(30)
        finally:
            process.kill()


async def _serve(jobs: Sequence[TraceJob], args: argparse.Namespace, scale: float) -> None:
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(TaskQueue(args.url, name=args.child.replace(" ", "-")))
        for number in range(args.workers):
            await stack.enter_async_context(Worker(queue, worker_id=f"w{number}", concurrency=1))
        print("ready", flush=True)
        at = float(await asyncio.to_thread(sys.stdin.readline))
        for number, job in enumerate(jobs):
            await asyncio.sleep(at + job.time / scale - time.time())
            owner = "everyone" if args.child == FIRST_COME else job.user_id
            await queue.enqueue(work(number, len(jobs), job.seconds / scale), user_id=owner, cost=job.cost)
        await all_began.wait()
    print(json.dumps([began[number] for number in range(len(jobs))]), flush=True)


def _as_run(jobs: Sequence[TraceJob], starts: Sequence[float]) -> Simulation:
    """In the form in which the simulator has it."""
    order = sorted(range(len(jobs)), key=starts.__getitem__)
    contention = Contention({})
    arrived = 0
    for number in order:
        while arrived < len(jobs) and jobs[arrived].time <= max(starts[number], jobs[number].time):
            contention.wait(jobs[arrived].user_id)
            arrived += 1
        contention.serve(jobs[number].user_id, jobs[number].cost)
    return Simulation(jobs, starts, order, contention)


# What is shown


def _report(way: str, run: Simulation, args: argparse.Namespace) -> Report:
    return report_on(way, run, args.workers, BOUND)


def _print(reports: list[tuple[str, Report, Report]], jobs: Sequence[TraceJob], scale: float, args) -> None:
    users = len({job.user_id for job in jobs})
    title = f"{len(jobs):,} jobs of {users} users, {args.workers} slots, 1 s is {scale:,.0f} s of the trace"
    table = Table(title=title, title_justify="left")
    table.add_column("of the users' means")
    for way, _, _ in reports:
        table.add_column(way, justify="right")
        table.add_column("simulated", justify="right")
    for name in ("slowdown_median", "slowdown_worst", "wait_median", "wait_worst", "index", "seconds"):
        digits = 3 if name == "index" else 0
        figures = [getattr(report, name) for _, *both in reports for report in both]
        table.add_row(name.replace("_", ", "), *(f"{figure:,.{digits}f}" for figure in figures))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
