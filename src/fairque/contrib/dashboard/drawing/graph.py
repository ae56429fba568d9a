"""Graphs: what a task waits for, and what waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from fairque import TaskNode
from fairque.contrib.dashboard.drawing.svg import element, svg
from fairque.contrib.dashboard.words import brief

__all__ = ["graph"]

WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT = 640, 40, 176, 28
LONGEST = 22
MOST = 6


class _Box(NamedTuple):
    label: str
    kind: str


def graph(before: Sequence[TaskNode], task: TaskNode, behind: Sequence[TaskNode]) -> Markup:
    """A task in the middle, what it depends on at its left, what depends on it at its right: six of each at most."""
    columns = [_boxes(before), [_Box(task.task_id, f"{task.state or 'unknown'} own")], _boxes(behind)]
    height = max(map(len, columns)) * ROW
    lefts = (0, (WIDTH - BOX_WIDTH) // 2, WIDTH - BOX_WIDTH)
    placed = [
        [(left, (height - len(boxes) * ROW) / 2 + at * ROW + ROW / 2, box) for at, box in enumerate(boxes)]
        for left, boxes in zip(lefts, columns, strict=True)
    ]
    [(x, y, _)] = placed[1]
    edges = [_edge(left + BOX_WIDTH, middle, x, y) for left, middle, _ in placed[0]]
    edges += [_edge(x + BOX_WIDTH, y, left, middle) for left, middle, _ in placed[2]]
    drawn = [_drawn(*each) for boxes in placed for each in boxes]
    return svg("graph", *edges, *drawn, viewBox=f"0 0 {WIDTH} {height}", width="100%")


def _boxes(nodes: Sequence[TaskNode]) -> list[_Box]:
    shown = nodes if len(nodes) <= MOST else nodes[: MOST - 1]
    more = [_Box(f"{len(nodes) - len(shown)} more", "rest")] if len(nodes) > len(shown) else []
    return [*(_Box(node.task_id, node.state or "unknown") for node in shown), *more]


def _edge(x1: float, y1: float, x2: float, y2: float) -> Markup:
    half = (x1 + x2) / 2
    path = f"M{x1:g} {y1:g}C{half:g} {y1:g} {half:g} {y2:g} {x2:g} {y2:g}"
    return element("path", class_="edge", d=path, fill="none")


def _drawn(x: float, y: float, box: _Box) -> Markup:
    return element(
        "g",
        element("rect", x=x + 1, y=y - BOX_HEIGHT / 2, width=BOX_WIDTH - 2, height=BOX_HEIGHT, rx=5),
        element("text", brief(box.label, LONGEST), x=x + BOX_WIDTH / 2, y=y + 4, text_anchor="middle"),
        class_=f"node {box.kind}",
    )
