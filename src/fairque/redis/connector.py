"""`Connector` knows where the server of a queue is, and connects to it.

redis-py's own timeouts and silent retries are wrong for a queue: here everything is tried once, within one timeout, and
the caller decides about another try.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar
from urllib.parse import unquote

import redis
import redis.asyncio
import redis.exceptions
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.retry import Retry as BlockingRetry

from fairque.checks import Duration, check_seconds
from fairque.embedded.server import EmbeddedServer
from fairque.errors import ConfigError, FairqueError, NotPermitted, QueueUnavailable, StoreError
from fairque.importing import check_not_importing
from fairque.redis.cluster import Cluster, SlotMap
from fairque.redis.frozen import FROZEN, frozen_in
from fairque.redis.home import Home
from fairque.redis.lookup import Lookup, Question
from fairque.redis.places import ELSEWHERE, moved_in
from fairque.redis.reason import in_words
from fairque.redis.sentinel import Sentinels
from fairque.redis.url import Address, ServerName, ServerUrl
from fairque.version import __version__

__all__ = ["DEFAULT_TIMEOUT", "Connector", "NoScript", "not_loadable"]

T = TypeVar("T")
DEFAULT_TIMEOUT = 5.0
DEFAULT_URL = "redis://localhost:6379"
MOST_SECONDS_OF_A_QUESTION = 1.0
_WAYS_OUT = (
    "Three ways out: pass a URL as in TaskQueue('redis://host:6379'), set FAIRQUE_REDIS_URL, "
    "or use TaskQueue('embedded://') (pip install 'fairque[embedded]')."
)
# Errors of a server that is there but cannot work now. Bare ones carry the code as their first word. ASK and TRYAGAIN
# are two of them: of a queue that is moved key by key, half is here and half is there, see `Keys.of_calls`.
_ELSEWHERE = frozenset(("READONLY", "MASTERDOWN", "CLUSTERDOWN"))
"""Errors of a server that is not, or not now, the one to ask."""
_NO_FUNCTION = "Function not found"
"""Of lib/frozen.lua."""
_IN_A_SCRIPT = "ACL failure in script"
_REFUSES_NAMES = "'client"
"""In "no permissions to run the 'client|setname' command" and in "unknown command 'CLIENT'"."""
_UNAVAILABLE = _ELSEWHERE | {"LOADING", "OOM", "MISCONF", "NOREPLICAS", "TRYAGAIN", "ASK", "BUSY", "UNKILLABLE"}


class NoScript(Exception):
    """The server does not know the script: nobody called it there, or its data are gone."""


class Connector:
    """Where the server is. Starts the embedded one when the URL says so.

    Args:
        url: Without one: ``FAIRQUE_REDIS_URL``, else localhost. See `ServerUrl`.
        timeout: Seconds for connecting and for one request.
        client_name: Shown by the server's CLIENT LIST.
        key: A key of the queue, which tells the node of a cluster that has it.
        slots: What is known of that cluster, shared with others who use it.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: Duration = DEFAULT_TIMEOUT,
        client_name: str = "fairque",
        key: str = "",
        slots: SlotMap | None = None,
    ) -> None:
        named = url or os.environ.get("FAIRQUE_REDIS_URL")
        self._is_named = named is not None
        self._url = ServerUrl(named or DEFAULT_URL)
        self.timeout = check_seconds("timeout", timeout, least=0.001)
        self.client_name = client_name
        self._slots = slots if slots is not None else SlotMap()
        self._guides: Sentinels | Cluster | None = None
        if self._url.scheme == "sentinel":
            self._guides = Sentinels(self._url)
        elif self._url.scheme == "cluster":
            self._guides = Cluster(self._url, key, self._slots)
        self._address: Address | None = None
        self._server: EmbeddedServer | None = None
        self._opening: asyncio.Lock | None = None
        self._is_open = False
        self._is_closed = False
        self.on_move: Callable[[], None] | None = None
        """Called, on the loop, when it was found: again, or elsewhere than before."""
        self.home = Home()
        self.home.add(self)

    @property
    def url(self) -> str:
        return self._url.text

    @property
    def scheme(self) -> str:
        return self._url.scheme

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def is_private(self) -> bool:
        """Whether it is on a server that no other process can reach."""
        return self._url.scheme == "embedded" and not self._url.path

    @property
    def slots(self) -> SlotMap:
        """What is known of the cluster, if it is one."""
        return self._slots

    @property
    def safe_url(self) -> str:
        """The URL without its passwords."""
        return self._url.safe

    @property
    def address(self) -> Address | None:
        """Where the queue is by all that is known; None where the URL says it all, or while it is not known."""
        return self._address

    @property
    def is_lost(self) -> bool:
        """Whether it is to be searched for."""
        return self._guides is not None and self._address is None

    @property
    def server(self) -> ServerName | None:
        """Where requests go; None while that is not known: it is searched for, or not started."""
        if self._url.scheme == "unix":
            return self._url.path, None
        if self._url.scheme == "embedded":
            return (unquote(self._server.url.removeprefix("unix://")), None) if self._server is not None else None
        return self._address if self._guides is not None else self._url.hosts[0]

    @property
    def is_closed(self) -> bool:
        """Every call is refused until it is opened again."""
        return self._is_closed

    # Opening and closing

    async def open(self) -> None:
        """Also after `close`."""
        self.admit()
        await self.ensure_open()

    async def ensure_open(self) -> None:
        """Open it unless it is open. Raises `ConfigError` when it was closed, `QueueUnavailable` and `ConfigError`."""
        self.home.enter()
        if self._is_open:
            return
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._is_closed:
                raise ConfigError("the queue is closed")
            if not self._is_open:
                check_not_importing()
                if self._url.scheme == "embedded":
                    await asyncio.to_thread(self._start_server)
                self._check_options()
                self._is_open = True

    def admit(self) -> None:
        """Let the next call open it."""
        self._is_closed = False

    def refuse(self) -> None:
        """No new connections: a call that comes too late must not open the queue again."""
        self._is_closed = True
        self._is_open = False

    async def close(self) -> None:
        self.refuse()
        self._opening = None  # it may be opened again, on another loop
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.stop)
        self.home.leave()

    def abandon(self) -> None:
        """A shared server is joined anew by a forked process. A private one is the parent's, and stays so."""
        self._opening = None
        self._slots.abandon()
        if self._server is not None and self.home.is_inherited:
            self._is_open = not self._server.is_shared

    def _start_server(self) -> None:
        server = EmbeddedServer(self._url.path or None)
        server.start()
        self._server = server

    def _check_options(self) -> None:
        """Values of options, and files that they name, before a server is asked for anything."""
        try:
            connection = self._make(self._server_url(Address("localhost", 0)))
            if isinstance(connection, redis.asyncio.SSLConnection):
                connection.ssl_context.get()
        except (ValueError, TypeError, OSError, redis.exceptions.RedisError) as exc:
            raise ConfigError(f"the URL {self.safe_url} cannot be used: {exc}") from None

    # Connecting

    async def connect(self) -> tuple[AbstractConnection, Address | None]:
        """A connection, and where it leads to. Raises `QueueUnavailable`, `StoreError` and `ConfigError`."""
        address = await self.find()
        return await self.connect_to(address), address

    async def find(self) -> Address | None:
        """Where the server is, see `address`. Raises what `connect` does."""
        await self.ensure_open()
        with self._leaving():
            return await self._find()

    async def connect_to(self, address: Address | None) -> AbstractConnection:
        """A connection to where it was found. Raises what `connect` does."""
        with self._leaving():
            return await self._make_connected(address)

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[None]:
        """Where it goes wrong, the server is searched for again."""
        try:
            yield
        except asyncio.CancelledError:  # it may have taken too long
            self.left(self._address)
            raise
        except (redis.exceptions.RedisError, OSError) as exc:
            self.left(self._address)
            raise self.translate(exc) from exc

    def find_blocking(self) -> Address | None:
        """As `find`, for a thread; it must be open."""
        with self._leaving():
            return self._find_blocking()

    def connect_blocking(self) -> tuple[Any, Address | None]:
        """The same for a thread of its own; it must be open."""
        with self._leaving():
            address = self._find_blocking()
            return self._make_connected_blocking(address), address

    async def _make_connected(self, address: Address | None) -> AbstractConnection:
        connection = self._make(self._server_url(address))
        try:
            await _connect(connection)
        except redis.exceptions.RedisError as exc:
            if not self._gives_up_its_name(exc):
                raise
            return await self._make_connected(address)
        return connection

    def _make_connected_blocking(self, address: Address | None) -> Any:
        connection = self._make_blocking(self._server_url(address))
        try:
            connection.connect()
        except redis.exceptions.RedisError as exc:
            if not self._gives_up_its_name(exc):
                raise
            return self._make_connected_blocking(address)
        return connection

    def _gives_up_its_name(self, error: Exception) -> bool:
        """A server may know no CLIENT, or permit it to nobody: then its lists say less, and all else goes on."""
        is_refused = bool(self.client_name) and _REFUSES_NAMES in str(_answer_in(error)).lower()
        if is_refused:
            self.client_name = ""
        return is_refused

    def left(self, address: Address | None) -> None:
        """The server at this address is gone, or not the right one: it is searched for again."""
        if self._guides is not None and address is not None and address == self._address:
            self._address = None
            self._guides.doubt()

    def is_misplaced(self, error: Exception, address: Address | None) -> bool:
        """Whether an answer says that another server is to be asked: one that it names, or one to be searched for."""
        if isinstance(error, redis.exceptions.MovedError) and isinstance(self._guides, Cluster) and address:
            is_unknown = error.host in ("", "?")  # the node does not know its own name: it is where it was asked
            self._found(Address(address.host if is_unknown else error.host, error.port))
            return True
        if _code(error) in _ELSEWHERE:
            self.left(address)
            return True
        return False

    async def _find(self) -> Address | None:
        if self._guides is None or self._address is not None:
            return self._address
        lookup, answer = self._guides.lookup(), None
        while (question := self._next_question(lookup, answer)) is not None:
            answer = await self._ask(question)
        return self._address

    def _find_blocking(self) -> Address | None:
        if self._guides is None or self._address is not None:
            return self._address
        lookup, answer = self._guides.lookup(), None
        while (question := self._next_question(lookup, answer)) is not None:
            answer = self._ask_blocking(question)
        return self._address

    def _next_question(self, lookup: Lookup, answer: Any) -> Question | None:
        """None: the address is known."""
        try:
            return lookup.send(answer)
        except StopIteration as found:
            self._found(found.value)
            return None

    def _found(self, address: Address) -> None:
        """Perhaps by a thread."""
        before, self._address = self._address, address
        if address != before and self.on_move is not None:
            self.home.call_soon(self.on_move)

    async def _ask(self, question: Question) -> Any:
        connection = self._make(question.url, self._seconds_of_a_question)
        try:
            await _connect(connection)
            await _heeding_cancellation(connection.send_command(*question.command))
            return await connection.read_response(disable_decoding=True)
        except (redis.exceptions.RedisError, OSError) as exc:
            return exc
        finally:
            await connection.disconnect(nowait=True)

    def _ask_blocking(self, question: Question) -> Any:
        connection = self._make_blocking(question.url, self._seconds_of_a_question)
        try:
            connection.connect()
            connection.send_command(*question.command)
            return connection.read_response(disable_decoding=True)
        except (redis.exceptions.RedisError, OSError) as exc:
            return exc
        finally:
            connection.disconnect()

    @property
    def _seconds_of_a_question(self) -> float:
        """Short, so that there is time for another one when somebody does not answer."""
        return min(MOST_SECONDS_OF_A_QUESTION, self.timeout / 4)

    def _server_url(self, address: Address | None) -> str:
        return self._server.url if self._server is not None else self._url.server(address)

    def _make(self, url: str, timeout: float | None = None) -> AbstractConnection:
        retry = Retry(NoBackoff(), 0)
        pool = redis.asyncio.ConnectionPool.from_url(url, retry=retry, **self._options(timeout))
        connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    def _make_blocking(self, url: str, timeout: float | None = None) -> Any:
        retry = BlockingRetry(NoBackoff(), 0)
        return redis.ConnectionPool.from_url(url, retry=retry, **self._options(timeout)).make_connection()

    def _options(self, timeout: float | None) -> dict[str, Any]:
        """Who asks one question only has no name."""
        return {
            "protocol": 2,
            "socket_timeout": timeout or self.timeout,
            "socket_connect_timeout": timeout or self.timeout,
            "client_name": None if timeout else self.client_name,
            "driver_info": None,
        }

    # Errors

    def unreachable(self, error: BaseException) -> QueueUnavailable:
        text = f"Redis at {self.safe_url} is not available: {in_words(error)}"
        return QueueUnavailable(text if self._is_named else f"{text}. {_WAYS_OUT}")

    def translate(self, error: Exception) -> Exception:
        """One of our own for an error of redis-py."""
        error = _answer_in(error)
        if str(error).startswith(_NO_FUNCTION):
            return NoScript()
        if _code(error) == FROZEN:
            return frozen_in(str(error))
        if _code(error) == ELSEWHERE:
            return moved_in(str(error))
        if isinstance(error, redis.exceptions.MovedError) and not self._guides:
            return self._lasting(f"{error.status_code} {error}; it is a node of a cluster, write cluster:// in the URL")
        if isinstance(error, redis.exceptions.AuthenticationError) or _is_untrusted(error):
            return self._lasting(error)
        if _is_denied(error):
            return self._lasting(f"{error}; `fairque acl` prints the rules that it needs", NotPermitted)
        is_answer = isinstance(error, redis.exceptions.ResponseError)
        if not is_answer or _code(error) in _UNAVAILABLE:
            return self.unreachable(error)
        return self._lasting(error)

    def _lasting(self, error: Exception | str, kind: type[StoreError] = StoreError) -> FairqueError:
        return kind(f"Redis at {self.safe_url}: {error}")


def not_loadable(error: NotPermitted) -> NotPermitted:
    """Of a library that the server does not know."""
    where = str(error).partition(": ")[0]
    return NotPermitted(
        f"{where}: it does not know the functions of fairque {__version__}, and its user may not load them: have"
        " `fairque functions load` do it, as a user who may",
        ("+function|load",),
    )


def _code(error: Exception) -> str:
    code: str = getattr(error, "status_code", None) or str(error).partition(" ")[0]
    return code


def _answer_in(error: Exception) -> Exception:
    """Over a socket, redis-py wraps what the server answered."""
    inner = error.__cause__
    return _answer_in(inner) if isinstance(inner, redis.exceptions.RedisError) else error


def _is_denied(error: Exception) -> bool:
    """A command, a key or a channel was, to the connection or within a script."""
    return isinstance(error, redis.exceptions.NoPermissionError) or _IN_A_SCRIPT in str(error)


def _is_untrusted(error: BaseException | None) -> bool:
    """A certificate was refused, somewhere among the causes."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


async def _connect(connection: AbstractConnection) -> None:
    try:
        await _heeding_cancellation(connection.connect())  # type: ignore[no-untyped-call]
        if await connection.can_read():  # more than was asked for, or the end
            raise ConnectionError("the server does not keep to the protocol, or closed the connection")
    except BaseException:
        await connection.disconnect(nowait=True)
        raise


async def _heeding_cancellation(call: Coroutine[Any, Any, T]) -> T:
    """For what redis-py does with `asyncio.wait_for`, which before Python 3.12 may swallow a cancellation."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        return await call
    finally:  # also in place of an error, which would be taken for that of a call that may be tried again
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
