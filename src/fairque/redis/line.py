"""`Line`: a connection that carries messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from fairque.redis.connection import Connection
from fairque.redis.requester import pack
from fairque.redis.url import Address

__all__ = ["AT_ONCE", "Asked", "Hearer", "Line"]

AT_ONCE = 500
"""Channels of one command: the server does nothing else meanwhile."""
LONGEST_SILENCE = 60.0
"""Seconds after which a server is asked whether it is there, on a connection that has been idle for long."""
_LEAVE = "SUNSUBSCRIBE"
_PING = "PING"


class Asked(NamedTuple):
    """What the server has not answered: one confirmation for each channel, or one error for all of them.

    Attributes:
        verb: SSUBSCRIBE, SUNSUBSCRIBE or PING.
        names: Of the channels that were not confirmed. All are in one slot.
    """

    verb: str
    names: set[bytes]

    @property
    def is_farewell(self) -> bool:
        return self.verb == _LEAVE


class Hearer(Protocol):
    """To whom a line hands on what it hears."""

    def told(self, name: bytes, payload: bytes) -> None:
        """A message of this channel."""

    def joined(self, name: bytes) -> None:
        """From now on messages of this channel arrive."""

    def dropped(self, name: bytes) -> None:
        """They arrive no more, though nobody has left it: another node has its slot."""

    def answered(self) -> None:
        """Less is owed than before."""

    def refused(self, asked: Asked, error: ResponseError) -> None:
        """Nothing of this was done."""

    def is_awaited(self) -> bool:
        """Whether somebody waits for what becomes of a task."""


class Line(Connection):
    """Hands on what comes unasked. When nothing came for `timeout`, it asks the server whether it is still there, and
    gives it as long to answer. While nothing but answers comes, and no caller waits for anything, it asks ever more
    rarely: a thousand idle workers would keep a node busy with that. Of a host that is gone the system tells as well.

    Args:
        connection: See `Connection`.
        address: See `Connection`.
        timeout: See above.
        hearer: See `Hearer`.

    Attributes:
        over: Set when it is of no use any more.
        was_heard: Whether the server ever answered on it.
        asked: How many channels the server has to confirm.
    """

    def __init__(self, connection: AbstractConnection, address: Address | None, timeout: float, hearer: Hearer) -> None:
        self.over = asyncio.Event()
        self.was_heard = False
        self.asked = 0
        self._hearer = hearer
        self._owed: deque[Asked] = deque()
        self._since: float | None = None  # when the first answer that is owed was asked for
        self._silence = timeout  # after which it asks
        super().__init__(connection, address, timeout)
        self._moved = self._loop.time()
        self._look_in(timeout)

    def join(self, names: Iterable[bytes]) -> None:
        """Listen to channels of one slot."""
        self._ask("SSUBSCRIBE", names)

    def leave(self, names: Iterable[bytes]) -> None:
        """Listen no longer to channels of one slot."""
        self._ask("SUNSUBSCRIBE", names)

    def _ask(self, verb: str, names: Iterable[bytes]) -> None:
        every, self._silence = list(names), self._timeout
        for at in range(0, len(every), AT_ONCE):
            self._write(verb, every[at : at + AT_ONCE])

    def _write(self, verb: str, names: Sequence[bytes] = ()) -> None:
        if self.error is not None:
            return
        if self._since is None:
            self._since = self._loop.time()
            self._look_in(self._timeout)
        self._owed.append(Asked(verb, set(names)))
        self.asked += len(names)
        self._transport.write(pack((verb, *names)))

    def received(self, reply: object) -> None:
        self._since = None
        if isinstance(reply, ResponseError):
            self._hearer.refused(self._refused(), reply)
            self._hearer.answered()
        elif isinstance(reply, Exception):
            self.fail(reply)
        else:
            self.was_heard = True
            self._heard(reply)

    def _refused(self) -> Asked:
        refused = self._owed.popleft() if self._owed else Asked(_PING, set())
        self.asked -= len(refused.names)
        return refused

    def _heard(self, reply: object) -> None:
        if not isinstance(reply, list) or len(reply) != 3:
            if self._owed and self._owed[0].verb == _PING:
                self._owed.popleft()
                longest = self._timeout if self._hearer.is_awaited() else max(self._timeout, LONGEST_SILENCE)
                self._silence = min(2 * self._silence, longest)
            return
        self._silence = self._timeout
        kind, name, payload = reply
        if kind == b"smessage":
            self._hearer.told(name, payload)
        else:
            self._confirmed(kind, name)

    def _confirmed(self, kind: bytes, name: bytes) -> None:
        """Answers come in the order of the questions; that a slot has left comes between them."""
        has_left, first = kind == b"sunsubscribe", self._owed[0] if self._owed else None
        if first is not None and name in first.names and first.is_farewell == has_left:
            self.asked -= 1
            first.names.discard(name)
            if not first.names:
                self._owed.popleft()
        elif has_left:
            self._hearer.dropped(name)
        if not has_left:
            self._hearer.joined(name)
        self._hearer.answered()

    def owes(self) -> float | None:
        """Silence begins with the question: messages come when they come."""
        now = self._loop.time()
        if self._since is None:
            if (left := self._moved + self._silence - now) > 0:
                return left
            self._write("PING")
        return max(self._moved, self._since or now) + self._timeout - now

    def ended(self) -> None:
        self.over.set()
