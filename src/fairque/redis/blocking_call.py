"""Scripts that a thread runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairque.errors import StoreError
from fairque.redis.arguments import Arguments, encode
from fairque.redis.connector import NoScript
from fairque.redis.keys import Keys
from fairque.redis.requester import BlockingRequester, pack
from fairque.redis.scripts import MOST_LOADS, load

__all__ = ["call_blocking"]


def call_blocking(requester: BlockingRequester, keys: Keys, arguments: Arguments, values: Sequence[bytes] = ()) -> Any:
    """Run the script that these are the arguments of, once. Raises what `BlockingRequester.request` does."""
    script = load(arguments.script, arguments.package)
    command = pack((b"FCALL", script.function, b"1", keys.state, encode(arguments), *values))
    for _ in range(MOST_LOADS):
        try:
            return requester.request(command)
        except NoScript:
            requester.request(pack(script.loading))
    raise StoreError(f"the server forgets script {script.name!r} each time it is loaded")
