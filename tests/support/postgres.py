"""A PostgreSQL of the tests' own, on a socket in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Postgres", "find_postgres"]

DEBIAN = Path("/usr/lib/postgresql")
ACCOUNT = "postgres"
START_SECONDS = 60.0


def find_postgres() -> Path | None:
    """The folder of its programs: that of the PATH, or Debian's newest."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(DEBIAN.glob("*/bin"), key=lambda path: float(path.parent.name))
    return versions[-1] if versions else None


class Postgres:
    """Runs until the ``with`` is left. As root, it runs as the user ``postgres``: it refuses to be root.

    Args:
        programs: See `find_postgres`.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._account: dict[str, Any] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="fairque-pg-"))
        if os.getuid() == 0:
            entry = pwd.getpwnam(ACCOUNT)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
            self._account = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, driver: str, database: str = ACCOUNT) -> str:
        """For SQLAlchemy."""
        return f"{driver}://{ACCOUNT}@/{database}?host={self.folder}"

    def sql(self, command: str) -> str:
        """What psql says to it, unaligned and without a head."""
        return self._run("psql", "-h", str(self.folder), "-U", ACCOUNT, "-qAtc", command)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        data = self.folder / "data"
        self._run("initdb", "-D", str(data), "-A", "trust", "-U", ACCOUNT, "-E", "UTF8", "--locale=C", "--no-sync")
        settings = {"listen_addresses": "", "unix_socket_directories": str(self.folder), "fsync": "off"}
        options = [f"-c{name}={value}" for name, value in settings.items()]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", data, *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._account,
            )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        ends = time.monotonic() + START_SECONDS
        while True:
            try:
                self.sql("select 1")
            except subprocess.CalledProcessError as exc:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > ends:
                    raise AssertionError(f"no PostgreSQL: {(self.folder / 'log').read_text()}") from exc
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # who is connected is cut
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> str:
        command = [str(self._programs / program), *arguments]
        ran = subprocess.run(command, cwd=self.folder, check=True, capture_output=True, **self._account)
        return bytes(ran.stdout).decode().strip()
