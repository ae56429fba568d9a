"""``fairque simulate``: what a policy would do to the users of a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import Annotated, Literal

import typer

from fairque.checks import check_number
from fairque.cli.errors import FAILED, CommandError
from fairque.cli.options import AsJson
from fairque.cli.screens.simulation import show, show_json, write_csv
from fairque.fairness.report import DEFAULT_BOUND, Report, report_on
from fairque.fairness.simulate import MAX_SLOTS, PolicyName, check_policy, new_policy, simulate
from fairque.fairness.trace_files import Format, TraceJob, parse_number, read_trace
from fairque.policy import LEAST_WEIGHT, MOST_WEIGHT
from fairque.tasks.options import MAX_COST, MIN_COST

__all__ = ["command"]

Charge = Literal["cost", "seconds"]
Draw = Callable[[Sequence[Report], Path], None]


def command(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="CSV or Standard Workload Format, gzipped or not.")],
    policy: Annotated[
        str, typer.Option(metavar="NAME,…", help="What to compare: fair, fifo, round-robin.")
    ] = "fair,fifo",
    workers: Annotated[int, typer.Option(min=1, max=MAX_SLOTS, metavar="N", help="Tasks that run at once.")] = 10,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="USER=WEIGHT,…", help="Of users; 1 for all others. Repeatable.")
    ] = None,
    charge: Annotated[Charge, typer.Option(help="What a task costs: its cost, 1 without, or its duration.")] = "cost",
    speed: Annotated[
        float, typer.Option(min=1e-6, max=1e6, metavar="FACTOR", help="Let tasks arrive so many times as fast.")
    ] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Take the first N tasks of the file.")] = None,
    bound: Annotated[
        float, typer.Option(min=1e-6, max=1e9, metavar="SECONDS", help="Slowdown: shorter tasks count as this long.")
    ] = DEFAULT_BOUND,
    format_: Annotated[Format | None, typer.Option("--format", help="Of the trace, where the guess is wrong.")] = None,
    users: Annotated[int, typer.Option(min=0, metavar="N", help="Show the N users with most tasks.")] = 10,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures of all users there.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw waits and slowdowns of users: .png or .svg.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """See what a policy would do to the users of a trace.

    Without Redis, and without waiting.
    CSV has a header: time,user,duration and, if you like, cost. Times are seconds. The Standard Workload Format is that
    of the Parallel Workloads Archive. The fair policy is the model that the scripts of the queue are tested against.

    Example: fairque simulate trace.csv --workers 20

    Exit codes: 0 shown, 1 failed, 2 wrong usage.
    """
    names = _names(policy)
    draw = None if plot is None else _drawing(plot)
    found = read_trace(trace, format_, limit=limit)
    jobs = _prepared(found.jobs, speed, charge)
    weight_of = _weights(weights or [], {job.user_id for job in jobs})
    runs = {name: simulate(jobs, new_policy(name, weight_of), workers, weight_of) for name in names}
    reports = [report_on(name, run, workers, bound) for name, run in runs.items()]
    if csv is not None:
        _write(csv, lambda: write_csv(csv, reports))
    if plot is not None and draw is not None:
        _write(plot, lambda: draw(reports, plot))
    if as_json:
        show_json(reports, found.left_out)
    else:
        show(reports, found.left_out, users)


def _names(text: str) -> list[PolicyName]:
    return list(dict.fromkeys(check_policy(part.strip()) for part in text.split(",")))


def _prepared(jobs: list[TraceJob], speed: float, charge: Charge) -> list[TraceJob]:
    if speed != 1:
        jobs = [job._replace(time=job.time / speed) for job in jobs]
    if charge == "seconds":
        jobs = [job._replace(cost=min(MAX_COST, max(MIN_COST, job.seconds))) for job in jobs]
    return jobs


def _weights(texts: Iterable[str], users: Set[str]) -> dict[str, float]:
    found = dict(_weight(part.strip()) for text in texts for part in text.split(","))
    for user_id in found.keys() - users:
        raise CommandError(
            f"there is no user {user_id!r} in the trace", "the table shows users, --users N more of them"
        )
    return found


def _weight(text: str) -> tuple[str, float]:
    user_id, _, number = text.rpartition("=")
    if not user_id:
        raise CommandError(f"{text!r} weighs nobody", "write --weights USER=WEIGHT, such as acme=2")
    name = f"the weight of {user_id!r}"
    return user_id, check_number(name, parse_number(name, number), LEAST_WEIGHT, MOST_WEIGHT)


def _drawing(path: Path) -> Draw:
    """Before anything is computed: can this be drawn at all?"""
    if path.suffix.lower() not in (".png", ".svg"):
        raise CommandError(f"{path.name!r} is no name for a plot", "let it end in .png or .svg")
    try:
        from fairque.cli.screens.simulation_plot import draw
    except ModuleNotFoundError as error:
        raise CommandError(f"a plot needs {error.name}", "pip install 'fairque[plot]'", FAILED) from None
    return draw


def _write(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {error.strerror}", "name a file in a directory of yours"
        ) from None
