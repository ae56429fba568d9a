"""Scripts as they go over the wire."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from fairque.redis.scripts import Script, load

__all__ = ["call_of", "is_known", "make_known", "scripts_called"]

Execute = Callable[..., Any]


def call_of(script: str | Script) -> bytes:
    """What is in a call of a script, and in no other command."""
    known = load(script) if isinstance(script, str) else script
    command = b"FCALL_RO" if known.only_reads else b"FCALL"
    return b"%s\r\n$%d\r\n%s\r\n" % (command, len(known.function), known.function)


def make_known(execute: Execute, scripts: Iterable[Script]) -> None:
    """To a server: a call of one that it does not know is answered with that."""
    known = {library[1] for library in execute("FUNCTION", "LIST")}
    for script in scripts:
        if script.function not in known:
            execute(*script.loading)


def is_known(execute: Execute, script: str) -> bool:
    return bool(execute("FUNCTION", "LIST", "LIBRARYNAME", load(script).function.decode()))


def scripts_called(execute: Execute) -> int:
    """How often a server was asked to run one so far, by anyone."""
    return sum(map(int, re.findall(rb"cmdstat_fcall(?:_ro)?:calls=(\d+)", execute("INFO", "commandstats"))))
