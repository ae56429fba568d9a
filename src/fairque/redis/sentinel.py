"""Finds the master of a service by asking its sentinels."""

from __future__ import annotations

from typing import Any

from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from fairque.redis.lookup import Lookup, Question, first, last
from fairque.redis.reason import in_words
from fairque.redis.url import Address, ServerUrl

__all__ = ["Sentinels"]


class Sentinels:
    """They are asked one after the other, beginning with the one that knew the answer before.

    See https://redis.io/docs/latest/develop/reference/sentinel-clients/ for what a client has to do.
    """

    def __init__(self, url: ServerUrl) -> None:
        self._url = url
        self._hosts = list(url.hosts)

    def lookup(self) -> Lookup:
        problems: list[str] = []
        lasting = True
        for host in self._hosts:
            self._hosts = last(self._hosts, host)  # stays there when this search is broken off
            command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.service)
            answer = yield Question(self._url.sentinel(host), command)
            if isinstance(answer, list):
                address = Address(answer[0].decode(), int(answer[1]))
                answer = yield Question(self._url.server(address), ("ROLE",))
                if _is_master(answer):
                    self._hosts = first(self._hosts, host)
                    return address
                problems.append(f"sentinel {host} names {address}: {_text(answer, 'not a master')}")
            else:
                problems.append(f"sentinel {host}: {_text(answer, f'unknown service {self._url.service!r}')}")
            lasting &= answer is None or isinstance(answer, (AuthenticationError, ResponseError))
        raise (ResponseError if lasting else ConnectionError)("; ".join(problems))

    def doubt(self) -> None:
        """The address turned out wrong. Every search asks the server itself, so there is nothing to learn from it."""


def _is_master(answer: Any) -> bool:
    """One that may not be asked for its role is believed; if it is a replica, it says so to the first write."""
    return isinstance(answer, NoPermissionError) or (isinstance(answer, list) and answer[0] == b"master")


def _text(answer: Any, otherwise: str) -> str:
    return in_words(answer) if isinstance(answer, Exception) else otherwise
