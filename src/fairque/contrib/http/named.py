"""`Named`: an app that is asked under its own names only."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet

from fairque.config.hosts import hostname_in, is_address
from fairque.contrib.http.asgi import ASGI, Receive, Scope, Send, send_answer, sentence

__all__ = ["Named"]

logger = logging.getLogger("fairque.http")
_LONGEST_SHOWN = 100


class Named:
    """Keeps out a page that a browser has of a stranger whose name leads to this machine: it asks under that name.

    No such page is asked for by an address, and each browser says whom it asks. So who names an address or nobody is
    let in, as probes are.

    Args:
        app: Is asked for what is let in.
        names: In lower case.
    """

    def __init__(self, app: ASGI, names: AbstractSet[str]) -> None:
        self._app = app
        self._names = names
        self._has_warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or all(map(self._knows, _hosts_in(scope))):
            await self._app(scope, receive, send)
        else:
            host = repr(", ".join(_hosts_in(scope))[:_LONGEST_SHOWN])
            self._warn(host)
            await send_answer(send, scope["method"], sentence(400, f"this is not served under the name {host}"))

    def _knows(self, header: str) -> bool:
        host = hostname_in(header)
        return host in self._names or is_address(host)

    def _warn(self, host: str) -> None:
        """Once: whoever asks must not fill the log."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning("refused who asks under the name %s, and others without a word: see --http-host", host)


def _hosts_in(scope: Scope) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
