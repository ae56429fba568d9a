"""The plot of ``fairque simulate``. The only importer of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fairque.fairness.report import Report

__all__ = ["draw", "draw_lines"]

_SIZE = (9.0, 3.6)  # inches
_COLOURS = ("#2a7f4f", "#c0392b", "#d4a017", "#34599c")


def draw(reports: Sequence[Report], path: Path) -> None:
    """For each policy, how many users had a mean wait, and a mean slowdown, of at most that. Raises OSError."""
    waits = {report.policy: [user.wait_mean for user in report.users] for report in reports}
    slowdowns = {report.policy: [user.slowdown for user in report.users] for report in reports}
    draw_lines({"mean wait in seconds": waits, "mean slowdown": slowdowns}, path)


def draw_lines(panels: dict[str, dict[str, list[float]]], path: Path) -> None:
    """A panel for each quantity, a line for each policy; the values are those of users."""
    figure = Figure(figsize=_SIZE, layout="constrained")  # not of pyplot: it draws without a screen
    for axes, (quantity, policies) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        _draw_panel(axes, quantity, policies)
    with mpl.rc_context({"svg.hashsalt": "fairque", "svg.fonttype": "none"}):  # equal figures make equal files
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _draw_panel(axes: Axes, quantity: str, policies: dict[str, list[float]]) -> None:
    for (policy, values), colour in zip(policies.items(), _COLOURS, strict=False):
        ordered = sorted(values)
        parts = [100 * (place + 1) / len(ordered) for place in range(len(ordered))]
        axes.step(ordered, parts, where="post", label=policy, color=colour, linewidth=1.8)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 102)
    axes.set_xlabel(f"{quantity}, at most")
    axes.set_ylabel("% of users")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", frameon=False)
