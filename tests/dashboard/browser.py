"""A real browser, and a dashboard that it can reach."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

__all__ = ["CHROMIUM", "chromium", "served", "watched"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for the tests."""
        yield


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """The address at which an app is served, in this loop."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The one that is installed."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def watched(browser: Browser, **options: Any) -> AsyncIterator[tuple[BrowserContext, Page, list[str]]]:
    """A page whose complaints are listed: errors, warnings, dialogs, and whatever it asked of other hosts."""
    context = await browser.new_context(**options)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda each: complaints.append(each.url) if "//127.0.0.1:" not in each.url else None)

    async def on_dialog(dialog: Any) -> None:
        complaints.append(f"dialog {dialog.message}")
        await dialog.dismiss()

    page.on("dialog", on_dialog)
    try:
        yield context, page, complaints
    finally:
        await context.close()
