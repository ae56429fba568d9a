"""`Visit`: one request that was let in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request

from fairque.contrib.dashboard.viewer import Viewer

__all__ = ["Visit", "base_of", "let_in", "path_of", "visit_of"]

_KEY = "fairque.visit"


@dataclass(frozen=True)
class Visit:
    """Who asks, and what goes with each page that it gets.

    Attributes:
        base: Where the dashboard is mounted, without a slash at its end.
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
    """Where the app is mounted."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def path_of(request: Request) -> str:
    """What was asked for, below that; it begins with a slash."""
    base, path = base_of(request), str(request.scope["path"])
    return path[len(base) :] if base and path.startswith(f"{base}/") else path
