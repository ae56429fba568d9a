"""`EventStream`: what changes on an open page, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from fairque.contrib.dashboard.reader import Crowded, Reader, Seat, Topic
from fairque.contrib.dashboard.viewer import Viewer

__all__ = ["EventStream"]

SILENT_SECONDS = 15.0
STUCK_SECONDS = 30.0
ASKED_AGAIN_SECONDS = 60.0
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStream(Response):
    """``parts`` events with the parts that changed, by their ids; ``end`` where the viewer may see them no longer.

    Args:
        reader: Where they come from. Where it is crowded, the answer is 503.
        who: Asks again who looks, each minute.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        reader: Reader,
        topic: Topic,
        viewer: Viewer,
        request: Request,
        who: Callable[[Request], Awaitable[Viewer | Response | None]],
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._reader, self._topic, self._viewer = reader, topic, viewer
        self._request, self._who = request, who

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await Response(headers=_HEADERS, media_type=self.media_type)(scope, receive, send)
            return
        try:
            with self._reader.place(self._viewer):
                await self._serve(receive, send)
        except Crowded:
            await PlainTextResponse("too many pages are open\n", 503)(scope, receive, send)

    async def _serve(self, receive: Receive, send: Send) -> None:
        """Until the client is gone. One that takes nothing sees no more, but has its place for as long as it has its
        connection: no server closes one with something left to send, and its places are all that bounds these."""
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if _is_stuck(writing):
                await asyncio.wait([leaving])
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.wait((writing, leaving))
        error = None if writing.cancelled() else writing.exception()
        if error is not None and not isinstance(error, (OSError, _Stuck)):
            raise error

    async def _write(self, send: Send) -> None:
        with self._reader.seat(self._topic, self._viewer) as seat:
            await self._tell(seat, send)

    async def _tell(self, seat: Seat, send: Send) -> None:
        loop = asyncio.get_running_loop()
        await _sent(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        asked = loop.time()
        while True:
            patience = min(SILENT_SECONDS, asked + ASKED_AGAIN_SECONDS - loop.time())
            try:
                async with asyncio.timeout(max(0.0, patience)):
                    event = _event("parts", await seat.next())
            except TimeoutError:
                event = b":\n\n"  # a proxy closes what is silent for long
            if loop.time() - asked >= ASKED_AGAIN_SECONDS:
                if not await self._is_still_let_in():
                    await _sent(send, _body(_event("end", None), more=False))
                    return
                asked = loop.time()
            await _sent(send, _body(event))

    async def _is_still_let_in(self) -> bool:
        try:
            who = await self._who(self._request)
        except HTTPException:  # one way to refuse, but no answer can follow this one
            return False
        return isinstance(who, Viewer) and who.rights == self._viewer.rights


class _Stuck(Exception):
    """A client takes nothing."""


def _is_stuck(writing: asyncio.Task[None]) -> bool:
    return writing.done() and not writing.cancelled() and isinstance(writing.exception(), _Stuck)


async def _sent(send: Send, message: Message) -> None:
    try:
        async with asyncio.timeout(STUCK_SECONDS):
            await send(message)
    except TimeoutError:
        raise _Stuck from None


def _body(event: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": event, "more_body": more}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(kind: str, data: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
