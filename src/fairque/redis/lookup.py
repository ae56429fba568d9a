"""How the address of a server is asked for, written once for coroutines and threads: who runs it does the talking."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

from fairque.redis.url import Address

__all__ = ["Lookup", "Question", "first", "last"]


class Question(NamedTuple):
    """One command for the server at this URL. The answer is its reply, or the exception that came instead of one."""

    url: str
    command: tuple[str, ...]


Lookup = Generator[Question, Any, Address]
"""Yields questions, is sent the answers, returns where the server is. Raises errors of redis-py when nobody knows."""


def first(hosts: list[Address], host: Address) -> list[Address]:
    """A list of its own, since two threads may search at the same time."""
    return [host, *(each for each in hosts if each != host)]


def last(hosts: list[Address], host: Address) -> list[Address]:
    return [*(each for each in hosts if each != host), host]
