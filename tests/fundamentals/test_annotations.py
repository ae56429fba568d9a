"""What an annotation promises is kept, or it is refused where it stands."""

import cProfile
import enum
import itertools
import sys
from collections.abc import Awaitable, Iterable
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NoReturn, NotRequired, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pytest

from fairque import BadArguments, InvalidInput, TaskFailed, TaskQueue, Worker, task
from fairque.tasks.types.adapters import encode
from fairque.tasks.types.stand_in import decoder
from fairque.tasks.types.translation import translated


@dataclass
class A:
    x: int


@dataclass
class B:
    y: int


@dataclass
class Wider:
    """Has all that an `A` has, and more, which is always sent."""

    x: int
    y: int = 2


@dataclass
class Square:
    kind: Literal["square"]
    side: int


@dataclass
class Circle:
    kind: Literal["circle"]
    side: int


@dataclass
class Texts:
    x: str


@dataclass
class Leaf:
    of: A | B


@dataclass
class Tree:
    parts: "list[Tree | Leaf]" = field(default_factory=list)
    at: Path = Path("here")


@attrs.define
class Attrs:
    path: Path
    either: A | B | None = None


class Struct(msgspec.Struct, rename="camel"):
    some_path: Path
    either: A | B | None = None


class Closed(msgspec.Struct, tag="closed", forbid_unknown_fields=True):
    path: Path


class Keys(TypedDict):
    path: Path
    color: NotRequired["Literal[Color.RED]"]


class Named(NamedTuple):
    path: Path
    number: int = 1


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    S = 1


T = TypeVar("T")


@dataclass
class Box(Generic[T]):
    content: T


class Paths(Box[Path]): ...


@dataclass
class Labeled(Box[list[T]], Generic[T]):
    name: T


@dataclass(init=False)
class OwnInit:
    path: Path
    seen: list[Path] = field(default_factory=list, init=False)

    def __init__(self, text: str) -> None:
        self.path, self.seen = Path(text), [Path(text)]


@dataclass
class Given:
    path: Path
    more: InitVar[int] = 0


Folder = NewType("Folder", Path)
NOON, DAY = time(12, 30, 1, 5), date(2030, 1, 2)
AWARE = datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
MOMENT = AWARE.replace(tzinfo=None)

ARRIVE = [
    (A | B, [A(1), B(2)]),
    (A | Wider, [A(1), Wider(1)]),
    (A | Texts, [A(1), Texts("one")]),
    (Square | Circle, [Square("square", 1), Circle("circle", 1)]),
    (A | B | int | str | None, [A(1), B(2), 3, "four", None]),
    (A | list[B], [A(1), [B(2)]]),
    (tuple[A | B, int], [(B(1), 2)]),
    (dict[date | datetime, A | B], [{DAY: A(1), MOMENT: B(2)}]),
    (date | datetime, [DAY, MOMENT, AWARE]),
    (
        date | time | timedelta | UUID | Decimal,
        [DAY, NOON, timedelta(days=-1, seconds=3), UUID(int=9**40), Decimal("1E+5")],
    ),
    (Color | int, [Color.RED, 3]),
    (Color | Size | UUID, [Color.BLUE, Size.S, UUID(int=1)]),
    (Color | Literal["auto"], [Color.RED, "auto"]),
    (Literal[Color.RED, "x", None], [Color.RED, "x", None]),
    (Literal[True, 1.5], [True, 1.5]),
    (bytes | str, [b"a", "a"]),
    (list[int] | list[str], [[1], ["a"], []]),
    (tuple[int, int] | tuple[int, int, int], [(1, 2), (1, 2, 3)]),
    (Path, [Path("/a/b")]),
    (Path | int | None, [Path("a"), 1, None]),
    (dict[Path, set[Path]], [{Path("a"): {Path("b")}}]),
    (Folder, [Path("a")]),
    (Annotated[list[Path], msgspec.Meta(max_length=2)], [[Path("a")]]),
    (Tree, [Tree([Leaf(B(1)), Tree([Leaf(A(2))], Path("there"))])]),
    (Attrs, [Attrs(Path("a"), B(1))]),
    (Struct, [Struct(Path("a"), A(1))]),
    (Closed, [Closed(Path("a"))]),
    (Closed | Struct, [Closed(Path("a")), Struct(Path("a"))]),
    (Keys, [{"path": Path("a")}, {"path": Path("a"), "color": Color.RED}]),
    (Named, [Named(Path("a"), 2)]),
    (Box[A | B], [Box(B(1))]),
    (Box[int] | Box[str], [Box(1), Box("one")]),
    (Paths, [Paths(Path("a"))]),
    (Labeled[Path], [Labeled([Path("a")], Path("b"))]),
    (OwnInit, [OwnInit("a")]),
    (Iterable[UUID], [[UUID(int=1)]]),
    (NoReturn, [None]),
]

REFUSED = [
    (A | dict, "A and dict cannot be told apart: both may travel as map"),
    (A | Struct | dict[str, int], r"A and dict\[str, int\] cannot be told apart"),
    (Box[A] | Box[B | A], "cannot be told apart"),
    (Color | str, "Color and str cannot be told apart: both may travel as text"),
    (Literal[Color.RED] | str, r"Literal\[Color.RED\] and str cannot"),
    (str | UUID, "str and UUID cannot be told apart: both may travel as text"),
    (Path | str, "Path and str cannot be told apart"),
    (list[A | dict], "A and dict cannot be told apart"),
    (list[int] | set[int], "cannot be told apart: both may travel as array"),
    (complex, "there is no way to send a value of type complex"),
    (list[complex], "there is no way to send a value of type complex"),
    (Box[complex], "there is no way to send a value of type complex"),
    (Given, "the dataclass Given has an InitVar, which does not travel"),
    (range | A, "there is no way to send a value of type range"),
    (type[int], "there is no way to send"),
    (Exception, "there is no way to send a value of type Exception"),
    (Color | Annotated[str, "text"], "cannot be told apart"),
]


@pytest.mark.parametrize(("kind", "values"), ARRIVE, ids=str)
def test_values_arrive_as_what_they_were(kind, values: list[Any]):
    convert = decoder(translated(kind))
    for value in values:
        arrived = convert.decode(encode(value))
        assert (arrived, type(arrived)) == (value, type(value))


@pytest.mark.parametrize(("kind", "reason"), REFUSED, ids=str)
@pytest.mark.parametrize("place", ["value", "return"])
def test_an_annotation_that_cannot_be_used_is_refused_at_once(kind, reason: str, place: str):
    def take(value): ...

    take.__annotations__ = {place: kind}
    what = "its result" if place == "return" else "the parameter 'value'"
    with pytest.raises(InvalidInput, match=f"take': the annotation of {what} cannot be used: .*{reason}"):
        task(take)


POOL: list[tuple[Any, list[Any]]] = [
    (int, [0, 1]),
    (bool, [True]),
    (float, [1.5, 1.0]),
    (str, ["red", "a", "", "2030-01-02", "1.5"]),
    (bytes, [b"", b"red"]),
    (date, [DAY]),
    (datetime, [MOMENT, AWARE]),
    (time, [NOON, time(1, tzinfo=UTC)]),
    (timedelta, [timedelta(0), timedelta(days=400, microseconds=1)]),
    (UUID, [UUID(int=0), UUID(int=10**37)]),
    (Decimal, [Decimal("1.5"), Decimal("-Infinity"), Decimal(20300102)]),
    (Color, list(Color)),
    (Size, list(Size)),
    (Literal["red", 1], ["red", 1]),
    (Path, [Path("red"), Path("2030-01-02")]),
    (list[int], [[], [1]]),
    (list[str], [["a"]]),
    (tuple[int, ...], [(), (1,)]),
    (tuple[int, str], [(1, "a")]),
    (set[int], [{1}]),
    (dict[str, int], [{"x": 1}, {}]),
    (A, [A(1)]),
    (B, [B(1)]),
    (Wider, [Wider(1)]),
    (Texts, [Texts("a")]),
    (Square, [Square("square", 1)]),
    (Circle, [Circle("circle", 1)]),
    (Attrs, [Attrs(Path("a"))]),
    (Struct, [Struct(Path("a"), B(1))]),
    (Keys, [{"path": Path("a")}]),
    (Named, [Named(Path("a"))]),
    (Box[int], [Box(1)]),
    (Box[str], [Box("a")]),
    (Tree, [Tree([Leaf(A(1))])]),
]


def test_of_any_two_types_what_is_not_refused_arrives_as_it_was():
    refused = 0
    for (one, ones), (two, twos) in itertools.combinations(POOL, 2):
        try:
            convert = decoder(translated(one | two))
        except TypeError:
            refused += 1
            continue
        for value in (*ones, *twos):
            arrived = convert.decode(encode(value))
            same_number = {type(arrived), type(value)} == {int, float}
            assert arrived == value
            assert type(arrived) is type(value) or same_number, (one, two)
    assert 30 < refused < 100


def test_one_of_a_class_that_stands_below_is_refused_at_the_call():
    def take(first: int, value): ...

    take.__annotations__["value"] = "Below | dict"
    taken = task(take)
    globals()["Below"] = B
    try:
        with pytest.raises(BadArguments, match="parameter 'value' cannot be used: B and dict cannot be told apart"):
            taken(1, B(2))
    finally:
        del globals()["Below"]


def test_a_class_may_hold_one_that_stands_below_the_function():
    @task
    def take(value: "list[Holds]") -> None: ...

    globals()["Later"] = A
    try:
        take([Holds(A(1))])
        with pytest.raises(BadArguments, match=r"`value\[0\].later.x`"):
            take([Holds(A("one"))])
    finally:
        del globals()["Later"]


@dataclass
class Holds:
    later: "Later"  # noqa: F821
    path: Path = Path("here")


def test_a_parameter_that_nobody_has_to_give_may_be_of_any_class():
    @task
    def take(number: int, session: complex | None = None) -> None: ...

    take(1)
    take(1, None)
    with pytest.raises(BadArguments, match=r"`session`|complex"):
        take(1, 1j)


def test_the_result_of_a_plain_wrapper_is_what_is_awaited():
    @task
    def passed_on() -> Awaitable[A | B]: ...

    assert passed_on().signature.result_decoder().decode(encode(B(1))) == B(1)


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


def test_so_is_what_does_not_fit_within_what_msgspec_does_not_know():
    @task
    def take(tree: Tree, either: A | B, *, attrs: Attrs | None = None) -> None: ...

    for call, text in [
        (lambda: take(Tree([Leaf(A("one"))]), A(1)), "Expected `int`, got `str` - at `tree.parts[0].of.x`"),
        (
            lambda: take(Tree([3]), A(1)),
            "Expected `Tree | Leaf`, got `integer` that is none of them - at `tree.parts[0]`",
        ),
        (lambda: take(Tree(), B("x")), "Expected `int`, got `str` - at `either.y`"),
        (lambda: take(Tree(), {"z": 1}), "Expected `A | B`, got `map` that is none of them - at `either`"),
        (lambda: take(Tree(), A(1), attrs=Attrs(3)), "Expected `Path`, got `int` - at `attrs.path`"),
    ]:
        with pytest.raises(BadArguments) as refused:
            call()
        assert str(refused.value).endswith(text)


def test_a_struct_keeps_its_own_rules():
    convert = decoder(translated(Closed))
    for wrong, text in [
        ({"type": "open", "path": "a"}, r"Invalid value 'open' - at `\$\.type`"),
        ({"type": "closed", "path": "a", "more": 1}, "unknown field `more`"),
    ]:
        with pytest.raises(ValueError, match=text):
            convert.decode(encode(wrong))


@dataclass
class Pair:
    left: "Pair | Twin | int"
    right: "list[Pair | Twin]"
    mark: int


@dataclass
class Twin:
    left: "Pair | Twin | int"
    right: "list[Pair | Twin]"
    mark: str


def nested(levels: int) -> Any:
    inner = nested(levels - 1) if levels else 1
    return {"left": inner, "right": [inner, inner] if levels else [], "mark": 1}


def test_a_value_is_looked_at_a_few_levels_deep_and_no_more():
    """What one user sends must not keep a worker's loop: else each level would be looked at as often as it is deep."""
    convert = decoder(translated(Pair | Twin)).decode
    looks = {levels: calls_of_fits(convert, encode(nested(levels))) for levels in (4, 7)}
    size = {levels: len(encode(nested(levels))) for levels in looks}
    assert looks[7] / looks[4] < 1.5 * size[7] / size[4]


def calls_of_fits(convert, data: bytes) -> int:
    profile = cProfile.Profile()
    profile.runcall(convert, data)
    return sum(entry.callcount for entry in profile.getstats() if getattr(entry.code, "co_name", "") == "fits")


@pytest.mark.smoke
@pytest.mark.skipif(sys.version_info < (3, 12), reason="there is no type statement before Python 3.12")
def test_aliases_may_hold_themselves():
    found: dict[str, Any] = {"A": A, "B": B, "Path": Path}
    exec(
        "type Json = dict[str, Json] | list[Json] | str | int | None\ntype Two[T] = tuple[T, A | B]\ntype No = No",
        found,
    )
    for kind, value in ((found["Json"], {"a": [1, {"b": None}]}), (found["Two"][Path], (Path("a"), B(1)))):
        assert decoder(translated(list[kind])).decode(encode([value])) == [value]
    with pytest.raises(ValueError, match="got `float`"):
        decoder(translated(found["Json"])).decode(encode({"a": [1.5]}))
    for kind in (found["Json"] | Path, found["No"]):
        with pytest.raises(TypeError, match=r"cannot be told apart|holds itself without end"):
            translated(kind)


async def test_arguments_and_results_keep_their_types_on_the_way(queue: TaskQueue):
    @task
    async def turn(tree: Tree, value: A | B) -> Path | A | B:
        assert tree == Tree([Leaf(B(1))])
        return Path("of an A") if isinstance(value, A) else value

    async with Worker(queue):
        one = await queue.enqueue(turn(Tree([Leaf(B(1))]), A(1)), user_id="anna")
        two = await queue.enqueue(turn(Tree([Leaf(B(1))]), turn(Tree([Leaf(B(1))]), B(2)).output), user_id="anna")
        assert await one.result(20) == Path("of an A")
        assert await two.result(20) == B(2)


async def test_the_class_of_what_cannot_be_sent_is_told_in_full(queue: TaskQueue):
    class Flag: ...

    Flag.__module__ = "numpy"

    @task(name="give")
    async def give() -> object:
        return Flag()

    with pytest.raises(BadArguments, match=r"Encoding objects of type numpy\.\S*Flag is unsupported"):
        task(name="take")(lambda value: value)(Flag())
    handle = await queue.enqueue(give(), user_id="anna")
    await Worker(queue).run_until_idle()
    with pytest.raises(TaskFailed, match=r"Encoding objects of type numpy\.\S*Flag is unsupported"):
        await handle.result(20)
