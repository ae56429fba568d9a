"""Lines: how something went over the last minutes."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fairque.contrib.dashboard.drawing.svg import element, svg

__all__ = ["sparkline"]

WIDTH, HEIGHT = 240, 36


def sparkline(values: Sequence[float]) -> Markup:
    """From the oldest to the newest, from 0 to the highest. With fewer than two there is nothing to draw."""
    if len(values) < 2:
        return Markup("")
    most = max(values) or 1.0
    points = [
        (at * WIDTH / (len(values) - 1), HEIGHT - 2 - value / most * (HEIGHT - 4)) for at, value in enumerate(values)
    ]
    along = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return svg(
        "sparkline",
        element("polygon", class_="area", points=f"0,{HEIGHT} {along} {WIDTH},{HEIGHT}"),
        element("polyline", class_="line", points=along, fill="none"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        width="100%",
        height=HEIGHT,
    )
