"""`Files`: style, script and icon, which come with the package."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from fairque.contrib.dashboard.visit import path_of

__all__ = ["Files"]

FOLDER = "/static/"
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FOR_EVER = {"cache-control": "public, max-age=31536000, immutable"}


class _File(NamedTuple):
    content: bytes
    media_type: str
    version: str


class Files:
    """A handful of small files, kept in memory. Their addresses change with them: browsers may keep them for ever."""

    def __init__(self) -> None:
        self._files = {
            each.name: _File(content, _TYPES[each.name.rpartition(".")[2]], sha256(content).hexdigest()[:12])
            for each in files(__package__).joinpath("static").iterdir()
            if each.name.rpartition(".")[2] in _TYPES
            for content in [each.read_bytes()]
        }

    def path(self, name: str) -> str:
        """Below the place where the dashboard is mounted."""
        return f"{FOLDER}{name}?v={self._files[name].version}"

    def answer(self, request: Request) -> Response | None:
        """None where no file is asked for."""
        name = path_of(request)
        if request.method not in ("GET", "HEAD") or not name.startswith(FOLDER):
            return None
        file = self._files.get(name.removeprefix(FOLDER))
        if file is None:
            return Response(status_code=404)
        is_current = request.query_params.get("v") == file.version
        return Response(file.content, media_type=file.media_type, headers=_FOR_EVER if is_current else None)
