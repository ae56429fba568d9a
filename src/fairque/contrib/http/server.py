"""`serving`: an ASGI app at an address of its own, beside whatever else the event loop does. By uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator

from fairque.config.endpoint import Endpoint, parse_endpoint
from fairque.config.hosts import LOOPBACK, checked_hosts
from fairque.contrib.http.asgi import App
from fairque.contrib.http.named import Named
from fairque.errors import ConfigError

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ModuleNotFoundError as exc:
    raise ImportError(f"an HTTP server needs {exc.name}: pip install 'fairque[http]'") from exc

__all__ = ["serving"]

logger = logging.getLogger("fairque.http")
MOST_CONNECTIONS = 100
CONNECTION_SECONDS = 10.0
GRACE_SECONDS = 2
MOST_HEADER_BYTES = 1 << 14
_open_here: set[socket.socket] = set()
"""Where this process listens."""


@contextlib.asynccontextmanager
async def serving(app: App, address: str, hosts: Iterable[str] = ()) -> AsyncIterator[str]:
    """Serve the app for as long as the block runs, and tell its URL.

    It leaves signals alone, and logs no requests. At most 100 connections are open: for one more, the oldest is cut.
    Each is for one request, and is cut after ten seconds. At the end, who has asked is answered, for two seconds at
    most.

    Who asks under a name gets an answer under those that it is meant to have: the name in `address`, the one that this
    machine gives itself, ``localhost``, and `hosts`. Else a browser of somebody who reaches it would read metrics for a
    page of a stranger, whose name leads here. By an address anybody may ask, as probes do.

    Args:
        app: What `probes` or `demand` has made.
        address: ``HOST:PORT``, where a port of 0 takes a free one.
        hosts: Other names under which it is asked, without a port, such as that of a Service.

    Raises:
        InvalidInput: The address, or a name, is none.
        ConfigError: Nothing can listen there, as where the port is in use. Nothing was begun.
    """
    endpoint = parse_endpoint(address)
    own = (endpoint.host.lower(), socket.gethostname().lower())
    named = Named(app, checked_hosts(hosts) | {*LOOPBACK, *own})
    with _listening(endpoint) as listener:
        server = _Server(_config(named))
        running = asyncio.create_task(server.serve(sockets=[listener]), name="fairque-http")
        running.add_done_callback(_on_end)
        url = f"http://{endpoint._replace(port=listener.getsockname()[1])}"
        logger.info("answers at %s", url)
        try:
            yield url
        finally:
            server.should_exit = True
            await asyncio.wait([running])


class _Server(uvicorn.Server):
    """Of a process that takes its signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(H11Protocol):
    """Bounded in number and time: whoever opens connections and says nothing keeps no probe from its answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline = self.loop.call_later(CONNECTION_SECONDS, transport.abort)
        if len(self.connections) > MOST_CONNECTIONS:
            oldest = min(self.connections, key=lambda each: each.deadline.when())  # type: ignore[union-attr]
            self.connections.discard(oldest)  # it is gone when the loop comes to it
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.deadline.cancel()
        super().connection_lost(exc)


def _config(app: Named) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",  # what is no HTTP would be a warning, for whoever sends it
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=[("connection", "close")],
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


@contextlib.contextmanager
def _listening(endpoint: Endpoint) -> Iterator[socket.socket]:
    """Bound before anything else is begun: who cannot be probed is not to serve."""
    try:
        found = socket.getaddrinfo(*endpoint, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name may have several, such as localhost: who asks tries the older kind at the latest
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise _unusable(endpoint, exc) from None
    with listener, _cut_in_forks(listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind(address)
            listener.listen(MOST_CONNECTIONS)
        except OSError as exc:
            raise _unusable(endpoint, exc) from None
        yield listener


@contextlib.contextmanager
def _cut_in_forks(listener: socket.socket) -> Iterator[None]:
    """What a task forks off may outlive this process, and would keep the port."""
    _open_here.add(listener)
    try:
        yield
    finally:
        _open_here.discard(listener)


def _close_in_fork() -> None:
    while _open_here:
        os.close(_open_here.pop().detach())  # for `close`, a loop would have to let go of it first


os.register_at_fork(after_in_child=_close_in_fork)


def _unusable(endpoint: Endpoint, error: OSError) -> ConfigError:
    return ConfigError(f"nothing can listen at {endpoint}: {error.strerror or error}")


def _on_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("the HTTP server died", exc_info=error)
