"""Loads `lua/*.lua`: a script with the helpers it names in ``--@include`` lines, known to the server by its hash."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

__all__ = ["Script", "load"]

_INCLUDE = "--@include "


class Script(NamedTuple):
    name: str
    source: bytes
    sha: bytes


@cache
def load(name: str) -> Script:
    """The script of `lua/{name}.lua`, joined with its helpers in the order it names them."""
    folder = files("fairque") / "lua"
    lines = []
    for line in (folder / f"{name}.lua").read_text(encoding="utf-8").splitlines():
        if line.startswith(_INCLUDE):
            lines.append((folder / "lib" / f"{line.removeprefix(_INCLUDE)}.lua").read_text(encoding="utf-8"))
        else:
            lines.append(line)
    source = "\n".join(lines).encode()
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())
