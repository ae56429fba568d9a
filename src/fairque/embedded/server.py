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

import os
import shutil
import signal
import socket
import tempfile
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from fairque.embedded.binary import server_binary
from fairque.embedded.locks import EXCLUSIVE, SHARED, open_lock, try_lock, until
from fairque.embedded.process import ServerProcess
from fairque.embedded.socket_file import SocketFile
from fairque.errors import ConfigError, QueueUnavailable

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["EmbeddedServer", "free_port"]

_STEP_SECONDS = 0.002


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
        self._binary = server_binary() if binary is None else Path(binary)
        self._start_timeout = start_timeout
        self._options = options
        self._users: int | None = None
        self._directory: Path | None = None
        if directory is not None:
            self._live_in(Path(directory).absolute())
        _instances.add(self)

    def _live_in(self, directory: Path) -> None:
        self._directory = directory
        self._socket = SocketFile(directory)
        # Gently where there are data to write; a private server has nothing to lose.
        way_to_stop = signal.SIGTERM if self.is_shared else signal.SIGKILL
        self._process = ServerProcess(directory, way_to_stop, is_saved=self.is_shared)

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
        path = self._socket.path if self._directory is not None else None
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
        return None if self._directory is None else self._process.pid

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
                self._process.end()
                for directory in self._leftovers():
                    shutil.rmtree(directory, ignore_errors=True)
        finally:
            self._forget()

    def kill(self) -> None:
        """End the server as a crash would. Its directory stays, and `start` brings it back."""
        if self._directory is not None:
            self._process.end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server and start it anew on the same addresses, as an operator would."""
        if self._directory is not None:
            self._process.end(signal.SIGTERM)
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
            self._live_in(Path(tempfile.mkdtemp(prefix="fairque-")))
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        users = self._users = open_lock(self.directory / "users.lock")
        # Whoever is just shutting the server down holds it for as long as that takes.
        if not until(lambda: try_lock(users, SHARED), deadline):
            raise QueueUnavailable(f"the embedded server in {str(self.directory)!r} takes long to shut down")

    def _ensure_running(self, deadline: float) -> None:
        while not self._socket.answers():
            self._process.raise_if_ended()
            if time.monotonic() > deadline:
                waited = f"did not answer within {self._start_timeout:g} s"
                raise QueueUnavailable(f"the embedded server {waited}{self._process.log_tail()}")
            with self._process.lock(EXCLUSIVE) as lock:
                if lock is not None:
                    self._socket.choose()
                    self._process.launch(lock, self._command(), self._leftovers())
            time.sleep(_STEP_SECONDS)

    def _forget(self) -> None:
        """Drop this process's share; also what a forked child does with the share it was born with."""
        if self._users is not None:
            os.close(self._users)
            self._users = None
            self._process.forget()
        if not self.is_shared:
            self._directory = None

    def _leftovers(self) -> list[Path]:
        """What a stopped server needs no longer: all of a private one, the short socket path of a shared one."""
        elsewhere = self._socket.other_directory
        return [*([] if self.is_shared else [self.directory]), *([] if elsewhere is None else [elsewhere])]

    def _command(self) -> list[str]:
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
        return [
            str(self._binary),
            *(part for name, value in settings.items() for part in (f"--{name}", _setting(value))),
        ]


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
