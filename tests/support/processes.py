"""Which processes a test has started, directly or not: they all inherit a mark in their environment."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

MARK = "FAIRQUE_TEST_MARK"


def new_mark() -> dict[str, str]:
    """What to add to the environment of the first process."""
    return {MARK: uuid.uuid4().hex}


def marked(mark: dict[str, str]) -> dict[int, str]:
    """The living processes with this mark: command lines by process id. Empty where there is no /proc."""
    wanted = f"{MARK}={mark[MARK]}".encode()
    commands = {int(entry.name): _command(entry, wanted) for entry in Path("/proc").glob("[0-9]*")}
    return {pid: command for pid, command in commands.items() if command}


def is_running(pid: int) -> bool:
    """Whether this process lives; one that ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # it ended meanwhile, or there is no /proc
        return not Path("/proc/self").exists()


def children_of(parent: int) -> set[int]:
    """Its living children. Empty where there is no /proc."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, its_parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(its_parent) == parent and state != "Z":
                found.add(int(stat.parent.name))
    return found


def _command(entry: Path, wanted: bytes) -> str:
    try:
        if wanted not in (entry / "environ").read_bytes().split(b"\0"):
            return ""
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:  # it ended meanwhile
        return ""
