"""Pydantic models and types as arguments and results, wherever they are."""

import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Generic, Literal, TypedDict, TypeVar
from uuid import UUID

import pytest
from pydantic import (
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    RootModel,
    SecretStr,
    field_serializer,
    model_serializer,
)
from pydantic.dataclasses import dataclass as checked

from fairque import BadArguments, InvalidInput, NotEncodable, TaskQueue, Worker, current_task, task
from fairque.tasks.types.adapters import encode
from fairque.tasks.types.stand_in import decoder
from fairque.tasks.types.translation import translated

T = TypeVar("T")
MOMENT = datetime.fromisoformat("2030-01-02T03:04:05.000006")


class Color(Enum):
    RED = "red"


class Item(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    price: Decimal
    id: UUID = UUID(int=1)
    at: datetime = MOMENT
    color: Color = Color.RED
    tags: set[int] = Field(default_factory=set, alias="tagSet", validation_alias="tag-set")
    weight: float = float("inf")
    counts: dict[int, str] = {1: "one"}


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    age: int = 1


class Bird(BaseModel):
    wings: int
    cage: "Cage | None" = None


class Cage(BaseModel):
    birds: list[Bird]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Numbers(RootModel[list[int]]):
    pass


class Page(BaseModel, Generic[T]):
    entries: list[T]


class Told(BaseModel):
    password: SecretStr

    @field_serializer("password")
    def tell(self, password: SecretStr) -> str:
        return password.get_secret_value()


class AsText(BaseModel):
    x: int

    @model_serializer
    def text(self) -> str:
        return str(self.x)


@checked
class Checked:
    count: NonNegativeInt
    item: Item


@dataclass
class Plain:
    item: Item
    either: "Cat | Dog | int"


class Keys(TypedDict):
    item: Item


ITEM = Item(name="bolt", price=Decimal("1.10"), **{"tag-set": {1, 2}})
ARRIVE = [
    (Item, [ITEM]),
    (list[Item], [[ITEM]]),
    (dict[str, Item | None], [{"a": ITEM, "b": None}]),
    (tuple[Item, ...], [(ITEM, ITEM)]),
    (Plain, [Plain(ITEM, Dog()), Plain(ITEM, 3)]),
    (Keys, [{"item": ITEM}]),
    (Item | Cat | Plain | str, [ITEM, Cat(), Plain(ITEM, Cat()), "text"]),
    (Cat | Dog, [Cat(lives=1), Dog(age=2)]),
    (Annotated[Cat | Dog, Field(discriminator="kind")], [Cat(lives=1), Dog(age=2)]),
    (Bird, [Bird(wings=2, cage=Cage(birds=[Bird(wings=1)]))]),
    (Numbers, [Numbers([1, 2])]),
    (Numbers | Cat, [Numbers([1, 2]), Cat()]),
    (Page[Item], [Page[Item](entries=[ITEM])]),
    (Checked, [Checked(1, ITEM)]),
    (Checked | Cat, [Checked(1, ITEM), Cat()]),
    (Open, [Open(more=1)]),
    (Told, [Told(password="secret")]),
    (AnyUrl, [AnyUrl("https://a.example/b")]),
    (NonNegativeInt, [3]),
    (Annotated[bytes, Field(max_length=3)], [b"\xff"]),
    (list[Annotated[str, Field(pattern="a+")]], [["aa"]]),
]


@pytest.mark.parametrize(("kind", "values"), ARRIVE, ids=str)
def test_values_arrive_as_what_they_were(kind, values: list[object]):
    convert = decoder(translated(kind))
    for value in values:
        arrived = convert.decode(encode(value))
        assert (arrived, type(arrived)) == (value, type(value))


class Secret(BaseModel):
    login: str
    passwords: list[SecretStr]


class Nested(BaseModel):
    secret: Secret | None = None


class Twin(BaseModel):
    wings: int
    cage: str | None = None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Secret, "the field 'passwords' of Secret is masked when it is encoded"),
        (dict[str, Nested], "the field 'secret' of Nested is masked when it is encoded"),
        (SecretStr, "SecretStr is masked"),
        (Item | dict, "Item and dict cannot be told apart: both may travel as map"),
        (Bird | Twin, "Bird and Twin cannot be told apart: both may travel as map"),
        (Open | Cat, "Open and Cat cannot be told apart"),
        (AsText | str, "AsText and str cannot be told apart"),
        (AnyUrl | UUID, "AnyUrl and UUID cannot be told apart"),
    ],
    ids=str,
)
def test_what_would_not_arrive_is_refused_at_decoration(kind, reason: str):
    def take(value): ...

    take.__annotations__ = {"value": kind}
    with pytest.raises(InvalidInput, match=f"the parameter 'value' cannot be used: {reason}"):
        task(take)


def test_faults_that_pydantic_finds_name_the_parameter():
    @task
    def take(first: int, items: list[Checked], *, few: NonNegativeInt = 0, plain: Plain | None = None) -> None: ...

    bad = Item.model_construct(name=3, price="cheap")
    for call, text in [
        (lambda: take(1, [{"count": -1, "item": ITEM}]), "greater than or equal to 0 - at `items[0].count`"),
        (lambda: take(1, [], few=-1), "Input should be greater than or equal to 0 - at `few`"),
        (
            lambda: take(1, [], plain={"item": {"name": 1}, "either": 1}),
            "valid string (and 1 more) - at `plain.item.name`",
        ),
    ]:
        with pytest.raises(BadArguments) as refused:
            call()
        assert text in str(refused.value)
    with pytest.raises(NotEncodable, match="serializer warnings"):
        take(1, [Checked(1, ITEM), {"count": 1, "item": bad}])


def test_an_alias_is_taken_as_well():
    convert = decoder(translated(Item))
    assert convert.decode(encode({"name": "bolt", "price": "1.10", "tag-set": [1, 2]})) == ITEM
    assert convert.decode(encode({"name": "bolt", "price": "1.10", "tags": [1, 2]})) == ITEM


async def test_models_are_arguments_results_and_values_of_others(queue: TaskQueue):
    @task(enable_xcom=True, push_key="total")
    async def total(items: list[Item], page: Page[Cat]) -> Item:
        assert page.entries == [Cat()]
        return Item(name="all", price=sum((item.price for item in items), Decimal(0)))

    @task(name="next")
    async def following(before: Item) -> Cat | Dog:
        assert await current_task().xcom.pull("total", type=Item) == before
        return Dog(age=int(before.price))

    async with Worker(queue):
        call = following(total([ITEM] * 3, Page[Cat](entries=[Cat()])).output)
        handle = await queue.enqueue(call, user_id="anna")
        assert await handle.result(20) == Dog(age=3)


async def test_models_stand_beside_outputs_of_other_tasks(queue: TaskQueue):
    @task
    async def count() -> int:
        return 3

    @task
    async def repeat(item: Item, times: int) -> list[Item]:
        return [item] * times

    async with Worker(queue):
        handle = await queue.enqueue(repeat(ITEM, count().output), user_id="anna")
        assert await handle.result(20) == [ITEM] * 3
    with pytest.raises(NotEncodable):
        repeat(Item.model_construct(name=count().output), 1)


async def test_without_an_annotation_a_model_arrives_as_what_pydantic_dumps(queue: TaskQueue):
    @task
    async def show(value):
        return value

    handle = await queue.enqueue(show(ITEM), user_id="anna")
    await Worker(queue).run_until_idle()
    assert await handle.result(20) == ITEM.model_dump(mode="json")


def test_nobody_imports_pydantic_who_does_not_use_it():
    code = """
import sys
from dataclasses import dataclass
from pathlib import Path
from fairque import task
@dataclass
class A: x: int
@task
def take(a: A | int, path: Path) -> list[A]: ...
take(A(1), Path("a"))
assert "pydantic" not in sys.modules and "pydantic_core" not in sys.modules, "imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
