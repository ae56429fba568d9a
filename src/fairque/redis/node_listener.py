"""`NodeListener`: messages from one node, of all partitions that are there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable

from redis.crc import key_slot
from redis.exceptions import MovedError, ResponseError

from fairque.backoff import LONGEST, Backoff
from fairque.errors import FairqueError
from fairque.redis.channel import Channel
from fairque.redis.connector import Connector
from fairque.redis.line import AT_ONCE, Asked, Line
from fairque.redis.url import Address
from fairque.round_robin import RoundRobin

__all__ = ["LOOKS", "Node", "NodeListener", "Subscriptions", "tag_of"]

logger = logging.getLogger("fairque.listener")
MOST_ASKED = 2 * AT_ONCE
"""Channels that a node has not confirmed yet: the next one of another user waits behind so many."""
LOOKS = 10
"""At those who wait for a confirmation, within the timeout."""
LEAST_PAUSE = 0.25
"""Between two tries, however many subscribe."""
MOST_MOVES = 5
"""Of a partition, before one of the nodes has confirmed anything: nodes may disagree."""


def tag_of(name: bytes) -> bytes:
    """What channels of one partition begin with."""
    return name.partition(b"}")[0]


class Subscriptions:
    """Those of one partition: all of its channels have one hash tag, and so are at one node.

    Args:
        connector: Leads to it.
        name: Of one of its channels.
        node: Where they are at first.

    Attributes:
        slot: Of a cluster.
        channels: By name.
        node: Where they are heard, or will be.
        moves: How often a node had it elsewhere, since one has confirmed a channel.
        backoff: Of the tries to find out where that is.
        look_at: When that is tried next.
    """

    def __init__(self, connector: Connector, name: bytes, node: Node) -> None:
        self.connector = connector
        self.slot = key_slot(name)
        self.channels: dict[bytes, Channel] = {}
        self.node = node
        self.moves = 0
        self.backoff = Backoff()
        self.look_at = 0.0

    @property
    def is_restless(self) -> bool:
        """The nodes disagree about where it is."""
        return self.moves > MOST_MOVES

    def are_heard(self) -> None:
        self.moves = 0
        self.backoff.reset()


class Node:
    """Where subscriptions are; of those of which that is not known, nowhere.

    Args:
        name: Of the task that is there for them.
        timeout: Seconds for an answer.

    Attributes:
        heard: When a confirmation came last, on the clock of the listener.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self.heard = -math.inf
        self._name = name
        self._timeout = timeout
        self._there: dict[Subscriptions, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()  # something new is to be heard: try at once

    def admit(self, some: Subscriptions) -> None:
        """They are heard here from now on."""
        some.node = self
        self._there[some] = None
        for channel in some.channels.values():
            channel.is_confirmed = False
        self.want()

    def release(self, some: Subscriptions) -> None:
        """They are heard elsewhere from now on."""
        self._there.pop(some, None)

    def send_soon(self, some: Subscriptions, name: bytes, whose: str) -> None:
        """A channel was joined or left."""

    def want(self) -> None:
        """Be there as soon as may be."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=self._name)
        self._wanted.set()

    async def _run(self) -> None:
        """For as long as there is anything to be heard."""
        raise NotImplementedError

    async def _pause(self, seconds: float) -> None:
        """Between two tries. A new subscriber is kept waiting for a part of it only, and of its time."""
        least = min(seconds, self._least_pause)
        await asyncio.sleep(least)
        self._wanted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds - least):
                await self._wanted.wait()

    @property
    def _least_pause(self) -> float:
        return min(LEAST_PAUSE, self._timeout / LOOKS)

    def stop(self) -> asyncio.Task[None] | None:
        """Returns what ends soon, if anything ran."""
        if self._task is not None:
            self._task.cancel()
        return self._task


class NodeListener(Node):
    """Keeps one connection for messages, and makes it anew when it was lost.

    Args:
        address: Of the node; None: the connectors know.
        timeout: Seconds for an answer.
        subscriptions_of: Tells whose channel a name is.
        replace: Called with subscriptions that this is no longer the node of.
        now: The clock of the listener.
    """

    def __init__(
        self,
        address: Address | None,
        timeout: float,
        subscriptions_of: Callable[[bytes], Subscriptions | None],
        replace: Callable[[Subscriptions], None],
        now: Callable[[], float],
    ) -> None:
        super().__init__("fairque-listener", timeout)
        self.address = address
        self._subscriptions_of = subscriptions_of
        self._replace = replace
        self._now = now
        self._changed: RoundRobin[tuple[Subscriptions, bytes]] = RoundRobin()  # channels that were joined or left
        self._is_changed: set[bytes] = set()  # the same
        self._is_due = False
        self._line: Line | None = None
        self._backoff = Backoff()
        self._has_tried = False

    def admit(self, some: Subscriptions) -> None:
        super().admit(some)
        self._send_all(some)

    def release(self, some: Subscriptions) -> None:
        """A node that has the slot no more has dropped what was heard; one that has it still is to be told."""
        super().release(some)
        if self._line is None:
            return
        if not self._there:
            self._line.close()
        else:
            self._send_all(some)

    def want(self) -> None:
        if self._line is None:
            super().want()

    def abandon(self) -> None:
        if self._line is not None:
            self._line.abandon()

    # What goes out

    def send_soon(self, some: Subscriptions, name: bytes, whose: str) -> None:
        """What many do at once goes out together."""
        if self._line is None:  # `_listen` subscribes to everything when it connects
            return
        if name not in self._is_changed:
            self._is_changed.add(name)
            self._changed.put(whose, (some, name))
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send_all(self, some: Subscriptions) -> None:
        for name, channel in some.channels.items():
            self.send_soon(some, name, channel.whose)

    def _send(self) -> None:
        """As many as may be on their way, by turns of users."""
        self._is_due = False
        line = self._line
        if line is None:
            return
        joined: defaultdict[Subscriptions, list[bytes]] = defaultdict(list)
        left: defaultdict[Subscriptions, list[bytes]] = defaultdict(list)
        for some, name in self._changed.take(MOST_ASKED - line.asked):
            self._is_changed.discard(name)
            is_here = some.node is self and name in some.channels
            (joined if is_here else left)[some].append(name)
        for group in left.values():
            line.leave(group)
        for group in joined.values():
            line.join(group)

    # The connection

    async def _run(self) -> None:
        while self._there:
            if self._has_tried:
                await self._pause(self._backoff.next())
            if not self._there:
                return
            self._has_tried = True
            try:
                if await self._listen() > LONGEST:
                    self._backoff.reset()
            except FairqueError as exc:
                logger.warning("cannot connect for messages, trying again: %s", exc)
                self._leave_all()

    def _leave_all(self) -> None:
        """It may not be the node of any of them any more."""
        for some in list(self._there):
            some.connector.left(self.address)
            self._replace(some)

    async def _listen(self) -> float:
        """Until the connection ends. Returns for how many seconds it was of use: one that is cut at once is none."""
        connector = next(iter(self._there)).connector
        connection = await connector.connect_to(self.address)
        line = self._line = Line(connection, self.address, self._timeout / 2, self)
        try:
            self._begin()
            began = time.monotonic()
            await line.over.wait()
            if self._there:
                logger.warning("lost the connection for messages: %s", line.error)
            if isinstance(line.error, ResponseError):
                self._refuse(connector.translate(line.error))
            return time.monotonic() - began if line.was_heard else 0.0
        finally:
            self._line = None
            for some in self._there:
                for channel in some.channels.values():
                    channel.is_confirmed = False
            line.close()
            await line.wait_closed()

    def _begin(self) -> None:
        """On a new connection nothing is subscribed."""
        self._changed, self._is_changed = RoundRobin(), set()
        for some in self._there:
            self._send_all(some)

    def _refuse(self, error: Exception) -> None:
        """What the server says to a subscription will be no other in a moment."""
        for some in self._there:
            for channel in some.channels.values():
                channel.refuse(error)

    # What the line tells

    def told(self, name: bytes, payload: bytes) -> None:
        some = self._subscriptions_of(name)
        channel = some.channels.get(name) if some is not None else None
        if channel is not None:
            channel.tell(payload)

    def joined(self, name: bytes) -> None:
        self.heard = self._now()
        some = self._subscriptions_of(name)
        if some is None or some.node is not self:
            return
        if some.moves:
            some.are_heard()
        if (channel := some.channels.get(name)) is not None:
            channel.confirm()

    def dropped(self, name: bytes) -> None:
        some = self._subscriptions_of(name)
        if some is not None and some.node is self and name in some.channels:
            some.connector.left(self.address)
            self._move(some)

    def answered(self) -> None:
        if self._changed and self._line is not None and self._line.asked <= MOST_ASKED // 2:
            self._send()

    def is_awaited(self) -> bool:
        return any(channel.whose for some in self._there for channel in some.channels.values())

    def refused(self, asked: Asked, error: ResponseError) -> None:
        """Where another node is to be asked, those move whose slot it is about, and the others stay."""
        meant = self._meant(asked, error)
        moved = [some for some in meant if some.connector.is_misplaced(error, self.address)]
        for some in moved:
            self._move(some)
        have_left = bool(asked.names) and not meant
        if self._line is not None and not (moved or have_left or asked.is_farewell):
            self._line.fail(error)

    def _meant(self, asked: Asked, error: ResponseError) -> list[Subscriptions]:
        """Those that are here of which this was asked; a node that has moved a slot names that."""
        if isinstance(error, MovedError):
            return [some for some in self._there if some.slot == error.slot_id]
        of_asked = {self._subscriptions_of(name) for name in list(asked.names)[:1]}
        return [some for some in of_asked if some is not None and some.node is self]

    def _move(self, some: Subscriptions) -> None:
        some.moves += 1
        if some.is_restless:
            some.connector.left(some.connector.address)
        self._replace(some)
