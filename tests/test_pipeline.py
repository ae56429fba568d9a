"""Pipelines: what the operators connect, in which order, and what a graph tells of itself. Nothing here needs Redis."""

from __future__ import annotations

import operator
import re
import time
from contextlib import suppress
from functools import reduce
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairque import InvalidInput, Pipeline, Task, parallel, sequential, task
from fairque.tasks.pipeline import Composable

Edges = set[tuple[Composable, Composable]]
examples = settings(derandomize=True, max_examples=300)


def node(name: str = "", *upstream: Task[Any], **options: Any) -> Task[Any]:
    return Task.create(name=name, payload={"inputs": [each.output for each in upstream]}, **options)


def nodes(names: str) -> list[Task[Any]]:
    return [node(name) for name in names]


def drawn(pipeline: Pipeline) -> str:
    """The edges by name, sorted: ``"ab ac"`` for ``a >> [b, c]``."""
    names = pipeline.names()
    return " ".join(sorted(names[earlier] + names[later] for earlier, later in pipeline.edges))


@task
def extract(url: str) -> bytes:
    return url.encode()


@task
def transform(raw: bytes) -> list[str]:
    return [raw.decode()]


@task
def load(rows: list[str]) -> int:
    return len(rows)


# The operators


def test_a_chain_runs_from_left_to_right() -> None:
    a, b, c = nodes("abc")
    assert drawn(a >> b >> c) == "ab bc"


def test_a_chain_may_be_written_from_right_to_left() -> None:
    a, b, c = nodes("abc")
    assert drawn(c << b << a) == "ab bc"


def test_parts_side_by_side_do_not_wait_for_each_other() -> None:
    a, b, c = nodes("abc")
    assert drawn(a | b | c) == ""
    assert (a | b | c).nodes == (a, b, c)


def test_what_comes_after_a_fan_waits_for_all_of_it() -> None:
    a, b, c, d = nodes("abcd")
    assert drawn(a >> (b | c) >> d) == "ab ac bd cd"


def test_lists_may_stand_on_either_side_of_every_operator() -> None:
    a, b, c = nodes("abc")
    assert drawn(a >> [b, c]) == drawn([b, c] << a) == "ab ac"
    assert drawn([a, b] >> c) == drawn(c << [a, b]) == "ac bc"
    assert drawn((a, b) >> c) == "ac bc"
    assert ([a, b] | c).nodes == (a | [b, c]).nodes == (a, b, c)


def test_lists_nest_to_any_depth() -> None:
    a, b, c, d, e = nodes("abcde")
    assert drawn(a >> [b, (c, [d >> e])]) == "ab ac ad de"
    deep: Any = [b]
    for _ in range(5000):
        deep = [deep, c]
    assert drawn(a >> deep) == "ab ac"


def test_a_list_that_holds_itself_is_just_its_tasks() -> None:
    a, b = nodes("ab")
    loop: list[Any] = [b]
    loop.append(loop)
    assert drawn(a >> loop) == "ab"


def test_functions_do_what_the_operators_do() -> None:
    a, b, c, d = nodes("abcd")
    assert drawn(sequential(a, [b, c], d)) == "ab ac bd cd"
    assert drawn(sequential([a, b], [c, d])) == "ac ad bc bd"
    assert drawn(parallel(a >> b, [c, d])) == "ab"


def test_one_task_alone_is_a_pipeline_as_well() -> None:
    [a] = nodes("a")
    alone = parallel(a)
    assert alone.nodes == alone.roots == alone.leaves == (a,)
    assert sequential(a).edges == ()


def test_nesting_keeps_the_edges_inside() -> None:
    a, b, c, d, e, f = nodes("abcdef")
    assert drawn(a >> ((b >> c) | (d >> e)) >> f) == "ab ad bc cf de ef"


def test_a_node_used_twice_is_one_node() -> None:
    a, b, c, d = nodes("abcd")
    diamond = (a >> b >> d) | (a >> c >> d)
    assert drawn(diamond) == "ab ac bd cd"
    assert diamond.nodes == (a, b, c, d)
    assert diamond.dependencies(d) == (b, c)


def test_what_follows_a_joined_graph_follows_its_last_nodes_only() -> None:
    a, b, c, d, e = nodes("abcde")
    assert drawn(((a >> b) | (b >> c)) >> d) == "ab bc cd"
    assert drawn(e >> ((a >> b) | (b >> c))) == "ab bc ea"


def test_equal_calls_are_two_nodes() -> None:
    first, second = extract("x"), extract("x")
    assert (first >> second).nodes == (first, second)


def test_building_changes_nothing_that_was_there() -> None:
    a, b, c, d = nodes("abcd")
    inner = a >> b
    before = inner.nodes, inner.edges, str(inner)
    for built in (inner >> c, c >> inner, inner | (a >> d), [inner, d] >> c):
        assert len(built.nodes) > 2
    assert (inner.nodes, inner.edges, str(inner)) == before


# What is refused


@pytest.mark.parametrize(
    ("expression", "cycle"),
    [
        ("a >> b >> a", "a → b → a"),
        ("a >> a", "a → a"),
        ("(a >> b) | (b >> a)", "a → b → a"),
        ("(a >> b) | (b >> c) | (c >> a)", "a → b → c → a"),
        ("c >> a >> b >> [c]", "c → a → b → c"),
        ("sequential(a, b, c, [b])", "b → c → b"),
    ],
)
def test_a_cycle_is_refused_and_named(expression: str, cycle: str) -> None:
    a, b, c = nodes("abc")
    with pytest.raises(InvalidInput, match=re.escape(f"a cycle: {cycle}") + "$"):
        eval(expression, {"a": a, "b": b, "c": c, "sequential": sequential})


def test_a_cycle_through_an_argument_is_refused() -> None:
    a = node("a")
    b = node("b", a)
    c = node("c", b)
    with pytest.raises(InvalidInput, match="a cycle: c → a → b → c"):
        c >> a
    with pytest.raises(InvalidInput, match="a cycle: "):
        (b >> node("x")) | (node("y") >> c) | (c >> b)


def test_a_long_cycle_is_named_in_short() -> None:
    chain = [node(f"t{at}") for at in range(1000)]
    with pytest.raises(InvalidInput) as caught:
        sequential(*chain, chain[0])
    assert "t0 → t1 → " in str(caught.value)
    assert "989 more" in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("wrong", [3, None, "text", b"bytes", {"a": 1}, [1], object()])
@pytest.mark.parametrize("operation", [operator.rshift, operator.lshift, operator.or_, parallel, sequential])
def test_what_is_no_part_is_refused_by_its_type(wrong: Any, operation: Any) -> None:
    [a] = nodes("a")
    for operands in ((a, wrong), (wrong, a)):
        with pytest.raises(InvalidInput, match="a pipeline takes tasks, pipelines and lists of them, not "):
            operation(*operands)


def test_a_function_that_was_not_called_is_refused_with_a_hint() -> None:
    with pytest.raises(InvalidInput, match="not TaskFunction: call it first"):
        extract("x") >> transform  # type: ignore[operator]


def test_an_empty_list_is_refused_because_it_would_cut_the_order() -> None:
    a, b = nodes("ab")
    with pytest.raises(InvalidInput, match="an empty list"):
        a >> [] >> b
    with pytest.raises(InvalidInput, match="an empty list"):
        a >> [b, []]
    for empty in (parallel, sequential):
        with pytest.raises(InvalidInput, match="at least one task"):
            empty()


def test_a_node_of_another_pipeline_is_not_known() -> None:
    a, b, c = nodes("abc")
    with pytest.raises(InvalidInput, match="'c' is not a node"):
        (a >> b).dependencies(c)


# Arguments


def test_the_tasks_whose_outputs_are_arguments_are_in_the_graph() -> None:
    first = extract("s3://a")
    second = transform(first.output)
    last = load(second.output)
    graph = parallel(last)
    assert graph.nodes == (first, second, last)
    assert graph.edges == ((first, second), (second, last))
    assert (graph.roots, graph.leaves) == ((first,), (last,))


def test_order_and_arguments_go_together() -> None:
    a = node("a")
    b = node("b", a)
    c = node("c", a, b)
    assert drawn(a >> b >> c) == "ab ac bc"
    assert drawn(a | b | c) == drawn(c | b | a) == "ab ac bc"


def test_operators_connect_what_was_written_down_not_what_came_along() -> None:
    a, x = node("a"), node("x")
    b = node("b", a)
    assert drawn(x >> b) == "ab xb"
    assert drawn(x >> (a | b)) == "ab xa"
    assert drawn((a | b) >> x) == "ab bx"
    c = node("c", b)
    assert drawn((a | c) >> x) == "ab ax bc cx"
    assert drawn(x >> (a | c)) == "ab bc xa xc"


# What a graph tells of itself


def test_nodes_come_after_what_they_need_and_else_as_written() -> None:
    a, b, c, d = nodes("abcd")
    assert (d | c | a >> b).nodes == (d, c, a, b)
    assert ((a >> d) | (b >> a)).nodes == (b, a, d)
    assert ((a | c | b | d) | (a >> c)).nodes == (a, c, b, d)
    assert parallel(node("last", d, a)).nodes[:2] == (d, a)


def test_roots_need_nothing_and_nothing_needs_leaves() -> None:
    a, b, c, d, e = nodes("abcde")
    graph = [a, b] >> c >> [d, e]
    assert (graph.roots, graph.leaves) == ((a, b), (d, e))


def test_names_are_ids_or_the_last_part_of_a_function_name() -> None:
    graph = extract("x").options(task_id="static id") >> transform(b"x") >> load([]) >> node()
    assert list(graph.names().values()) == ["static id", "transform", "load", "task"]


def test_equal_names_are_numbered_and_an_id_keeps_its_own() -> None:
    graph = sequential(
        extract("a"), extract("b"), extract("c"), node("x", task_id="extract"), node("y", task_id="extract-2")
    )
    assert list(graph.names().values()) == ["extract-3", "extract-4", "extract-5", "extract", "extract-2"]
    twice = node("x", task_id="id") | node("y", task_id="id")
    assert list(twice.names().values()) == ["id", "id-2"]


def test_the_tree_prints_a_shared_node_once() -> None:
    a, b, c, d, e = nodes("abcde")
    assert str((a >> [b, c] >> d >> e) | node("f")).splitlines() == [
        "a",
        "├── b",
        "│   └── d",
        "│       └── e",
        "└── c",
        "    └── d (above)",
        "f",
    ]


def test_the_tree_keeps_every_name_on_its_line() -> None:
    assert str(node("a\nb") >> node("c")).splitlines() == ["a\\nb", "└── c"]


def test_the_repr_is_short() -> None:
    a, b = nodes("ab")
    assert (repr(parallel(a)), repr(a >> b)) == ("<Pipeline of 1 task>", "<Pipeline of 2 tasks>")


def test_the_diagram_is_a_mermaid_flowchart() -> None:
    a, b, c = nodes("abc")
    assert (a >> [b, c]).to_mermaid().splitlines() == [
        "flowchart LR",
        '    n1["a"]',
        '    n2["b"]',
        '    n3["c"]',
        "    n1 --> n2",
        "    n1 --> n3",
    ]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_no_name_breaks_out_of_the_diagram(name: str) -> None:
    label = node(name, task_id=name[:100]) >> node("end")
    [line] = [line for line in label.to_mermaid().split("\n") if line.startswith("    n1[")]
    inside = line.removeprefix('    n1["').removesuffix('"]')
    assert not set(inside) & set('"<>&`{}[]()|\\:\r')
    assert re.sub(r"#(\d+);", lambda code: chr(int(code[1])), inside) == name[:100]


# Size


def timed(build: Any) -> Pipeline:
    start = time.process_time()
    built = build()
    assert time.process_time() - start < 5  # seconds; it takes some hundredths, unless it has become quadratic
    assert isinstance(built, Pipeline)
    return built


@pytest.mark.parametrize(
    "build", [lambda some: reduce(operator.rshift, some), lambda some: sequential(*some)], ids=["operators", "function"]
)
def test_a_chain_of_a_thousand(build: Any) -> None:
    chain = [node("t") for _ in range(1000)]
    graph = timed(lambda: build(chain))
    assert graph.nodes == tuple(chain)
    assert len(graph.edges) == 999
    assert str(graph).count("\n") == 999


def test_a_chain_of_a_thousand_backwards() -> None:
    chain = [node("t") for _ in range(1000)]
    assert timed(lambda: reduce(operator.lshift, chain)).nodes == tuple(reversed(chain))


@pytest.mark.parametrize(
    "build",
    [lambda some, last: reduce(operator.or_, some) >> last, lambda some, last: some >> last],
    ids=["operators", "list"],
)
def test_a_fan_in_of_a_thousand(build: Any) -> None:
    fan, last = [node("t") for _ in range(1000)], node("last")
    graph = timed(lambda: build(fan, last))
    assert graph.dependencies(last) == graph.roots == tuple(fan)
    assert graph.to_mermaid().count("-->") == 1000


@pytest.mark.parametrize(
    "build",
    [lambda some: parallel(some[-1]), lambda some: reduce(operator.rshift, some)],
    ids=["last", "operators"],
)
def test_a_chain_of_a_thousand_arguments(build: Any) -> None:
    chain = [node("t")]
    while len(chain) < 1000:
        chain.append(node("t", chain[-1]))
    graph = timed(lambda: build(chain))
    assert graph.nodes == tuple(chain)
    assert len(graph.edges) == 999


def test_a_thousand_branches_between_two_nodes() -> None:
    a, z = nodes("az")
    graph = timed(lambda: reduce(operator.or_, [a >> node("t") >> z for _ in range(1000)]))
    assert (graph.roots, graph.leaves, len(graph.edges)) == ((a,), (z,), 2000)


# Any nesting at all, held against the definition


class Refused(Exception):
    """The definition knows no such graph."""


class Definition:
    """What a pipeline means, in sets and without a thought for speed."""

    def __init__(self, members: set[Composable], edges: Edges) -> None:
        self.members = members
        self.edges = edges | {edge for member in members for edge in self._brought_by(member)}
        if self._has_cycle():
            raise Refused

    @staticmethod
    def of(expression: Any, leaves: list[Task[Any]]) -> Definition:
        if isinstance(expression, int):
            return Definition({leaves[expression]}, set())
        way, *rest = expression
        first, *others = [Definition.of(each, leaves) for each in rest]
        return reduce(Definition.then if way in ("sequential", ">>", "<<") else Definition.beside, others, first)

    def then(self, other: Definition) -> Definition:
        between = set(product(self._ends(0), other._ends(1)))
        return Definition(self.members | other.members, self.edges | other.edges | between)

    def beside(self, other: Definition) -> Definition:
        return Definition(self.members | other.members, self.edges | other.edges)

    def _ends(self, side: int) -> set[Composable]:
        return self.members - {edge[side] for edge in self.edges if edge[1 - side] in self.members}

    def _brought_by(self, of: Composable) -> Edges:
        assert isinstance(of, Task)
        return {edge for each in of.upstream for edge in [(each, of), *self._brought_by(each)]}

    def _has_cycle(self) -> bool:
        left = self.edges
        while left and (rest := {edge for edge in left if edge[0] in {later for _, later in left}}) != left:
            left = rest
        return bool(left)


def built_of(expression: Any, leaves: list[Task[Any]], seen: list[Pipeline]) -> Any:
    if isinstance(expression, int):
        return leaves[expression]
    way, *rest = expression
    parts = [built_of(each, leaves, seen) for each in rest]
    if way == "list":
        return parts
    made = _BUILD[way](parts)
    seen.append(made)
    return made


def folded(fold: Any) -> Any:
    return lambda parts: reduce(fold, parts[1:], sequential(parts[0]))


_BUILD: dict[str, Any] = {
    "sequential": lambda parts: sequential(*parts),
    "parallel": lambda parts: parallel(*parts),
    ">>": folded(operator.rshift),
    "<<": lambda parts: reduce(operator.lshift, parts[-2::-1], sequential(parts[-1])),
    "|": folded(operator.or_),
    "reflected |": lambda parts: reduce(lambda later, part: part | later, parts[-2::-1], parallel(parts[-1])),
}


def expressions(leaves: Any) -> Any:
    ways = st.sampled_from([*_BUILD, "list"])
    return st.recursive(
        leaves,
        lambda inner: st.builds(lambda way, parts: (way, *parts), ways, st.lists(inner, min_size=1, max_size=4)),
        max_leaves=12,
    )


def some_leaves(needs: list[list[int]]) -> list[Task[Any]]:
    """Tasks 0, 1, 2 …, each with earlier ones as arguments."""
    leaves: list[Task[Any]] = []
    for at, needed in enumerate(needs):
        leaves.append(node(f"t{at}", *(leaves[each % at] for each in needed if at)))
    return leaves


arguments = st.lists(st.lists(st.integers(0, 9), max_size=2), min_size=6, max_size=6)
no_arguments = st.just([[]] * 6)


@examples
@given(expressions(st.integers(0, 5)), no_arguments | arguments)
def test_any_nesting_has_the_edges_of_its_definition(expression: Any, needs: list[list[int]]) -> None:
    leaves = some_leaves(needs)
    try:
        meant = Definition.of(expression, leaves)
    except Refused:
        with pytest.raises(InvalidInput, match="a cycle"):
            parallel(built_of(expression, leaves, []))
        return
    graph = parallel(built_of(expression, leaves, []))
    assert set(graph.edges) == meant.edges
    assert len(graph.edges) == len(meant.edges)
    assert set(graph.nodes) == meant.members | {each for edge in meant.edges for each in edge}


@examples
@given(expressions(st.integers(0, 5)), no_arguments | arguments)
def test_any_order_of_nodes_is_topological_and_repeatable(expression: Any, needs: list[list[int]]) -> None:
    leaves = some_leaves(needs)
    try:
        graph, again = (parallel(built_of(expression, leaves, [])) for _ in range(2))
    except InvalidInput:
        return
    place = {each: at for at, each in enumerate(graph.nodes)}
    assert len(place) == len(graph.nodes)
    assert all(place[earlier] < place[later] for earlier, later in graph.edges)
    assert (graph.nodes, graph.edges, graph.names()) == (again.nodes, again.edges, again.names())
    assert all(name in str(graph) and name in graph.to_mermaid() for name in graph.names().values())


@examples
@given(expressions(st.integers(0, 5)), no_arguments | arguments, st.integers(0, 5))
def test_no_use_of_a_pipeline_changes_it(expression: Any, needs: list[list[int]], other: int) -> None:
    leaves = some_leaves(needs)
    parts: list[Pipeline] = []
    with suppress(InvalidInput):  # then those that were complete before are looked at
        built_of(expression, leaves, parts)
    before = [(part.nodes, part.edges, str(part)) for part in parts]
    for part in parts:
        for use in (operator.rshift, operator.lshift, operator.or_):
            try:
                use(part, leaves[other])
            except InvalidInput:
                continue
    assert [(part.nodes, part.edges, str(part)) for part in parts] == before
