"""The Unix socket on which an embedded server listens."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from pathlib import Path

__all__ = ["SocketFile"]

_LONGEST_PATH = 100
"""Bytes. The kernels' own limits are 107 (Linux) and 103 (macOS)."""
_NAME = "valkey.sock"


class SocketFile:
    """In the directory of the server, or elsewhere where that path is longer than the kernel takes.

    Args:
        directory: Of the server. A path elsewhere is recorded in it.
    """

    def __init__(self, directory: Path) -> None:
        self._inside = directory / _NAME
        self._record = directory / "socket-path"

    @property
    def path(self) -> Path | None:
        """None where it has to be elsewhere, and nobody chose yet where."""
        if _fits(self._inside):
            return self._inside
        with contextlib.suppress(FileNotFoundError):
            return Path(self._record.read_text())
        return None

    @property
    def other_directory(self) -> Path | None:
        """Where it is, if that is elsewhere."""
        path = self.path
        return None if path is None or path == self._inside else path.parent

    def choose(self) -> None:
        """Record a short path where one is needed."""
        path = self.path
        if path is not None and path.parent.is_dir() and path.parent.stat().st_uid == os.getuid():
            return
        parent = tempfile.gettempdir() if _fits(Path(tempfile.gettempdir(), "fairque-12345678", _NAME)) else "/tmp"
        path = Path(tempfile.mkdtemp(prefix="fairque-", dir=parent), _NAME)
        # Replaced in one step: others read it at any moment.
        draft = self._record.with_suffix(".new")
        draft.write_text(str(path))
        draft.replace(self._record)

    def answers(self) -> bool:
        """Whether a server accepts commands there. One that still loads its data answers, but not with this.

        One that takes no more clients runs as well.
        """
        path = self.path
        if path is None:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(str(path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-ERR max number of clients"))
            except OSError:
                return False


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= _LONGEST_PATH
