"""The commands that scripts run, read from their Lua: a user of Redis needs a permission for each."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from fairque.redis.scripts import CORE, lines_of

__all__ = ["CHANGING", "commands_of", "readers", "scripts_of_core"]

_INCLUDE = re.compile(r"--@include (\w+)")
_COMMENT = re.compile(r"(?:^| )--.*", re.MULTILINE)
_FIRST_WORD = re.compile(r"\b(?:call|pcall|try)\('([A-Z_]+)'")
"""Where it is certain that a quoted word is the name of a command."""
_WORDS = re.compile(r"'([A-Z_]+)'(?=(?:, '([A-Z]+)')?)")
_CONTAINERS = ("PUBSUB", "XGROUP", "XINFO")
"""Commands of which only parts are permitted."""
_CHANGE = (
    "del getdel hdel hincrby hset hsetnx lpop lpush ltrim mset persist pexpire pexpireat rename rpop rpush sadd set"
    " setrange spop spublish srem sunionstore unlink xack xadd xautoclaim xclaim xdel xgroup|create"
    " xgroup|delconsumer xtrim zadd zmpop zpopmin zrem zremrangebyrank zremrangebyscore"
)
CHANGING = frozenset(_CHANGE.split())
"""Those of the scripts that write, or tell others."""


@cache
def scripts_of_core() -> tuple[str, ...]:
    """Names of all that a queue is run with; those of `fairque.testing` are none of them."""
    names = (path.name for path in (files(CORE) / "lua").iterdir())
    return tuple(sorted(name.removesuffix(".lua") for name in names if name.endswith(".lua")))


@cache
def readers() -> tuple[str, ...]:
    """Of these, those that write nothing."""
    return tuple(name for name in scripts_of_core() if "no-writes" in _text(name).partition("\n")[0])


@cache
def commands_of(script: str) -> frozenset[str]:
    """As the rules of an ACL name them, such as ``zadd`` and ``xgroup|create``.

    Scripts choose some by a variable (``is_marked and 'SADD' or 'SREM'``), so each quoted word counts that is a command
    anywhere: rather one too many. A script that only reads shares files with others, and runs nothing of them that
    writes: the server would refuse it.
    """
    commands = frozenset[str]().union(*map(_commands_in, _files(script, set())))
    return commands - CHANGING if script in readers() else commands


@cache
def _commands_in(file: str) -> frozenset[str]:
    known, words = _every_command(), _WORDS.findall(_COMMENT.sub("", _text(file)))
    named = {f"{word}|{part}" if word in _CONTAINERS else word for word, part in words if word in known}
    return frozenset(map(str.lower, named))


@cache
def _every_command() -> frozenset[str]:
    shared = (f"lib/{path.name.removesuffix('.lua')}" for path in (files(CORE) / "lua" / "lib").iterdir())
    return frozenset(word for file in (*scripts_of_core(), *shared) for word in _FIRST_WORD.findall(_text(file)))


def _files(name: str, joined: set[str]) -> set[str]:
    """A script and all that it includes."""
    joined.add(name)
    for included in _included(name):
        if included not in joined:
            _files(included, joined)
    return joined


@cache
def _included(name: str) -> tuple[str, ...]:
    return tuple(f"lib/{included}" for included in _INCLUDE.findall(_text(name)))


def _text(name: str) -> str:
    return "\n".join(lines_of(CORE, f"{name}.lua"))
