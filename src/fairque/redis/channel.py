"""`Channel`: who hears the messages of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Callback", "Channel"]

Callback = Callable[[bytes | None], None]
"""Called for each message, and with None when messages may have been missed. A plain function that must not block."""


class Channel:
    """Who waits for its messages, and who for the certainty that they arrive."""

    __slots__ = ("callbacks", "is_confirmed", "since", "waiters", "was_confirmed", "whose")

    def __init__(self, whose: str) -> None:
        self.whose = whose
        self.callbacks: list[Callback] = []
        self.is_confirmed = self.was_confirmed = False
        self.since = 0.0  # when the first of the waiters came, on the clock of the listener
        self.waiters: list[asyncio.Future[None]] = []

    def wait(self, now: float) -> asyncio.Future[None]:
        if not self.waiters:
            self.since = now
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(confirmed)
        return confirmed

    def confirm(self) -> None:
        """The second time it is after a reconnect or a move: up to this moment messages may have been missed."""
        if self.was_confirmed:
            self.tell(None)
        self.is_confirmed = self.was_confirmed = True
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

    def refuse(self, error: Exception) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self.waiters.clear()

    def tell(self, payload: bytes | None) -> None:
        for callback in tuple(self.callbacks):
            callback(payload)
