"""A Valkey server that fairque runs itself, so that a queue needs nothing installed beside it.

Two lock files do the bookkeeping, because the kernel drops a lock when its holder dies, however it dies:

``users.lock``
    Held shared by every process that uses the server, and exclusively by whoever shuts it down: so the last one to
    leave knows that it is the last, and nobody comes in while the server goes down.
``server.lock``
    Held by the server itself as long as it lives, so that there is never a second one on the same files.

The server is a child of `fairque.embedded.guard`, which ends it when no user is left because all were killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from fairque.embedded import guard
from fairque.embedded.binary import server_binary
from fairque.embedded.locks import EXCLUSIVE, SHARED, open_lock, try_lock, until
from fairque.errors import ConfigError, QueueUnavailable

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["EmbeddedServer"]

_LONGEST_SOCKET_PATH = 100
"""Bytes. The kernels' own limits are 107 (Linux) and 103 (macOS)."""
_STOP_SECONDS = 10.0
_STEP_SECONDS = 0.002
_LOG_TAIL_LINES = 12
_LOG_TAIL_BYTES = 4096


class EmbeddedServer:
    """A Valkey (or Redis) server on a Unix socket, run for this process or for the processes of this machine.

    Without a directory the server is *private*: it lives in a fresh temporary directory, keeps nothing on disk, and
    ends with this process. With a directory it is *shared*: the first process to come starts it, those that follow
    use the same one, the last to leave stops it, and what it holds is kept in that directory (append-only file,
    synced every second). The class blocks: call it from a thread in async code.

    Args:
        directory: Where a shared server keeps its data; created when missing.
        tcp: Listen on a free port of 127.0.0.1 as well. Private servers only.
        port: Listen on this port of 127.0.0.1 as well. Private servers only.
        binary: The server to run. By default that of the ``embedded`` extra, else one found on ``PATH``.
        start_timeout: Seconds to wait for the first answer, loading of kept data included.
        **options: Options of the server, underscores for dashes: ``maxmemory="50mb"``, ``cluster_enabled=True``.
            Those of the process that starts a shared server hold for all.

    Raises:
        ConfigError: No server is installed, or the arguments contradict each other.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        tcp: bool = False,
        port: int | None = None,
        binary: str | os.PathLike[str] | None = None,
        start_timeout: float = 30.0,
        **options: str | int | bool,
    ) -> None:
        self.is_shared = directory is not None
        if self.is_shared and (tcp or port is not None):
            raise ConfigError("a shared embedded server listens on its socket only: leave out tcp and port")
        self.port = free_port() if tcp and port is None else port
        self._directory = None if directory is None else Path(directory).absolute()
        self._binary = server_binary() if binary is None else Path(binary)
        self._start_timeout = start_timeout
        self._options = options
        self._users: int | None = None
        self._guard: int | None = None
        self._log_start = 0
        _instances.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'shared' if self.is_shared else 'private'} {str(self._directory or '')!r}>"

    # What a caller reads

    @property
    def directory(self) -> Path:
        """Where the server lives. A private one has it only between `start` and `stop`."""
        if self._directory is None:
            raise QueueUnavailable("the embedded server is not started")
        return self._directory

    @property
    def socket(self) -> Path:
        """Path of the Unix socket, known once the server was started."""
        path = self._recorded_socket()
        if path is None:
            raise QueueUnavailable("the embedded server is not started")
        return path

    @property
    def url(self) -> str:
        """URL of the Unix socket, for clients on this machine."""
        return "unix://" + quote(str(self.socket))

    @property
    def tcp_url(self) -> str:
        """URL of the TCP port, where one was asked for."""
        if self.port is None:
            raise ConfigError("this embedded server has no TCP port: create it with tcp=True")
        return f"redis://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """The server's own log."""
        return self.directory / "server.log"

    @property
    def pid(self) -> int | None:
        """Process id of the server, None when it does not run."""
        if self._is_alive():
            with contextlib.suppress(OSError, ValueError):
                return int((self.directory / "server.pid").read_text())
        return None

    # What a caller does

    def start(self) -> Self:
        """Join the users of the server and make sure that it runs; after a crash, calling it again brings it back.

        Raises:
            ConfigError: The directory cannot be used.
            QueueUnavailable: It ended at once or does not answer in time; the end of its log is in the message.
        """
        deadline = time.monotonic() + self._start_timeout
        try:
            self._join(deadline)
            self._ensure_running(deadline)
        except OSError as error:
            self.stop()
            if isinstance(error, QueueUnavailable):
                raise
            raise ConfigError(f"the embedded server cannot be started: {error}") from error
        return self

    def stop(self) -> None:
        """Leave. The last user stops the server; a private server's directory goes with it."""
        if self._users is None:
            return
        try:
            # A failed attempt gives the share up as well: others use the server, or the guard is ending it.
            if not self.is_shared or try_lock(self._users, EXCLUSIVE):
                self._end(self._way_to_stop())
                self._clear()
        finally:
            self._forget()

    def kill(self) -> None:
        """End the server as a crash would. Its directory stays, and `start` brings it back."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server and start it anew on the same addresses, as an operator would."""
        self._end(signal.SIGTERM)
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # Coming and going

    def _join(self, deadline: float) -> None:
        if self._users is not None:
            return
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="fairque-"))
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        users = self._users = open_lock(self._directory / "users.lock")
        # Whoever is just shutting the server down holds it for as long as that takes.
        if not until(lambda: try_lock(users, SHARED), deadline):
            raise QueueUnavailable(f"the embedded server in {str(self._directory)!r} takes long to shut down")

    def _forget(self) -> None:
        """Drop this process's share; also what a forked child does with the share it was born with."""
        if self._users is not None:
            os.close(self._users)
        self._users = self._guard = None
        if not self.is_shared:
            self._directory = None

    def _clear(self) -> None:
        """Remove what a stopped server needs no longer: all of a private one, the short socket path of a shared one."""
        for directory in self._leftovers():
            shutil.rmtree(directory, ignore_errors=True)

    def _leftovers(self) -> list[Path]:
        directories = [] if self.is_shared else [self.directory]
        path = self._recorded_socket()
        if path is not None and path.parent != self.directory:
            directories.append(path.parent)
        return directories

    def _way_to_stop(self) -> signal.Signals:
        """Gently where there are data to write; a private server has nothing to lose."""
        return signal.SIGTERM if self.is_shared else signal.SIGKILL

    # The server process

    def _ensure_running(self, deadline: float) -> None:
        while not self._answers():
            self._raise_if_ended()
            if time.monotonic() > deadline:
                seconds = f"{self._start_timeout:g} s"
                raise QueueUnavailable(f"the embedded server did not answer within {seconds}{self._log_tail()}")
            with self._lock_of_server(EXCLUSIVE) as lock:
                if lock is not None:
                    self._launch(lock)
            time.sleep(_STEP_SECONDS)

    def _launch(self, lock: int) -> None:
        """Start the guard, and through it the server, which inherits `lock` and so holds it while it lives."""
        self._choose_socket()
        command = [sys.executable, "-I", "-S", guard.__file__, *self._guard_arguments()]
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

    def _guard_arguments(self) -> list[str]:
        server = [str(self._binary), *self._server_arguments()]
        lock, how = self.directory / "users.lock", self._way_to_stop()
        return [str(lock), how.name, *map(str, self._leftovers()), "--", *server]

    def _server_arguments(self) -> list[str]:
        settings: dict[str, str | int | bool] = {
            "bind": "127.0.0.1",
            "port": self.port or 0,
            "unixsocket": str(self.socket),
            "unixsocketperm": 700,
            "dir": str(self.directory),
            "pidfile": str(self.directory / "server.pid"),
            "save": "",
            "appendonly": self.is_shared,
            "appendfsync": "everysec",
        }
        settings |= {name.replace("_", "-"): value for name, value in self._options.items()}
        return [part for name, value in settings.items() for part in (f"--{name}", _setting(value))]

    def _end(self, how: signal.Signals) -> None:
        for signum in (how, signal.SIGKILL):
            pid = self.pid
            if pid is None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
            if until(lambda: not self._is_alive(), time.monotonic() + _STOP_SECONDS):
                break
        if self._guard is not None and not self._is_alive():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._guard, 0)
            self._guard = None

    def _raise_if_ended(self) -> None:
        """Say why the server that this process started did not come up."""
        if self._guard is None:
            return
        try:
            ended = os.waitpid(self._guard, os.WNOHANG)[0] != 0
        except ChildProcessError:
            ended = True
        if ended:
            self._guard = None
            raise QueueUnavailable(f"the embedded server {str(self._binary)!r} ended at once{self._log_tail()}")

    def _is_alive(self) -> bool:
        if self._directory is None or not self._directory.is_dir():
            return False
        with self._lock_of_server(SHARED) as lock:
            return lock is None

    @contextlib.contextmanager
    def _lock_of_server(self, mode: int) -> Iterator[int | None]:
        """The lock that a server (and its guard) holds while it lives, or None when one does."""
        fd = open_lock(self.directory / "server.lock")
        try:
            yield fd if try_lock(fd, mode) else None
        finally:
            os.close(fd)

    def _log_tail(self) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._log_start, self.log.stat().st_size - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n  ".join(["; the end of its log:", *lines[-_LOG_TAIL_LINES:]])

    # The socket

    @property
    def _socket_record(self) -> Path:
        return self.directory / "socket-path"

    def _recorded_socket(self) -> Path | None:
        path = self.directory / "valkey.sock"
        if _fits(path):
            return path
        with contextlib.suppress(FileNotFoundError):
            return Path(self._socket_record.read_text())
        return None

    def _choose_socket(self) -> None:
        """Record a short path where that in the directory is longer than the kernel takes."""
        path = self._recorded_socket()
        if path is not None and path.parent.is_dir() and path.parent.stat().st_uid == os.getuid():
            return
        parent = tempfile.gettempdir() if _fits(Path(tempfile.gettempdir(), "fairque-12345678/valkey.sock")) else "/tmp"
        path = Path(tempfile.mkdtemp(prefix="fairque-", dir=parent), "valkey.sock")
        # Replaced in one step: others read it at any moment.
        draft = self._socket_record.with_suffix(".new")
        draft.write_text(str(path))
        draft.replace(self._socket_record)

    def _answers(self) -> bool:
        path = self._recorded_socket()
        return path is not None and _answers_ping(path)


def _answers_ping(path: Path) -> bool:
    """Whether a server accepts commands there. One that still loads its data answers, but not with this."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH


def _setting(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on, at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_instances: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _forget_all() -> None:
    for server in list(_instances):
        server._forget()


# A forked child has copies of its parent's locks, and would keep the server alive after the parent's death.
os.register_at_fork(after_in_child=_forget_all)
