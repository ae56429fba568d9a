"""A dashboard over the queue of the test, asked without a browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from fairque import EVERYBODY, TaskQueue
from fairque.contrib.dashboard import Viewer, dashboard

OPERATOR = Viewer("ops", users=EVERYBODY, acts=True, payloads=True)
Ask = Callable[..., Awaitable["Browser"]]


class Browser:
    """Asks as a browser would: with cookies, and an origin for what it sends."""

    def __init__(self, client: httpx.AsyncClient, base: str) -> None:
        self.client = client
        self._base = base

    async def get(self, path: str, **params: Any) -> httpx.Response:
        return await self.client.get(self._base + path, params=params or None)

    async def post(self, path: str, *, origin: str | None = "http://localhost", **form: str) -> httpx.Response:
        headers = {} if origin is None else {"origin": origin}
        return await self.client.post(self._base + path, data=form, headers=headers)

    async def csrf(self) -> str:
        """What forms have, once a page was shown."""
        await self.get("/nothing")
        return self.client.cookies["fairque_csrf"]

    async def act(self, act: str, **form: str) -> httpx.Response:
        return await self.post(f"/act/{act}", csrf=await self.csrf(), **form)


def texts(page: str) -> str:
    """What a person reads of a page."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


@pytest.fixture
async def browse(queue: TaskQueue) -> AsyncIterator[Ask]:
    """``await browse(viewer)``: somebody who looks at the dashboard of the queue."""
    async with AsyncExitStack() as stack:

        async def open_one(viewer: Viewer | None = OPERATOR, *, under: str = "", **options: Any) -> Browser:
            app = dashboard(queue, authorize=options.pop("authorize", lambda _: viewer), **options)
            transport = httpx.ASGITransport(app, root_path=under, raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
            return Browser(await stack.enter_async_context(client), under)

        yield open_one
