"""`App`: a bare ASGI application of a few pages that can be asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from fairque.errors import FairqueError

__all__ = [
    "ANSWER_SECONDS",
    "ASGI",
    "Answer",
    "App",
    "Query",
    "Receive",
    "Refused",
    "Route",
    "Scope",
    "Send",
    "send_answer",
    "sentence",
]

logger = logging.getLogger("fairque.http")
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]
Query = Mapping[str, str]

ANSWER_SECONDS = 2.0
"""No answer takes longer: KEDA waits for three seconds, and who probes for one or a few."""
MOST_WAITING = 100
"""Requests for one page that wait for their answer at once."""
MOST_PARAMETERS = 10
_TEXT = "text/plain; charset=utf-8"
_BY_ALL = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Answer(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    content_type: str = _TEXT


def sentence(status: int, text: str) -> Answer:
    return Answer(status, f"{text}\n".encode(errors="backslashreplace"))


class Refused(Exception):
    """What is asked for breaks a rule. Any other error is not the fault of who asks, `InvalidInput` included."""


Route = Callable[[Query], Awaitable[Answer]]
"""Is given the parameters of the URL. Raises `Refused` for one that it does not take."""


class App:
    """Answers GET and HEAD, reads no body, and answers each request within two seconds, whatever hangs.

    What went wrong inside is in the log, not in the answer.

    Args:
        routes: By path, below that at which the app is mounted.
        close: Awaited at the end of a server that tells the app of it (the lifespan protocol); a mounted app is told
            nothing.
    """

    def __init__(self, routes: Mapping[str, Route], close: Callable[[], Awaitable[None]] | None = None) -> None:
        self._routes = routes
        self._close = close
        self._waiting = dict.fromkeys(routes, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send_answer(send, scope["method"], await self._answer(scope))
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})

    async def _answer(self, scope: Scope) -> Answer:
        path = _path(scope)
        if path not in self._routes:
            return sentence(404, f"nothing is here; there is {', '.join(self._routes)}")
        if scope["method"] not in ("GET", "HEAD"):
            return sentence(405, "only GET and HEAD are answered")
        if self._waiting[path] >= MOST_WAITING:
            return sentence(503, "too many ask for this at once")
        self._waiting[path] += 1
        try:
            return await self._asked(path, scope)
        finally:
            self._waiting[path] -= 1

    async def _asked(self, path: str, scope: Scope) -> Answer:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._routes[path](_query(scope))
        except Refused as exc:
            return sentence(422, str(exc))
        except TimeoutError:
            return sentence(503, f"no answer within {ANSWER_SECONDS:g} s")
        except FairqueError:
            return sentence(503, "the queue cannot be read: the log says why")
        except Exception:
            logger.exception("%s failed", path)
            return sentence(500, "this failed: the log says why")

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            event = (await receive())["type"]
            if event == "lifespan.shutdown" and self._close is not None:
                await self._close()
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return


def _path(scope: Scope) -> str:
    """Below the one at which the app is mounted: whether that is part of the path, servers disagree."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if path.startswith(f"{root}/") else path


def _query(scope: Scope) -> Query:
    """Each parameter once. Raises `Refused`."""
    try:
        pairs = parse_qsl(
            bytes(scope.get("query_string", b"")).decode("latin-1"),
            keep_blank_values=True,
            max_num_fields=MOST_PARAMETERS,
        )
    except ValueError:
        raise Refused(f"a URL may have {MOST_PARAMETERS} parameters, this one has more") from None
    query = dict(pairs)
    if len(query) < len(pairs):
        raise Refused("a parameter of the URL is given twice")
    return query


async def send_answer(send: Send, method: str, answer: Answer) -> None:
    headers = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        *_BY_ALL,
        *([(b"allow", b"GET, HEAD")] if answer.status == 405 else []),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answer.body})
