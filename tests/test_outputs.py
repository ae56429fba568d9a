"""Outputs of tasks as arguments of others: how they are encoded, and how a worker puts the results in their place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from fairque import BadArguments, InvalidInput, Task, parallel, task
from fairque.tasks.signature import resolve

examples = settings(derandomize=True, max_examples=300)


@dataclass
class Page:
    title: str
    links: list[str]


@task
def fetch(url: str) -> Page:
    return Page(url, [])


@task
def count(words: list[str]) -> int:
    return len(words)


@task
def join(first: Any, *rest: Any, sep: str = " ", **named: Any) -> str:
    return sep.join(map(str, (first, *rest, *named)))


@task
def add(left: int, right: int) -> int:
    return left + right


@task
def publish(page: Page, number: int) -> None:
    raise AssertionError((page, number))


def arguments(call: Task[Any], *results: Any) -> tuple[Any, dict[str, Any]]:
    """What the function is given when the tasks upstream have returned these results."""
    assert call.signature is not None
    values = [msgspec.msgpack.encode(result) for result in results]
    message = call.message()
    return call.signature.decode(*resolve(message.args, message.kwargs, values))


# In the producer


def test_a_task_knows_whose_outputs_it_takes() -> None:
    words, page = count(["a"]), fetch("x")
    call = join(page.output, [words.output], sep="-", other=page.output)
    assert call.upstream == (page, words)
    assert join("a", sep="b").upstream == count([]).upstream == ()


def test_an_output_is_an_extension_with_the_number_of_its_task() -> None:
    first, second = count(["a"]), count(["b"])
    call = join(second.output, first.output, second.output)
    assert msgspec.msgpack.decode(call.args) == [Ext(1, b"0"), Ext(1, b"1"), Ext(1, b"0")]
    assert call.upstream == (second, first)


def test_the_task_itself_does_as_well_as_its_output() -> None:
    words = count(["a"])
    assert join(words).args == join(words.output).args
    assert join([words, words.output]).upstream == (words,)


def test_two_equal_calls_are_two_tasks() -> None:
    assert len(join(count([]).output, count([]).output).upstream) == 2


def test_copies_with_other_options_take_the_same_outputs() -> None:
    words = count(["a"])
    call = join(words.output)
    copy = call.options(user_id="acme", priority=4)
    assert (copy.upstream, copy.args) == ((words,), call.args)


def test_the_shape_of_a_call_is_checked_at_once() -> None:
    words = count(["a"])
    for wrong in (
        lambda: add(words.output),  # type: ignore[call-arg]
        lambda: add(1, 2, words.output),  # type: ignore[call-arg]
        lambda: add(words.output, rigth=1),  # type: ignore[call-arg]
    ):
        with pytest.raises(BadArguments, match="do not fit"):
            wrong()


def test_a_task_that_keeps_no_result_has_no_output() -> None:
    with pytest.raises(InvalidInput, match=r"the output of '.*count' cannot be an argument: .*result_ttl=0"):
        join(count([]).options(result_ttl=0).output)
    with pytest.raises(InvalidInput, match="result_ttl=0"):
        Task.create(payload={"words": count.options(result_ttl=0)([]).output})


def test_a_pipeline_has_no_output() -> None:
    with pytest.raises(BadArguments, match="a pipeline has no output"):
        join(count([]) >> count([]))


def test_what_cannot_be_encoded_is_named_with_outputs_or_without() -> None:
    for wrong in ((object(),), (count([]).output, object())):
        with pytest.raises(BadArguments, match="Encoding objects of type object is unsupported"):
            join(*wrong)


def test_an_output_cannot_be_a_key() -> None:
    words: Any = count([]).output
    for key in (words, (1, words)):
        with pytest.raises(BadArguments, match="cannot be part of a key"):
            join({key: 1})


def test_the_extension_of_outputs_is_not_for_others() -> None:
    with pytest.raises(BadArguments, match="extension 1 is taken"):
        join(Ext(1, b"0"), count([]).output)
    assert join(Ext(2, b"0"), count([]).output).upstream


def test_an_output_can_only_be_passed_on() -> None:
    words = count(["a"]).output
    for use in (lambda: f"{words}", lambda: str(words), lambda: bool(words), lambda: "".join([f"{words!s}"])):
        with pytest.raises(InvalidInput, match="known when the task has run"):
            use()
    assert repr(words).startswith("<output of <Task ")
    assert "'a'" not in repr(words)


# In the worker


def test_results_arrive_as_the_arguments_they_stand_for() -> None:
    words = count(["a"])
    assert arguments(add(words.output, 2), 40) == ((40, 2), {})
    assert arguments(add(1, right=words.output), 40) == ((1,), {"right": 40})


def test_results_are_converted_to_the_annotations() -> None:
    call = publish(fetch("x").output, number=count([]).output)
    assert arguments(call, Page("x", ["y"]), 7) == ((Page("x", ["y"]),), {"number": 7})


def test_results_that_do_not_fit_are_bad_arguments() -> None:
    with pytest.raises(BadArguments, match=r"Expected `int`, got `str`"):
        arguments(add(count([]).output, 2), "forty")


def test_results_arrive_inside_of_lists_tuples_and_dicts() -> None:
    words, page = count([]), fetch("x")
    call = join([words.output, (page.output, {"deep": [words.output]})], named={"page": page.output})
    args, named = arguments(call, 3, "page")
    assert args == ([3, ["page", {"deep": [3]}]],)
    assert named == {"named": {"page": "page"}}


def test_what_stands_beside_an_output_arrives_as_it_was() -> None:
    beside = {"when": datetime(2026, 1, 2, tzinfo=UTC), "n": 2**64 - 1, 3: b"\xff", "f": 0.1, "ext": Ext(5, b"x")}
    args, _ = arguments(join(beside, count([]).output), None)
    assert args == (beside, None)


def test_a_payload_may_hold_outputs() -> None:
    words = count(["a"])
    made = Task.create(payload={"all": [words.output, 1]}, name="report")
    assert made.upstream == (words,)
    resolved, _ = resolve(made.message().args, None, [b"\x2a"])
    assert msgspec.msgpack.decode(resolved) == {"all": [42, 1]}
    assert parallel(made).nodes == (words, made)


@pytest.mark.parametrize(
    ("link", "values"), [(b"1", [b"\x01"]), (b"x", [b"\x01"]), (b"-1", [b"\x01"]), (b"", [b"\x01"]), (b"0", [b""])]
)
def test_a_number_without_a_result_is_bad_arguments(link: bytes, values: list[bytes]) -> None:
    args = msgspec.msgpack.encode([Ext(1, link)])
    with pytest.raises(BadArguments):
        join.signature.decode(*resolve(args, None, values))


def test_corrupt_arguments_are_bad_arguments() -> None:
    for corrupt in (b"", b"\x92\x01", b"\xc1", b"\x91" * 100_000 + b"\x01"):
        with pytest.raises(BadArguments):
            resolve(corrupt, None, [])


scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5)
)
plain = st.recursive(
    scalars | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


class Numbered(msgspec.Struct, frozen=True):
    """The output of task number …, in what hypothesis draws."""

    number: int


linked = st.recursive(
    scalars | st.builds(Numbered, st.integers(0, 3)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def filled(value: Any, by_number: list[Any]) -> Any:
    match value:
        case Numbered():
            return by_number[value.number]
        case list():
            return [filled(each, by_number) for each in value]
        case dict():
            return {key: filled(each, by_number) for key, each in value.items()}
    return value


@examples
@given(st.lists(linked, min_size=1, max_size=3), st.lists(plain, min_size=4, max_size=4))
def test_any_arguments_arrive_with_their_results(values: list[Any], results: list[Any]) -> None:
    tasks = [count([str(number)]) for number in range(4)]
    call = join(*filled(values, [each.output for each in tasks]), named=filled(values, list(tasks)))
    of_call = [results[tasks.index(each)] for each in call.upstream]
    args, named = arguments(call, *of_call)
    assert list(args) == named["named"] == filled(values, results)
