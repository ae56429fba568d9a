"""Scripts that a thread runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairque.errors import NotPermitted, QueueUnavailable, StoreError
from fairque.redis.arguments import Arguments, encode
from fairque.redis.connector import NoScript, not_loadable
from fairque.redis.keys import Keys
from fairque.redis.requester import BlockingRequester, pack
from fairque.redis.scripts import MOST_LOADS, Script, load

__all__ = ["call_blocking", "packed_call"]


def call_blocking(requester: BlockingRequester, keys: Keys, arguments: Arguments, values: Sequence[bytes] = ()) -> Any:
    """Run the script that these are the arguments of, once. Raises what `BlockingRequester.request` does."""
    script, command = load(arguments.script, arguments.package), packed_call(keys, arguments, values)
    for _ in range(MOST_LOADS):
        try:
            return requester.request(command)
        except NoScript:
            if (refusal := _load(requester, script)) is not None:
                spelled_out = script.spelled_out(keys.of_calls, [encode(arguments), *values])
                return _spelled_out(requester, pack(spelled_out), refusal)
    raise StoreError(f"the server forgets script {script.name!r} each time it is loaded")


def packed_call(keys: Keys, arguments: Arguments, values: Sequence[bytes] = ()) -> bytes:
    """As the server reads it, which may not know the script."""
    script = load(arguments.script, arguments.package)
    return pack(script.called(keys.of_calls, [encode(arguments), *values]))


def _spelled_out(requester: BlockingRequester, command: bytes, refusal: QueueUnavailable) -> Any:
    try:
        return requester.request(command)
    except NotPermitted:  # EVAL may be denied
        raise refusal from None


def _load(requester: BlockingRequester, script: Script) -> QueueUnavailable | None:
    try:
        requester.request(pack(script.loading))
    except QueueUnavailable as exc:
        return exc
    except NotPermitted as exc:
        raise not_loadable(exc) from None
    return None
