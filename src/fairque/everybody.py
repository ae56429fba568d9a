"""`EVERYBODY`: in place of a user, all of them."""

from __future__ import annotations

from enum import Enum
from typing import Final

from fairque.checks import check_id
from fairque.errors import InvalidInput

__all__ = ["EVERYBODY", "EVERYONE", "Everybody", "check_user", "whom"]

EVERYONE = "*"
"""Its name in Redis, in configuration and on the command line, which are the operator's. In code it names nobody: an id
that comes from outside must not become everybody."""


class Everybody(Enum):
    """The type of `EVERYBODY`, its only value, which no text equals."""

    EVERYBODY = "everybody"

    def __repr__(self) -> str:
        return "EVERYBODY"


EVERYBODY: Final = Everybody.EVERYBODY
"""In place of a user's id: all of them, or in a policy those that do not say otherwise."""


def check_user(name: str, value: object) -> str:
    """The id of one user. Raises `InvalidInput`."""
    if value == EVERYONE:
        raise InvalidInput(f"{name} {value!r} is the id of nobody; what is meant for everybody takes fairque.EVERYBODY")
    return check_id(name, value)


def whom(text: str) -> str | Everybody:
    """Who is meant in configuration, or on the command line."""
    return EVERYBODY if text == EVERYONE else text
