"""`Look`: the templates, and what all of them can use. Whatever they are given is escaped, and its marks are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup

from fairque.contrib.dashboard import words
from fairque.contrib.dashboard.drawing import bars, graph, histogram, line
from fairque.contrib.dashboard.files import Files
from fairque.counted import counted

__all__ = ["Look", "link"]


class Look:
    """What pages look like.

    Args:
        files: Where style and script are.
    """

    def __init__(self, files: Files) -> None:
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("fairque.contrib.dashboard"),
            autoescape=True,
            finalize=words.legible,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= words.FILTERS
        self._templates.globals |= {
            "bar": bars.bar,
            "meter": bars.meter,
            "histogram": histogram.histogram,
            "line": line.line,
            "graph": graph.graph,
            "counted": counted,
            "file": files.path,
            "link": link,
        }

    def draw(self, template: str, given: Mapping[str, Any]) -> Markup:
        """A template, filled."""
        return Markup(self._templates.get_template(template).render(given))


def link(base: str, page: str, /, **arguments: object) -> str:
    """The address of a page. Ids are arguments of it: a path cannot hold all of them."""
    given = {name: value for name, value in arguments.items() if value not in (None, "")}
    return f"{base}/{page}" + (f"?{urlencode(given)}" if given else "")
