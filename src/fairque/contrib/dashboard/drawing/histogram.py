"""Histograms: how many there are of each size."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fairque.contrib.dashboard.drawing.svg import element, svg

__all__ = ["histogram"]

WIDTH, HEIGHT, FOOT = 480, 120, 18


def histogram(columns: Sequence[tuple[str, float]], every: int = 1) -> Markup:
    """Columns with a label below each, or below every so many of them, from left to right.

    The highest one reaches the top; one that is not empty can be seen, however small.
    """
    most = max((value for _, value in columns), default=0.0) or 1.0
    step = WIDTH / max(1, len(columns))
    drawn = [element("line", class_="axis", x1=0, x2=WIDTH, y1=HEIGHT, y2=HEIGHT)]
    for at, (label, value) in enumerate(columns):
        high = max(2.0, value / most * HEIGHT) if value else 0.0
        gap = min(4.0, step / 5)
        drawn.append(
            element(
                "rect",
                class_="held",
                x=at * step + gap / 2,
                width=step - gap,
                y=HEIGHT - high,
                height=high,
                rx=min(2.0, step / 6),
            )
        )
        if at % every == 0:
            drawn.append(element("text", label, x=(at + 0.5) * step, y=HEIGHT + FOOT - 4, text_anchor="middle"))
    return svg("histogram", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT + FOOT}", width="100%")
