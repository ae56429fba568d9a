"""`Visit`: one request that was let in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request

from fairque.contrib.dashboard.viewer import Viewer

__all__ = ["Visit", "base_of", "let_in", "path_of", "visit_of"]

_KEY = "fairque.visit"
_OF_PATHS = "/:@!$&'()*+,="
"""What browsers leave as it is in a path, but for the semicolon, which would end the path of a cookie."""


@dataclass(frozen=True)
class Visit:
    """Who asks, and what goes with each page that it gets.

    Attributes:
        base: Where the dashboard is mounted, as in addresses, without a slash at its end.
        csrf: What forms send back, and its cookie as well.
        form: What was sent with a POST.
    """

    viewer: Viewer
    base: str
    csrf: str
    form: Mapping[str, str]


def let_in(request: Request, visit: Visit) -> None:
    """Note who was let in with this request."""
    request.scope[_KEY] = visit


def visit_of(request: Request) -> Visit:
    """Who was let in with this request."""
    visit = request.scope[_KEY]
    assert isinstance(visit, Visit)
    return visit


def base_of(request: Request) -> str:
    """Where the app is mounted, as it stands in addresses and in paths of cookies.

    A part of it may be whatever a stranger wrote into a link: it leads to this host, and is one path.
    """
    base = _root_of(request)
    return f"/{quote(base.lstrip('/'), safe=_OF_PATHS)}" if base else ""


def path_of(request: Request) -> str:
    """What was asked for, below that; it begins with a slash."""
    base, path = _root_of(request), str(request.scope["path"])
    return path[len(base) :] if base and path.startswith(f"{base}/") else path


def _root_of(request: Request) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/")
