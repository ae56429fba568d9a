"""What ``fairque simulate`` says: tables, JSON and CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from fairque.cli.output import make_console, print_json
from fairque.cli.table import names, numbers, print_table, words
from fairque.counted import counted
from fairque.fairness.report import Report, UserReport

__all__ = ["show", "show_json", "write_csv"]

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 0.001))
_LEGEND = """
of users: of the means of all users; slowdown: (wait + run) / run
index: Jain's, of what users received while they competed for what they were entitled to; 1 is fair
share, entitled: of the cost that was served while tasks of several users waited"""


def show(reports: Sequence[Report], left_out: Mapping[str, int], most_users: int) -> None:
    """A table of the policies, then one of the users for each."""
    first = reports[0]
    print_table(
        _OVERALL,
        [_overall(report) for report in reports],
        f"{counted(first.tasks, 'task')} of {counted(len(first.users), 'user')}",
    )
    for report in reports if most_users else ():
        typer.echo()
        print_table(_PER_USER, [_per_user(user) for user in report.users[:most_users]], report.policy)
    if 0 < most_users < len(first.users):
        typer.echo(f"and {counted(len(first.users) - most_users, 'user')} more, see --users, --csv and --json")
    make_console().print(_LEGEND)
    for reason, lines in left_out.items():
        typer.echo(f"left out {counted(lines, 'line')} {reason}")


def show_json(reports: Sequence[Report], left_out: Mapping[str, int]) -> None:
    print_json({"policies": reports, "left_out": left_out})


def write_csv(path: Path, reports: Sequence[Report]) -> None:
    """A line for each policy and user. Raises OSError."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["policy", *UserReport.__struct_fields__])
        for report in reports:
            for user in report.users:
                writer.writerow([report.policy, *(getattr(user, name) for name in UserReport.__struct_fields__)])


_OVERALL = (
    words("policy"),
    numbers("of users: median wait"),
    numbers("worst wait"),
    numbers("median slowdown"),
    numbers("worst slowdown"),
    numbers("index"),
    numbers("busy"),
    numbers("all done after"),
)


def _overall(report: Report) -> tuple[str, ...]:
    return (
        report.policy,
        _time(report.wait_median),
        _time(report.wait_worst),
        _times(report.slowdown_median),
        _times(report.slowdown_worst),
        f"{report.index:.3f}",
        f"{report.utilization:.0%}",
        _time(report.seconds),
    )


_PER_USER = (
    *(names("user", whole=1), numbers("tasks"), numbers("mean wait"), numbers("p50", 3), numbers("p95", 2)),
    *(numbers("p99"), numbers("slowdown"), numbers("share"), numbers("entitled")),
)


def _per_user(user: UserReport) -> tuple[str, ...]:
    waits = user.wait_mean, user.wait_p50, user.wait_p95, user.wait_p99
    shares = f"{user.share:.1%}", f"{user.entitled:.1%}"
    return user.user, f"{user.tasks:,}", *(_time(wait) for wait in waits), _times(user.slowdown), *shares


def _time(seconds: float) -> str:
    unit, size = next((unit for unit in _UNITS if seconds >= unit[1]), ("s", 1.0))
    return f"{seconds / size:.3g} {unit}" if seconds < 999 * size else f"{seconds / size:,.0f} {unit}"


def _times(slowdown: float) -> str:
    return f"{slowdown:.3g}" if slowdown < 999.5 else f"{slowdown:,.0f}"
