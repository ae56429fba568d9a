"""`Token`: lets in who has the address that was printed, as notebooks do."""

from __future__ import annotations

import secrets
from hmac import compare_digest
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from fairque import EVERYBODY
from fairque.contrib.dashboard.viewer import Viewer
from fairque.contrib.dashboard.visit import base_of, path_of

__all__ = ["Token"]

FIELD = "token"


class Token:
    """An `authorize` for one person on one machine: who asks with the token in the URL gets a cookie at once, and the
    URL without it.

    Args:
        acts, payloads: See `Viewer`.
        cookie: The name of the cookie, which is for the path of the pages. Browsers do not tell ports apart: who serves
            them at ``/`` shares it with whatever else listens on this host.

    Attributes:
        secret: What the URL has as ``token``.
    """

    def __init__(self, *, acts: bool = False, payloads: bool = False, cookie: str = "fairque_token") -> None:
        self.secret = secrets.token_urlsafe(32)
        self._cookie = cookie
        self._viewer = Viewer("the holder of the token", users=EVERYBODY, acts=acts, payloads=payloads)

    def __call__(self, request: Request) -> Viewer | Response | None:
        """Who asks; None: somebody else."""
        if request.method == "GET" and FIELD in request.query_params:
            return self._exchanged(request) if self._is_it(request.query_params[FIELD]) else None
        return self._viewer if self._is_it(request.cookies.get(self._cookie, "")) else None

    def _is_it(self, given: str) -> bool:
        return compare_digest(given.encode(), self.secret.encode())

    def _exchanged(self, request: Request) -> Response:
        rest = [(name, value) for name, value in parse_qsl(request.url.query) if name != FIELD]
        page = f"{base_of(request)}/{path_of(request).lstrip('/')}"
        answer = RedirectResponse(page + (f"?{urlencode(rest)}" if rest else ""), 303)
        answer.set_cookie(
            self._cookie,
            self.secret,
            path=base_of(request) or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",
        )
        return answer

    def __repr__(self) -> str:
        return "<Token>"
