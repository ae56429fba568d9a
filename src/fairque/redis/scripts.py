"""Loads `lua/*.lua`: a script with the helpers it names in ``--@include`` lines, known to the server by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import NamedTuple

__all__ = ["Script", "load"]

_INCLUDE = "--@include "
_ONLY_READS = b"#!lua flags=no-writes"


class Script(NamedTuple):
    name: str
    source: bytes
    sha: bytes
    only_reads: bool


@cache
def load(name: str) -> Script:
    """The script of `lua/{name}.lua`, joined with its helpers in the order it names them."""
    source = "\n".join(_lines(f"{name}.lua")).encode()
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
    return Script(name, source, sha, source.startswith(_ONLY_READS))


def _lines(path: str) -> Iterator[str]:
    """Helpers may include others."""
    for line in (files("fairque.redis") / "lua" / path).read_text(encoding="utf-8").splitlines():
        if line.startswith(_INCLUDE):
            yield from _lines(f"lib/{line.removeprefix(_INCLUDE)}.lua")
        else:
            yield line
