"""What a command answers by HTTP beside its work. It is imported where that is wanted: uvicorn may be missing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fairque.cli.errors import FAILED, CommandError
from fairque.errors import ConfigError, InvalidInput

if TYPE_CHECKING:
    from fairque.contrib.http.asgi import App

__all__ = ["answering", "check_can_answer"]


def check_can_answer() -> None:
    """Raises `CommandError` where there is no server for it."""
    try:
        import fairque.contrib.http.server  # noqa: F401
    except ImportError as error:
        raise CommandError("HTTP is answered by uvicorn, which is missing here", str(error)) from None


@contextlib.asynccontextmanager
async def answering(app: App, address: str) -> AsyncIterator[None]:
    """Serve the app from before the block to its end. Raises `CommandError` where nothing can listen there."""
    check_can_answer()
    from fairque.contrib.http.server import serving

    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(serving(app, address))
        except ConfigError as error:
            raise CommandError(str(error), "name another port, or 0 for a free one", FAILED) from None
        except InvalidInput as error:
            raise CommandError(str(error), "such as 127.0.0.1:8080, or 0.0.0.0:8080 for other machines") from None
        yield
