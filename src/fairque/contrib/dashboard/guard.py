"""`Guard`: stands before every page. What it does not let in is answered here, and learns nothing."""

from __future__ import annotations

import inspect
import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from hmac import compare_digest
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fairque import WrongType
from fairque.config.hosts import checked_hosts, hostname_in
from fairque.contrib.dashboard.files import Files
from fairque.contrib.dashboard.viewer import Authorize, Viewer
from fairque.contrib.dashboard.visit import Visit, base_of, let_in, path_of
from fairque.contrib.dashboard.words import brief

__all__ = ["Guard"]

audit = logging.getLogger("fairque.dashboard.audit")
MOST_FORM_BYTES = 64 * 1024
CSRF_COOKIE = "fairque_csrf"
CSRF_FIELD = "csrf"
_CSRF = re.compile(r"[A-Za-z0-9_-]{43}")
_READS = ("GET", "HEAD")
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    # Not "no-referrer": browsers would send forms with the origin "null" then.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Lets in who asks under a name of this host and is somebody; a POST only from a form of these pages.

    Args:
        app: The pages.
        files: Style and script, which tell nothing: also who is refused may have them.
        authorize: Says who asks.
        hosts: Names under which the pages are served. A page of a stranger that resolves to this host is none of them.
    """

    def __init__(self, app: ASGIApp, files: Files, authorize: Authorize, hosts: Iterable[str]) -> None:
        if not callable(authorize):
            raise WrongType(f"authorize must be a function that says who asks, not {authorize!r}")
        self._app = app
        self._files = files
        self._authorize = authorize
        self._hosts = checked_hosts(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer = Answer(send)
        refusal = await self._refusal(request, answer)
        await (refusal or self._app)(scope, receive, answer)

    async def who(self, request: Request) -> Viewer | Response | None:
        """Who asks, by `authorize`."""
        found = self._authorize(request)
        who = await found if inspect.isawaitable(found) else found
        if who is not None and not isinstance(who, (Viewer, Response)):
            raise WrongType(f"authorize must return a Viewer, a Response or None, not {who!r}")
        return who

    async def _refusal(self, request: Request, answer: Answer) -> Response | None:
        if not self._knows_host(request.headers):
            host = request.headers.get("host", "")
            return _refused(400, f"This dashboard is not served under the name {host!r}: see `hosts`.")
        if (file := self._files.answer(request)) is not None:
            return file
        who = await self.who(request)
        if isinstance(who, Response):
            return who
        if who is None:
            return _refused(403, "This dashboard is not open to you.")
        form: Mapping[str, str] = {}
        csrf = request.cookies.get(CSRF_COOKIE, "")
        if request.method not in _READS:
            problem, form = await _form_of(request, csrf)
            if problem is not None:
                audit.warning(
                    "%r was refused at %r: %s", who.name, brief(path_of(request)), bytes(problem.body).decode().strip()
                )
                return problem
        if not _CSRF.fullmatch(csrf):
            csrf = secrets.token_urlsafe(32)
            answer.csrf_cookie = _cookie(request, csrf)
        let_in(request, Visit(who, base_of(request), csrf, form))
        return None

    def _knows_host(self, headers: Headers) -> bool:
        hosts = headers.getlist("host")
        return len(hosts) == 1 and hostname_in(hosts[0]) in self._hosts


class Answer:
    """Sends what tells a browser how little it may do with a page; pages themselves are kept by nobody."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.csrf_cookie = ""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
            if self.csrf_cookie:
                headers.append("set-cookie", self.csrf_cookie)
        await self._send(message)


async def _form_of(request: Request, csrf: str) -> tuple[Response | None, Mapping[str, str]]:
    """What was sent; or why not, where another page may have sent it."""
    if not _is_own_origin(request.headers):
        return _refused(403, "This was not sent by a page of this dashboard."), {}
    body = await _body(request)
    if body is None:
        return _refused(413, f"A form has at most {MOST_FORM_BYTES} bytes."), {}
    try:
        form = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=100))
    except ValueError:
        return _refused(400, "This is no form."), {}
    if not _CSRF.fullmatch(csrf) or not compare_digest(form.get(CSRF_FIELD, "").encode(), csrf.encode()):
        return _refused(403, "This form is out of date: reload the page that it was on, and send it again."), {}
    return None, form


def _is_own_origin(headers: Headers) -> bool:
    """Browsers tell with each POST which page sent it."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    if origin is None or site != "same-origin":
        return False
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == headers.get("host", "").lower()


async def _body(request: Request) -> bytes | None:
    """None where it is too long."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_FORM_BYTES:
                return None
    except ClientDisconnect:
        return None
    return bytes(body)


def _cookie(request: Request, csrf: str) -> str:
    # Not strict: who comes by a link from elsewhere would get another, and forms in other tabs would be out of date.
    secure = "; Secure" if request.url.scheme == "https" else ""
    return f"{CSRF_COOKIE}={csrf}; Path={base_of(request) or '/'}; HttpOnly; SameSite=Lax{secure}"


def _refused(status: int, text: str) -> Response:
    return PlainTextResponse(text + "\n", status)
