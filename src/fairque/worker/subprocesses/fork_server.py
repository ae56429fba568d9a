"""`ForkServer`: the process that makes the subprocesses of a worker, and ends them when the worker is gone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from fairque.redis.home import cut_in_forks
from fairque.worker.subprocesses.frames import HEAD, REQUEST, Ended, Kind, Request, Started

__all__ = ["EXIT_SECONDS", "HELD_SIGNALS", "ForkServer", "OnEnd", "kill_group"]

OnEnd: TypeAlias = "Callable[[int | None], None]"
"""Called once on the loop with the exit code of a subprocess; None: its fork server is gone."""
HELD_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What tells a worker to stop may reach all processes of a service: it is the worker's to say what becomes of tasks."""
EXIT_SECONDS = 2.0
_BOOT = """\
import sys
sys.path[:] = {path!r}
try:
    from fairque.worker.subprocesses.fork_server_main import main
except BaseException:
    import socket, traceback
    text = traceback.format_exc().encode(errors="replace")
    socket.socket(fileno={descriptor}).sendall(len(text).to_bytes(4, "big") + b"E" + text)
    sys.exit(1)
main({descriptor})
"""
_RECEIVED_AT_ONCE = 65_536
_started_decoder = msgspec.msgpack.Decoder(Started)
_ended_decoder = msgspec.msgpack.Decoder(Ended)


class ForkServer:
    """Started when it is made, on the running loop. What runs in it: `fork_server_main`.

    It has a session of its own, so that a signal for the group of the worker, or Ctrl-C, does not reach it. It takes
    file descriptors 1 and 2 from the worker. When the worker ends, in whatever way, the kernel closes the channel
    between them, and the server kills all that it has made.

    Attributes:
        ended: It is gone, and its subprocesses are killed.
        start_error: Why it could not start, as a traceback.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel, theirs = socket.socketpair()
        cut_in_forks(self._channel)  # else it does not see the end of this process while a fork of it lives
        try:
            self._popen = _spawn(theirs.fileno())
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()
        self._received = bytearray()
        self._on_end: dict[int, OnEnd] = {}
        self._sent: dict[int, socket.socket] = {}
        self._pids: dict[int, int] = {}
        self._last_number = 0
        self.start_error = ""
        self.ended = asyncio.Event()
        self._loop.add_reader(self._channel, self._read)

    def fork(self, theirs: socket.socket, on_end: OnEnd) -> int:
        """Have a subprocess made. Returns its number. Raises `OSError`.

        Args:
            theirs: Its socket to the worker. It is closed here once it has arrived: earlier, macOS may lose it.
            on_end: See there.
        """
        number = self._last_number = self._last_number + 1
        with contextlib.suppress(ConnectionError):  # the server is gone, as is about to be read
            socket.send_fds(self._channel, [REQUEST.pack(Request.FORK.value, number)], [theirs.fileno()])
        self._on_end[number], self._sent[number] = on_end, theirs
        return number

    def kill(self, number: int) -> None:
        """End a subprocess and the processes that it has started; nothing where it is gone."""
        if number in self._on_end:
            with contextlib.suppress(OSError):
                self._channel.sendall(REQUEST.pack(Request.KILL.value, number))

    async def close(self) -> None:
        """End it, with all of its subprocesses."""
        if not self.ended.is_set():
            with contextlib.suppress(OSError):  # it is gone, as is about to be read
                self._channel.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                await self.ended.wait()
        except TimeoutError:
            self._popen.kill()
            await self.ended.wait()

    def _read(self) -> None:
        try:
            received = self._channel.recv(_RECEIVED_AT_ONCE)
        except OSError:
            received = b""
        if not received:
            self._gone()
            return
        self._received += received
        while (taken := self._next_frame()) is not None:
            self._take(*taken)

    def _next_frame(self) -> tuple[Kind, bytes] | None:
        if len(self._received) < HEAD.size:
            return None
        size, kind = HEAD.unpack_from(self._received)
        end = HEAD.size + size
        if len(self._received) < end:
            return None
        body = bytes(self._received[HEAD.size : end])
        del self._received[:end]
        return Kind(kind), body

    def _take(self, kind: Kind, body: bytes) -> None:
        match kind:
            case Kind.ERROR:
                self.start_error = body.decode(errors="replace")
            case Kind.STARTED:
                started = _started_decoder.decode(body)
                self._pids[started.number] = started.pid
                self._sent.pop(started.number).close()
            case Kind.ENDED:
                ended = _ended_decoder.decode(body)
                if self._pids.pop(ended.number, None) is None:  # it was never started
                    self._sent.pop(ended.number).close()
                self._on_end.pop(ended.number)(ended.code)

    def _gone(self) -> None:
        self._loop.remove_reader(self._channel)
        self._channel.close()
        self._popen.wait()  # its channel is closed, as it has just ended
        self.ended.set()
        for pid in self._pids.values():  # there are some only where it was killed
            kill_group(pid)
        for theirs in self._sent.values():
            theirs.close()
        for on_end in [self._on_end.pop(number) for number in list(self._on_end)]:
            on_end(None)


def kill_group(pid: int) -> None:
    """End a subprocess and what it has started; its id is nobody else's while one of these lives."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError as exc:
        if exc.errno not in (errno.ESRCH, errno.EPERM):  # nobody is left in it, which macOS tells in its own way
            raise


def _spawn(descriptor: int) -> subprocess.Popen[bytes]:
    code = _BOOT.format(path=[each for each in sys.path if isinstance(each, str)], descriptor=descriptor)
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)  # until it has handlers of its own
    try:
        return subprocess.Popen(
            [sys.executable, *flags, "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
