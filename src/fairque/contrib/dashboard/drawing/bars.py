"""Bars: a part of a whole, beside what it should be."""

from __future__ import annotations

from markupsafe import Markup

from fairque.contrib.dashboard.drawing.svg import element, svg

__all__ = ["bar", "meter", "scale_of"]

HEIGHT = 14
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0)


def bar(held: float, entitled: float | None, scale: float = 1.0) -> Markup:
    """What somebody holds, with a thin mark at what it is entitled to; what is beyond that is drawn paler.

    Args:
        held: From 0 to 1.
        entitled: The same; None: no mark.
        scale: What the whole width stands for.
    """
    part = held if entitled is None else entitled
    within = min(held, part)
    # All of them are always there: each moves as itself when the page changes.
    parts = (
        element("rect", class_="track", width="100%", height=HEIGHT, rx=3),
        element("rect", class_="held", width=_share(within, scale), height=HEIGHT, rx=3),
        element("rect", class_="beyond", x=_share(within, scale), width=_share(held - within, scale), height=HEIGHT),
        element(
            "rect", class_="mark", x=_share(part, scale), width=0 if entitled is None else 2, height=HEIGHT + 6, y=-3
        ),
    )
    return svg("bar", *parts, width="100%", height=HEIGHT, overflow="visible")


def meter(part: float, kind: str = "") -> Markup:
    """How full something is, from 0 to 1."""
    return svg(
        f"meter {kind}".strip(),
        element("rect", class_="track", width="100%", height=6, rx=3),
        element("rect", class_="held", width=_share(part, 1.0), height=6, rx=3),
        width="100%",
        height=6,
    )


def scale_of(*parts: float) -> float:
    """A round number that is no less than each of them: the width of bars that stand below each other."""
    most = max(parts, default=0.0)
    return next((step for step in _STEPS if step >= most), 1.0)


def _share(part: float, scale: float) -> str:
    return f"{100 * min(1.0, max(0.0, part / scale)):.4g}%"
