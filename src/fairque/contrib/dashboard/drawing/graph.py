"""Graphs: what a task waits for, and what waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from fairque.contrib.dashboard.drawing.svg import element, svg
from fairque.contrib.dashboard.words import brief

__all__ = ["Node", "graph"]

WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT = 640, 40, 176, 28
LONGEST = 22
MOST = 6


class Node(NamedTuple):
    """A task in the graph. `state` is a class of the style sheet as well."""

    label: str
    state: str


def graph(before: Sequence[Node], task: Node, after: Sequence[Node]) -> Markup:
    """A task in the middle, what it depends on at its left, what depends on it at its right: six of each at most."""
    columns = [_cut(before), [task], _cut(after)]
    height = max(map(len, columns)) * ROW
    lefts = (0, (WIDTH - BOX_WIDTH) // 2, WIDTH - BOX_WIDTH)
    placed = [
        [(left, (height - len(nodes) * ROW) / 2 + at * ROW + ROW / 2, node) for at, node in enumerate(nodes)]
        for left, nodes in zip(lefts, columns, strict=True)
    ]
    [(x, y, _)] = placed[1]
    edges = [_edge(left + BOX_WIDTH, middle, x, y) for left, middle, _ in placed[0]]
    edges += [_edge(x + BOX_WIDTH, y, left, middle) for left, middle, _ in placed[2]]
    boxes = [_box(*each, is_own=column == 1) for column, nodes in enumerate(placed) for each in nodes]
    return svg("graph", *edges, *boxes, viewBox=f"0 0 {WIDTH} {height}", width="100%")


def _cut(nodes: Sequence[Node]) -> list[Node]:
    if len(nodes) <= MOST:
        return list(nodes)
    return [*nodes[: MOST - 1], Node(f"{len(nodes) - MOST + 1} more", "more")]


def _edge(x1: float, y1: float, x2: float, y2: float) -> Markup:
    half = (x1 + x2) / 2
    return element(
        "path", class_="edge", d=f"M{x1:g} {y1:g}C{half:g} {y1:g} {half:g} {y2:g} {x2:g} {y2:g}", fill="none"
    )


def _box(x: float, y: float, node: Node, *, is_own: bool) -> Markup:
    return element(
        "g",
        element("rect", x=x + 1, y=y - BOX_HEIGHT / 2, width=BOX_WIDTH - 2, height=BOX_HEIGHT, rx=5),
        element("text", brief(node.label, LONGEST), x=x + BOX_WIDTH / 2, y=y + 4, text_anchor="middle"),
        class_=f"node {node.state}{' own' if is_own else ''}",
    )
