"""`Home`: the process and the event loop in which a queue is used.

Sockets, locks and futures belong to one of each. After a fork two processes have the same socket, and whoever reads
first has the replies of the other one; a future of one loop is never resolved in another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from collections.abc import Callable
from typing import Protocol

from fairque.errors import ConfigError

__all__ = ["Home", "cut_in_forks"]


class Resident(Protocol):
    """Holds something that belongs to one process and one loop."""

    def abandon(self) -> None:
        """Begin anew: what there was belongs to another process, or to a loop that does not run any more."""


class Socket(Protocol):
    """What has a socket of this process."""

    def fileno(self) -> int:
        """-1 when it is closed."""


class Home:
    """Everything of one queue that is bound to where it runs is a resident of its home."""

    def __init__(self) -> None:
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._residents: weakref.WeakSet[Resident] = weakref.WeakSet()

    def add(self, resident: Resident) -> None:
        self._residents.add(resident)

    @property
    def is_inherited(self) -> bool:
        """It was another process that used the queue last."""
        return self._loop is not None and self._pid != os.getpid()

    def enter(self) -> None:
        """To be called before anything is sent or awaited.

        Raises:
            ConfigError: Another loop of this process uses the queue, and runs.
        """
        if self._loop is not asyncio.get_running_loop() or self._pid != os.getpid():
            self._move()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """On the loop; also from a thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it was closed
                self._loop.call_soon_threadsafe(callback)

    def leave(self) -> None:
        """It is closed: any loop may open it again."""
        self._loop = None

    def _move(self) -> None:
        before = self._loop
        if before is not None and not self.is_inherited and before.is_running():
            raise ConfigError(
                "the queue is open on another event loop that is running: make a TaskQueue for each loop, or call "
                "this one there, by asyncio.run_coroutine_threadsafe(...); for blocking code there is fairque.sync"
            )
        if before is not None:
            for resident in list(self._residents):
                resident.abandon()
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()


_sockets: weakref.WeakSet[Socket] = weakref.WeakSet()


def cut_in_forks(socket: Socket) -> None:
    """In each process that this one forks from now on, it is at its end at once: nothing is read from it or written.

    To close it there would not do: an event loop that is inherited would take it out of the selector, which both share.
    """
    _sockets.add(socket)


def _cut_all() -> None:
    end, other = socket.socketpair()
    other.close()
    with end:
        for each in list(_sockets):
            with contextlib.suppress(OSError):
                if (descriptor := each.fileno()) >= 0:
                    os.dup2(end.fileno(), descriptor, inheritable=False)
    _sockets.clear()


os.register_at_fork(after_in_child=_cut_all)
