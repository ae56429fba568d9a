"""Annotations that cannot be used are refused where they stand, and errors name the parameter."""

from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from typing import Literal
from uuid import UUID

import pytest

from fairque import BadArguments, InvalidInput, task


@dataclass
class A:
    x: int


@dataclass
class B:
    y: int


class Color(Enum):
    RED = "red"


KINDS = [A | B, A | dict, Color | str, date | datetime, str | UUID, Literal[Color.RED], list[A | B]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("place", ["value", "return"])
def test_an_annotation_that_cannot_be_used_is_refused_at_once(kind, place: str):
    def take(value): ...

    take.__annotations__ = {place: kind}
    what = "its result" if place == "return" else "the parameter 'value'"
    with pytest.raises(InvalidInput, match=f"take': the annotation of {what} cannot be used: "):
        task(take)


def test_one_of_a_class_that_stands_below_is_refused_at_the_call():
    def take(first: int, value): ...

    take.__annotations__["value"] = "Below | A"
    taken = task(take)
    globals()["Below"] = B
    try:
        with pytest.raises(BadArguments, match="not supported"):
            taken(1, B(2))
    finally:
        del globals()["Below"]


def test_what_does_not_fit_is_told_by_the_name_of_its_parameter():
    @task
    def take(first: int, items: list[A], *rest: int, only: A | None = None, **named: list[int]) -> None: ...

    for call, place in [
        (lambda: take("one", []), "`first`"),
        (lambda: take(1, [A("one")]), r"`items\[0\]\.x`"),
        (lambda: take(1, [], 2, "three"), r"`rest\[1\]`"),
        (lambda: take(1, [], only=A("x")), r"`only\.x`"),
        (lambda: take(1, [], more=[1, "x"]), r"`more\[1\]`"),
        (lambda: take(1, [], only=3), "`only`"),
    ]:
        with pytest.raises(BadArguments, match=f" - at {place}$"):
            call()
