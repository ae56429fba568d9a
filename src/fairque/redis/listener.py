"""Messages from the server, on which many wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from fairque.errors import FairqueError
from fairque.redis.channel import Callback, Channel
from fairque.redis.connector import Connector
from fairque.redis.node_listener import LOOKS, Node, NodeListener, Subscriptions, tag_of
from fairque.redis.url import Address

__all__ = ["Listener"]

logger = logging.getLogger("fairque.listener")


class Listener:
    """Calls back for each message of a channel, and with None after a reconnect, when messages may have been missed.

    There is one connection to each node that has something to tell. It is made for the first channel there, and anew
    when the server does not answer on it. A channel is heard at the node of its slot, and followed when that moves:
    nobody else tells of it.

    Args:
        connector: Of the queue.
        connector_of: Tells the connector that leads to a channel; None: that of the queue leads to all.
    """

    def __init__(self, connector: Connector, connector_of: Callable[[str], Connector] | None = None) -> None:
        self._connector = connector
        self._connector_of = connector_of or (lambda _: connector)
        self._begin()
        connector.home.add(self)

    def _begin(self) -> None:
        self._by_tag: dict[bytes, Subscriptions] = {}
        self._nodes: dict[Address | None, NodeListener] = {}
        self._nowhere = _Nowhere(self._connector.timeout, self._place)
        self._clock = self._looked = 0.0  # a clock that stands still while the loop does, and when that was read
        self._watch: asyncio.TimerHandle | None = None

    async def subscribe(self, channel: str, callback: Callback, whose: str = "") -> None:
        """Returns when messages are certain to arrive. Raises `QueueUnavailable` when the server does not confirm.

        Args:
            channel: Its name.
            callback: Told of each message.
            whose: The user for whom it is. Where there are many, it is the turn of each of them by and by.
        """
        await self._connector.ensure_open()
        name = channel.encode()
        some = self._by_tag.get(tag_of(name)) or self._join(name)
        joined = some.channels.get(name)
        if joined is None:
            joined = some.channels[name] = Channel(whose)
            some.node.send_soon(some, name, whose)
        joined.callbacks.append(callback)
        if joined.is_confirmed:
            return
        some.node.want()
        if self._watch is None:
            self._look_again()
        confirmed = joined.wait(self._now())
        try:
            await confirmed
        except BaseException:
            await self.unsubscribe(channel, callback)
            raise

    async def unsubscribe(self, channel: str, callback: Callback) -> None:
        name = channel.encode()
        some = self._by_tag.get(tag_of(name))
        left = some.channels.get(name) if some is not None else None
        if some is None or left is None or callback not in left.callbacks:
            return
        left.callbacks.remove(callback)
        if not left.callbacks:
            del some.channels[name]
            some.node.send_soon(some, name, left.whose)

    async def close(self) -> None:
        ending = [task for node in (self._nowhere, *self._nodes.values()) if (task := node.stop()) is not None]
        if self._watch is not None:
            self._watch.cancel()
        channels = [channel for some in self._by_tag.values() for channel in some.channels.values()]
        self._begin()
        if ending:
            await asyncio.wait(ending)
        for channel in channels:  # nobody waits for messages that will not come
            channel.refuse(self._connector.unreachable(ConnectionError("the queue is closed")))
            channel.tell(None)

    def abandon(self) -> None:
        for node in self._nodes.values():
            node.abandon()
        self._begin()

    # Where channels are

    def _subscriptions_of(self, name: bytes) -> Subscriptions | None:
        return self._by_tag.get(tag_of(name))

    def _join(self, name: bytes) -> Subscriptions:
        """The first channel under this hash tag."""
        connector = self._connector_of(name.decode())
        some = self._by_tag[tag_of(name)] = Subscriptions(connector, name, self._nowhere)
        connector.on_move = partial(self._follow, connector)
        self._place(some)
        return some

    def _place(self, some: Subscriptions) -> None:
        """Have them heard where they are by all that is known."""
        some.node.release(some)
        node = self._nowhere if some.connector.is_lost else self._node_at(some.connector.address)
        node.admit(some)

    def _node_at(self, address: Address | None) -> Node:
        node = self._nodes.get(address)
        if node is None:
            timeout = self._connector.timeout
            node = NodeListener(address, timeout, self._subscriptions_of, self._place, self._now)
            self._nodes[address] = node
        return node

    def _follow(self, connector: Connector) -> None:
        """Others were told where it leads by now."""
        if connector.is_lost:
            return
        for some in self._by_tag.values():
            is_there = isinstance(some.node, NodeListener) and some.node.address == connector.address
            if some.connector is connector and not is_there:
                self._place(some)

    # Who waits for a confirmation

    def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        self._looked = loop.time()
        self._watch = loop.call_later(self._connector.timeout / LOOKS, self._look)

    def _now(self) -> float:
        """Where the loop stood still between two looks, only the time of one counts: nothing could be heard."""
        since = asyncio.get_running_loop().time() - self._looked
        return self._clock + min(since, self._connector.timeout / LOOKS)

    def _look(self) -> None:
        """One timer for all who wait for a confirmation. While others at that node get theirs, to wait is no outage."""
        self._watch, self._clock = None, self._now()
        before = self._clock - self._connector.timeout
        is_awaited = False
        for some in self._by_tag.values():
            waiting = [channel for channel in some.channels.values() if channel.waiters]
            is_awaited = is_awaited or bool(waiting)
            if some.node.heard > before:
                continue
            for channel in waiting:
                if channel.since <= before:
                    error = TimeoutError("Timeout: no confirmation of a subscription")
                    channel.refuse(self._connector.unreachable(error))
        if is_awaited:
            self._look_again()


class _Nowhere(Node):
    """Finds the nodes of subscriptions of which that is not known.

    Args:
        timeout: Seconds for an answer.
        place: Called with those that are found.
    """

    def __init__(self, timeout: float, place: Callable[[Subscriptions], None]) -> None:
        super().__init__("fairque-listener-search", timeout)
        self._place = place

    def admit(self, some: Subscriptions) -> None:
        """Those that were sent to and fro wait a little."""
        some.look_at = time.monotonic() + (some.backoff.next() if some.is_restless else 0.0)
        super().admit(some)

    async def _run(self) -> None:
        is_told = False
        while self._there:
            some = min(self._there, key=lambda each: each.look_at)
            if (left := some.look_at - time.monotonic()) > 0:
                await self._pause(left)
                some.look_at = 0.0  # its time has come, or somebody new waits for it
                continue
            try:
                await some.connector.find()
            except FairqueError as exc:
                if not is_told:
                    logger.warning("cannot find out where messages come from, trying again: %s", exc)
                is_told = True
                self._put_off(some)
            else:
                is_told = False
                if not some.is_restless:
                    some.backoff.reset()
                if some.node is self:
                    self._place(some)

    def _put_off(self, failed: Subscriptions) -> None:
        """The others would hardly be found either, but one that is in no slot must not keep them for ever."""
        now = time.monotonic()
        for some in self._there:
            some.look_at = max(some.look_at, now + self._least_pause)
        failed.look_at = now + max(self._least_pause, failed.backoff.next())
