"""Lines: how something went over the last minutes."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fairque.contrib.dashboard.drawing.svg import element, svg

__all__ = ["line"]

WIDTH, HEIGHT = 480, 138


def line(values: Sequence[float]) -> Markup:
    """From the oldest to the newest, from 0 to the highest. With fewer than two there is nothing to draw."""
    if len(values) < 2:
        return Markup("")
    most = max(values) or 1.0
    step = WIDTH / (len(values) - 1)
    along = " ".join(
        f"{at * step:.1f},{HEIGHT - 1 - value / most * (HEIGHT - 4):.1f}" for at, value in enumerate(values)
    )
    return svg(
        "line",
        element("polygon", class_="area", points=f"0,{HEIGHT} {along} {WIDTH},{HEIGHT}"),
        element("polyline", class_="along", points=along, fill="none"),
        element("line", class_="axis", x1=0, x2=WIDTH, y1=HEIGHT, y2=HEIGHT),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        width="100%",
    )
