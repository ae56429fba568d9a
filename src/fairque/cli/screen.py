"""Draws a frame for a terminal of any size."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import ConsoleDimensions, Group, RenderableType
from rich.text import Text

from fairque.cli.frame import Frame, Order, Row
from fairque.cli.output import make_table
from fairque.cli.overview import workers_table
from fairque.cli.times import NOTHING, span
from fairque.cli.values import shown

__all__ = ["draw"]

_HELP = "sort: s share, w wait, r running, b backlog, u user   p hold   q quit"
_LINES = 5
"""Beside users and workers: two of heading, the heads of two tables, the help."""


def draw(frame: Frame, order: Order, size: ConsoleDimensions | None, note: str) -> RenderableType:
    """`size` None: as large as it takes. `note` goes into the heading."""
    workers, rows = list(frame.stats.workers), frame.sorted_by(order)
    if size is not None:
        room = max(2, size.height - _LINES)
        workers = workers[: max(1, room // 3)]
        rows = rows[: max(1, room - len(workers))]
    parts = [_heading(frame, order, note), _users(rows)]
    if workers:
        parts.append(workers_table(workers, frame.stats.at, wraps=False))
    if size is not None:
        parts.append(Text(_HELP, style="dim", no_wrap=True, overflow="crop"))
    return Group(*parts)


def _heading(frame: Frame, order: Order, note: str) -> Text:
    stats = frame.stats
    running, slots = sum(each.running for each in stats.workers), sum(each.concurrency for each in stats.workers)
    text = Text(no_wrap=True, overflow="crop")
    text.append(f"queue {shown(frame.queue)}: {_rate(frame.rate)} tasks/s, {stats.queued} wait, ")
    text.append(f"{running} of {slots} slots used\n{stats.users_known} users, by {order}")
    if note:
        text.append(f"  [{shown(note)}]", style="bold")
    return text


def _users(rows: Sequence[Row]) -> RenderableType:
    columns = ("user", ">share", ">fair", ">tasks/s", ">running", ">waiting", ">wait", ">sched.", ">dead", "flags")
    return make_table(columns, [_cells(row) for row in rows], wraps=False)


def _cells(row: Row) -> tuple[object, ...]:
    user = row.user
    return (
        *(user.user_id, _percent(row.share), _percent(row.fair_share), _rate(row.rate)),
        *(user.started, user.queued, span(user.wait_seconds), user.scheduled, user.dead_letters),
        ", ".join(row.flags) or NOTHING,
    )


def _percent(part: float | None) -> str:
    return NOTHING if part is None else f"{part:.1%}"


def _rate(rate: float | None) -> str:
    return NOTHING if rate is None else f"{rate:.1f}"
