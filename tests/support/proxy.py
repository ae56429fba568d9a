"""A proxy between a client and its server that fails the way networks do, at the very moment a test asks for."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tests.support.resp import PUSH, reply_end

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_CHUNK = 1 << 16
_STEP_SECONDS = 0.02
_SUBSCRIPTION = re.compile(rb"\*\d+\r\n\$\d+\r\n[ps]?(un)?(subscribe|message)\r\n", re.IGNORECASE)
"""A command that subscribes, a confirmation of it, or a message: one does not answer the other one by one."""
_Handler = Callable[[bytes], Awaitable[None]]


@dataclass
class Cut:
    """A cut that was asked for. `done` is set once the connection was cut."""

    substring: bytes
    nth: int
    done: asyncio.Event = field(default_factory=asyncio.Event)
    seen: int = 0

    def falls_on(self, command: bytes) -> bool:
        """Count the reply to `command`; whether it is the one to be cut."""
        if self.done.is_set() or self.substring not in command:
            return False
        self.seen += 1
        return self.seen == self.nth


@dataclass
class Hold:
    """The `nth` command that is kept back, with all that follows on its connection; or the reply to it, when the
    server has done it. `reached` is set once it came. `only`: those behind it get through on other connections.
    """

    substring: bytes
    nth: int = 1
    of_reply: bool = False
    only: bool = False
    seen: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def stop(self, command: bytes, *, is_reply: bool = False) -> None:
        if self.of_reply is not is_reply or self.substring not in command:
            return
        self.seen += 1
        if self.seen < self.nth or (self.only and self.seen > self.nth):
            return
        if not self.released.is_set():
            self.reached.set()
            await self.released.wait()


class CuttingProxy:
    """Listens on loopback and passes everything on to the server, until told otherwise.

    ::

        async with CuttingProxy(server.url) as proxy:
            queue = TaskQueue(proxy.url)
            cut = proxy.cut_reply("FCALL", nth=3)

    Args:
        target: URL of the server, ``redis://`` or ``unix://``.
    """

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._cuts: list[Cut] = []
        self._holds: list[Hold] = []
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._link_speed: float | None = None
        self._port = 0
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where clients connect, with the user, password and database of the target."""
        login, at, _ = self._target.netloc.rpartition("@")
        database = self._target.path if self._target.scheme != "unix" else ""
        return f"redis://{login}{at}127.0.0.1:{self._port}{database}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._links)

    def cut_reply(self, substring: str | bytes, nth: int = 1) -> Cut:
        """Cut the connection in the middle of the `nth` reply that answers a command with `substring` in it.

        The server has then done what it was told, and the client cannot know.
        """
        cut = Cut(substring.encode() if isinstance(substring, str) else substring, nth)
        self._cuts.append(cut)
        return cut

    def hold(self, substring: str | bytes, nth: int = 1, *, of_reply: bool = False, only: bool = False) -> Hold:
        """Keep commands with `substring` in them back, from the `nth` on, until ``hold.released.set()``.

        With `of_reply` the commands get through, and what they are answered is kept back. With `only` it is the `nth`
        one alone; it gets through when it is released, also where its caller gave it up and closed the connection.
        """
        hold = Hold(substring.encode() if isinstance(substring, str) else substring, nth, of_reply, only)
        self._holds.append(hold)
        return hold

    def cut_all(self) -> None:
        """Cut every connection that is open."""
        for link in list(self._links):
            link.cut()

    async def refuse(self) -> None:
        """Cut every connection and refuse new ones, as if nothing listened there, until `accept`."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self.cut_all()

    async def accept(self) -> None:
        """Listen again, on the same port."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
            self._port = self._listener.sockets[0].getsockname()[1]

    def pause(self) -> None:
        """Let nothing pass in either direction until `resume`; connections stay open."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def silence(self) -> None:
        """Lose all that comes on the connections that are open, in either direction, for ever; new ones work."""
        for link in self._links:
            link.is_silent = True

    def slow_down(self, bytes_per_second: float) -> None:
        """From now on, replies come no faster than that on any connection."""
        self._link_speed = bytes_per_second

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.refuse()
        self.resume()
        await asyncio.gather(*self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._pass_on(reader, writer)
        finally:
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, server_writer, self._cuts, self._holds, lambda: self._link_speed)
        self._links.add(link)
        if self._listener is None:
            link.cut()  # came in just before `refuse`
        try:
            await self._run(link, reader, server_reader)
        finally:
            self._links.discard(link)
            link.cut()

    async def _run(self, link: _Link, client: asyncio.StreamReader, server: asyncio.StreamReader) -> None:
        """Until either side ends; the other one is told by `cut`."""
        there = asyncio.create_task(self._pump(client, link.to_server))
        back = asyncio.create_task(self._pump(server, link.to_client))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)

    async def _pump(self, source: asyncio.StreamReader, handle: _Handler) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(_CHUNK):
                await self._flowing.wait()
                await handle(data)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.scheme == "unix":
            return await asyncio.open_unix_connection(unquote(self._target.path))
        return await asyncio.open_connection(self._target.hostname, self._target.port or 6379)


class _Link:
    """One connection: which command the next reply answers, and what of either has arrived so far."""

    def __init__(
        self,
        client: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
        cuts: list[Cut],
        holds: list[Hold],
        speed: Callable[[], float | None],
    ) -> None:
        self.is_silent = False
        self._speed = speed
        self._client = client
        self._server = server
        self._cuts = cuts
        self._holds = holds
        self._command = bytearray()
        self._reply = bytearray()
        self._unanswered: deque[bytes] = deque()

    def cut(self) -> None:
        self._client.transport.abort()
        self._server.transport.abort()

    async def to_server(self, data: bytes) -> None:
        if self.is_silent:
            return
        self._command += data
        while (end := reply_end(self._command)) is not None:
            command = bytes(self._command[:end])
            del self._command[:end]
            for hold in self._holds:
                await hold.stop(command)
            if not _SUBSCRIPTION.match(command):
                self._unanswered.append(command)
        self._server.write(data)
        await self._server.drain()

    async def to_client(self, data: bytes) -> None:
        """Replies are passed on whole, so that a cut can fall into the middle of one."""
        if self.is_silent:
            return
        self._reply += data
        while (end := reply_end(self._reply)) is not None:
            reply = bytes(self._reply[:end])
            del self._reply[:end]
            command = self._answered_by(reply)
            if cut := self._cut_on(command):
                await self._cut_within(reply, cut)
                return
            for hold in self._holds:
                await hold.stop(command, is_reply=True)
            await self._pass_back(reply)
        await self._client.drain()

    async def _pass_back(self, reply: bytes) -> None:
        speed = self._speed()
        step = len(reply) if speed is None else max(1, int(speed * _STEP_SECONDS))
        for at in range(0, len(reply), step):
            if speed is not None:
                await asyncio.sleep(_STEP_SECONDS)
            self._client.write(reply[at : at + step])

    def _answered_by(self, reply: bytes) -> bytes:
        """Empty where it is a message."""
        if reply.startswith(PUSH) or _SUBSCRIPTION.match(reply) or not self._unanswered:
            return b""
        return self._unanswered.popleft()

    def _cut_on(self, command: bytes) -> Cut | None:
        return next((cut for cut in self._cuts if cut.falls_on(command)), None)

    async def _cut_within(self, reply: bytes, cut: Cut) -> None:
        self._client.write(reply[: len(reply) // 2])
        await self._client.drain()
        cut.done.set()
        # Ends the pump, and with it the link.
        raise ConnectionResetError("cut")
