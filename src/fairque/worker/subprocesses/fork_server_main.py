"""What runs in the fork server of a worker: `main`, until the worker is gone.

It has imported fairque once, so that a subprocess costs a fork and the imports of the user, and nothing of a user ever
runs in it. As their parent it knows how each subprocess ended, and which process groups are theirs.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import traceback
from typing import Any

from fairque.worker.subprocesses import subprocess_main
from fairque.worker.subprocesses.fork_server import HELD_SIGNALS, kill_group
from fairque.worker.subprocesses.frames import REQUEST, Ended, Kind, Request, Started, frame

__all__ = ["main"]


def main(descriptor: int) -> None:
    """Serve the worker; in each subprocess, run its bodies."""
    server = _Server(socket.socket(fileno=descriptor))
    _leave_signals_to_the_worker()
    gc.freeze()  # a collection in a subprocess would copy all the memory that it shares with the others
    subprocess_main.main(server.serve())


class _Server:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._pids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def serve(self) -> socket.socket:
        """It returns in each subprocess, with its socket to the worker. The server ends when the worker is gone."""
        while True:
            ready, _, _ = select.select([self._channel, self._woken], [], [])
            if self._woken in ready:
                self._woken.recv(4096)
                self._reap()
            if self._channel not in ready:
                continue
            request, descriptors = self._receive()
            if request is None:
                for number in self._pids:
                    self._kill(number)
                os._exit(0)
            kind, number = REQUEST.unpack(request)
            if Request(kind) is Request.KILL:
                self._kill(number)
            elif (theirs := self._fork(number, descriptors[0])) is not None:
                return theirs

    def _receive(self) -> tuple[bytes | None, list[int]]:
        try:
            request, descriptors, _, _ = socket.recv_fds(self._channel, REQUEST.size, 1)
        except OSError:
            return None, []
        return request or None, descriptors

    def _fork(self, number: int, descriptor: int) -> socket.socket | None:
        """In the subprocess: its socket."""
        theirs = socket.socket(fileno=descriptor)
        theirs.set_inheritable(False)
        try:
            pid = os.fork()
        except OSError:
            theirs.sendall(frame(Kind.ERROR, traceback.format_exc().encode(errors="replace")))
            theirs.close()
            self._tell(Kind.ENDED, Ended(number, 1))
            return None
        if pid:
            theirs.close()
            self._pids[number], self._numbers[pid] = pid, number
            self._tell(Kind.STARTED, Started(number, pid))
            return None
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in (self._channel, self._woken, self._wake):
            each.close()
        return theirs

    def _reap(self) -> None:
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            number = self._numbers.pop(pid)
            del self._pids[number]
            kill_group(pid)
            self._tell(Kind.ENDED, Ended(number, os.waitstatus_to_exitcode(status)))

    def _kill(self, number: int) -> None:
        if (pid := self._pids.get(number)) is not None:
            os.kill(pid, signal.SIGKILL)  # it may not have a group of its own yet
            kill_group(pid)

    def _tell(self, kind: Kind, body: Any) -> None:
        with contextlib.suppress(OSError):  # the worker is gone, as is about to be read
            self._channel.sendall(frame(kind, body))


def _leave_signals_to_the_worker() -> None:
    """Handlers that do nothing, for what a body starts goes back to the default then; ignoring is inherited."""
    for signum in HELD_SIGNALS:
        signal.signal(signum, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
