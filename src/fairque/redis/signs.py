"""Signs of life of workers that have no deliveries, and have renewed before: see sign.lua."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fairque.redis.arguments import Sign
from fairque.redis.blocking_call import call_blocking, packed_call
from fairque.redis.connector import Connector
from fairque.redis.keys import Keys
from fairque.redis.requester import BlockingRequester
from fairque.redis.shared_blocking import BlockingConnections

__all__ = ["Sign", "Signed", "sign", "sign_together"]


class Signed(NamedTuple):
    """Whether the scheduler in the worker's process is to look at schedules, as nobody else does, and whether the
    worker is to renew instead, with all that is to be known of it.
    """

    is_to_fire: bool
    is_to_renew: bool


def sign(requester: BlockingRequester, keys: Keys, told: Sign) -> Signed:
    """One. Raises what `call_blocking` does."""
    return _signed(call_blocking(requester, keys, told))


def sign_together(
    connections: BlockingConnections, signs: Sequence[tuple[Connector, Keys, Sign]]
) -> list[Signed | None]:
    """Those to several partitions of one node, in one message: a request that comes alone costs the node more than the
    script that it runs. None: it is not certain that it was given. Raises what finding a node does.
    """
    replies = connections.ask_together([(connector, packed_call(keys, told)) for connector, keys, told in signs])
    unheard = [None] * (len(signs) - len(replies))
    return [None if isinstance(reply, Exception) else _signed(reply) for reply in replies] + unheard


def _signed(reply: Any) -> Signed:
    is_to_fire, is_to_renew = reply
    return Signed(bool(is_to_fire), bool(is_to_renew))
