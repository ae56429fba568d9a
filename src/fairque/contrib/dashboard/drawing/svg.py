"""Elements of SVG, with everything in them escaped."""

from __future__ import annotations

from markupsafe import Markup, escape

__all__ = ["element", "svg"]


def element(name: str, *inside: object, **attributes: object) -> Markup:
    """``class_`` is the attribute ``class``, ``_`` in other names is ``-``. Text inside is escaped."""
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value)) for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), given, Markup("").join(map(escape, inside)))


def svg(kind: str, *inside: object, **attributes: object) -> Markup:
    """A chart that says nothing to those who do not see it: the table does."""
    return element("svg", *inside, class_=f"chart {kind}", aria_hidden="true", focusable="false", **attributes)


def _short(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
