"""`ServerProcess`: the server in a directory, which the guard of one of its users started."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fairque.embedded import guard
from fairque.embedded.allocator import tunables
from fairque.embedded.locks import SHARED, open_lock, try_lock, until
from fairque.errors import QueueUnavailable

__all__ = ["ServerProcess"]

_STOP_SECONDS = 10.0
_LOG_TAIL_LINES = 12
_LOG_TAIL_BYTES = 4096


class ServerProcess:
    """Starts, ends and looks after it. It lives as long as it holds ``server.lock``, whoever started it.

    Args:
        directory: Where it lives.
        way_to_stop: What its guard ends it with, when no user is left.
        is_saved: Whether its data is written to a file there.
    """

    def __init__(self, directory: Path, way_to_stop: signal.Signals, *, is_saved: bool) -> None:
        self._directory = directory
        self._way_to_stop = way_to_stop
        self._is_saved = is_saved
        self._guard: int | None = None
        self._binary = ""
        self._log_start = 0

    @property
    def log(self) -> Path:
        return self._directory / "server.log"

    @property
    def pid(self) -> int | None:
        """None when it does not run."""
        if self.is_alive():
            with contextlib.suppress(OSError, ValueError):
                return int((self._directory / "server.pid").read_text())
        return None

    def is_alive(self) -> bool:
        if not self._directory.is_dir():
            return False
        with self.lock(SHARED) as lock:
            return lock is None

    @contextlib.contextmanager
    def lock(self, mode: int) -> Iterator[int | None]:
        """The lock that a server (and its guard) holds while it lives, or None when one does."""
        fd = open_lock(self._directory / "server.lock")
        try:
            yield fd if try_lock(fd, mode) else None
        finally:
            os.close(fd)

    def launch(self, lock: int, server: list[str], leftovers: list[Path]) -> None:
        """Start the guard, and through it the server.

        Args:
            lock: The exclusive one. The server inherits it, and so holds it while it lives.
            server: Its command.
            leftovers: Directories that the guard removes, when no user is left.
        """
        self._binary = server[0]
        users, how = str(self._directory / "users.lock"), self._way_to_stop.name
        guarding = [users, how, tunables(is_saved=self._is_saved), *map(str, leftovers)]
        command = [sys.executable, "-I", "-S", guard.__file__, *guarding, "--", *server]
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._log_start = os.fstat(log).st_size
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_DUP2, lock, 3),
        ]
        try:
            # Not subprocess, which warns of children that outlive their parent: here that may be as it should.
            self._guard = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
        finally:
            os.close(log)

    def raise_if_ended(self) -> None:
        """Say why the server that this process started did not come up."""
        if self._guard is None:
            return
        try:
            ended = os.waitpid(self._guard, os.WNOHANG)[0] != 0
        except ChildProcessError:
            ended = True
        if ended:
            self._guard = None
            raise QueueUnavailable(f"the embedded server {self._binary!r} ended at once{self.log_tail()}")

    def end(self, how: signal.Signals | None = None) -> None:
        """By a signal; SIGKILL follows when it takes long."""
        for signum in (how or self._way_to_stop, signal.SIGKILL):
            pid = self.pid
            if pid is None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
            if until(lambda: not self.is_alive(), time.monotonic() + _STOP_SECONDS):
                break
        if self._guard is not None and not self.is_alive():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._guard, 0)
            self._guard = None

    def forget(self) -> None:
        """It is left to other users, or to its guard."""
        self._guard = None

    def log_tail(self) -> str:
        """For the end of an error: what it wrote since it was started."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._log_start, self.log.stat().st_size - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n  ".join(["; the end of its log:", *lines[-_LOG_TAIL_LINES:]])
