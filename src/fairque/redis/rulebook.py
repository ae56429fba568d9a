"""`Rulebook`: all that governs all users of a queue, as one partition has it, for another that lacks a part of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from fairque.redis.arguments import Follow, Rule

__all__ = ["Rulebook", "rulebook_in"]


class Rulebook(NamedTuple):
    """`follow` is what another partition is told, with the policy as its only value."""

    follow: Follow
    policy: bytes


def rulebook_in(reply: list[Any]) -> Rulebook:
    """As rulebook.lua tells it."""
    revision, policy, forfeited, *rows = reply
    rules = [Rule(*(text.decode() for text in row)) for row in rows]
    return Rulebook(Follow(revision, 2, forfeited, rules), policy)
