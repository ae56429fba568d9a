"""What a command answers by HTTP beside its work. It is imported where that is wanted: uvicorn may be missing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

import typer

from fairque.cli.errors import FAILED, CommandError
from fairque.errors import ConfigError, InvalidInput

if TYPE_CHECKING:
    from fairque.contrib.http.asgi import App

__all__ = ["HTTP_HOST", "answering", "check_can_answer"]

HTTP_HOST = typer.Option(metavar="NAME", help="A name under which it is asked by HTTP, as of a Service. Repeatable.")
_HINT = "an address is such as 127.0.0.1:8080, or 0.0.0.0:8080 for other machines; a name has no port"


def check_can_answer() -> None:
    """Raises `CommandError` where there is no server for it."""
    try:
        import fairque.contrib.http.server  # noqa: F401
    except ImportError as error:
        raise CommandError("HTTP is answered by uvicorn, which is missing here", str(error)) from None


@contextlib.asynccontextmanager
async def answering(app: App, address: str, hosts: Iterable[str] = ()) -> AsyncIterator[None]:
    """Serve the app from before the block to its end. Raises `CommandError` where nothing can listen there."""
    check_can_answer()
    from fairque.contrib.http.server import serving

    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(serving(app, address, hosts))
        except ConfigError as error:
            raise CommandError(str(error), "name another port, or 0 for a free one", FAILED) from None
        except InvalidInput as error:
            raise CommandError(str(error), _HINT) from None
        yield
