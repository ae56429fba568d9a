"""Which task comes after which: ``>>``, ``<<`` and ``|`` as a pure, immutable graph.

::

    extract >> transform >> load             load << transform << extract
    extract >> (resize | tag) >> publish     extract >> [resize, tag] >> publish

``P >> Q`` puts every last node of P before every first node of Q; ``P | Q`` adds no edge. Python binds ``>>`` tighter
than ``|``, so ``a >> b | c`` is ``(a >> b) | c``. A node is known by its identity: used twice, it is one node.

A node may bring nodes with it: those in its `upstream`, whose outputs are its arguments. They are nodes of the graph
like all others, but operators connect only what was written down: ``a >> load(extract().output)`` lets `extract`
start at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from heapq import heapify, heappop, heappush
from typing import Any, TypeAlias

from fairque.errors import InvalidInput, WrongType

__all__ = ["Composable", "Part", "Pipeline", "Unfinished", "parallel", "sequential"]

Part: TypeAlias = "Composable | Unfinished | Sequence[Composable | Unfinished | list[Any] | tuple[Any, ...]]"
# On the left of an operator a type checker takes a nested list for a list of objects.
Parts: TypeAlias = "list[Any] | tuple[Any, ...]"
Needs: TypeAlias = "Mapping[Composable, tuple[Composable, ...]]"
_SHOWN = 12  # nodes of a cycle that its error names


class Composable:
    """What the operators connect: a task or a pipeline. Lists and tuples may stand on either side."""

    __slots__ = ()

    def __rshift__(self, later: Part) -> Pipeline:
        return sequential(self, later)

    def __rrshift__(self, earlier: Parts) -> Pipeline:
        return sequential(earlier, self)

    def __lshift__(self, earlier: Part) -> Pipeline:
        return sequential(earlier, self)

    def __rlshift__(self, later: Parts) -> Pipeline:
        return sequential(self, later)

    def __or__(self, other: Part) -> Pipeline:
        return parallel(self, other)

    def __ror__(self, other: Parts) -> Pipeline:
        return parallel(other, self)

    @property
    def _fixed_name(self) -> str | None:
        return None

    @property
    def _short_name(self) -> str:
        return type(self).__name__


class Unfinished:
    """What becomes a node by what comes before it. It stands on the right of ``>>``, alone or in a list."""

    __slots__ = ()

    def after(self, earlier: Sequence[Composable]) -> Composable:
        """The node, behind these."""
        raise NotImplementedError

    def __rrshift__(self, earlier: Parts) -> Pipeline:
        return sequential(earlier, self)


class Pipeline(Composable):
    """Nodes and what each of them needs. Made by the operators, `parallel` and `sequential`; never changed."""

    __slots__ = ("_heads", "_members", "_needs", "_order", "_tails")

    def __init__(
        self,
        needs: Needs,
        members: AbstractSet[Composable],
        heads: Sequence[Composable],
        tails: Sequence[Composable],
    ) -> None:
        self._needs = needs  # of every node, closed: what a node needs is a key as well
        self._members = members  # the nodes written down; the others came as somebody's upstream
        self._heads = heads  # members that need no member: what `>>` puts after something
        self._tails = tails  # members that no member needs: what `>>` puts before something
        self._order: tuple[Composable, ...] | None = None

    @property
    def nodes(self) -> tuple[Composable, ...]:
        """Every node after those it needs; among nodes that could come next, in the order they were written down."""
        if self._order is None:
            self._order = _ordered(self._needs)
        return self._order

    @property
    def edges(self) -> tuple[tuple[Composable, Composable], ...]:
        """Pairs of a node and one that needs it."""
        return tuple((needed, node) for node in self.nodes for needed in self._needs[node])

    @property
    def roots(self) -> tuple[Composable, ...]:
        """The nodes that need nothing."""
        return tuple(node for node in self.nodes if not self._needs[node])

    @property
    def leaves(self) -> tuple[Composable, ...]:
        """The nodes that nothing needs."""
        needed = _all_needed(self._needs, self._needs)
        return tuple(node for node in self.nodes if node not in needed)

    def dependencies(self, node: Composable) -> tuple[Composable, ...]:
        """What a node needs directly. Raises `InvalidInput` for one that is not in here."""
        try:
            return self._needs[node]
        except KeyError:
            raise InvalidInput(f"{_shown(_name_of(node))!r} is not a node of this pipeline") from None

    def names(self) -> dict[Composable, str]:
        """A readable name for every node, unique in this pipeline.

        The static `task_id` where a node has one, else the last part of its function's name; ``-2``, ``-3`` … tell
        equal ones apart.
        """
        return _names(self.nodes)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart."""
        names = self.names()
        ids = {node: f"n{number}" for number, node in enumerate(names, 1)}
        lines = [f'    {ids[node]}["{_mermaid_label(name)}"]' for node, name in names.items()]
        lines += [f"    {ids[needed]} --> {ids[node]}" for needed, node in self.edges]
        return "\n".join(["flowchart LR", *lines])

    def __str__(self) -> str:
        """The graph as a tree of text, a line per node and, for a node that needs several, one more for each."""
        return "\n".join(_tree_lines(self.roots, _dependents(self._needs, self.nodes), self.names()))

    def __repr__(self) -> str:
        count = len(self._needs)
        return f"<Pipeline of {count} task{'s' if count > 1 else ''}>"


def parallel(*parts: Part) -> Pipeline:
    """All parts in one pipeline, none waiting for another: ``a | b | c``.

    Raises:
        InvalidInput: There are no parts, or what is given is no part, or the parts contradict each other's order.
    """
    return _parallel(parts, ())


def _parallel(parts: Sequence[Any], earlier: Sequence[Composable]) -> Pipeline:
    builder = _Builder()
    for part in _flattened(parts, earlier):
        builder.beside(_graph(part, builder.needs, earlier))
    return builder.built()


def sequential(*parts: Part) -> Pipeline:
    """Every part after the one before it: ``a >> b >> c``. A list counts as one part, and is parallel.

    Raises:
        InvalidInput: There are no parts, or what is given is no part, or a node would wait for itself.
    """
    builder = _Builder()
    for part in parts:
        builder.then(_graph(part, builder.needs, builder.tails))
    return builder.built()


class _Builder:
    """A pipeline while it grows. Nobody else sees its collections before they are complete.

    Chains and fans of a thousand nodes are built one operator at a time. So each step costs copies in C and what is
    new, and the whole graph is searched for a cycle only when a step may have closed one.
    """

    def __init__(self) -> None:
        self.needs: dict[Composable, tuple[Composable, ...]] = {}
        self.members: set[Composable] = set()
        self.heads: list[Composable] = []
        self.tails: list[Composable] = []
        self.overlap = False
        self.may_cycle = False

    def beside(self, graph: Pipeline) -> None:
        common = self._merge(graph)
        self.overlap |= common > 0
        # A way back takes two nodes in common, and an edge that is not from an argument: those lead to new nodes only.
        self.may_cycle |= common > 1 and len(graph._members) > 1
        self.heads += graph._heads
        self.tails += graph._tails

    def then(self, graph: Pipeline) -> None:
        # What is here leads to its tails, and they to all members of the other: no member may be here already.
        self.may_cycle |= not self.needs.keys().isdisjoint(graph._members)
        self._merge(graph)
        for head in graph._heads:
            self.needs[head] = _union(self.needs[head], self.tails)
        self.heads = self.heads or list(graph._heads)
        self.tails = list(graph._tails)

    def built(self) -> Pipeline:
        if not self.members:
            raise InvalidInput("a pipeline needs at least one task")
        if self.may_cycle:
            _ordered(self.needs)
        if self.overlap:
            needed = _all_needed(self.needs, self.members)
            self.heads = [node for node in dict.fromkeys(self.heads) if self.members.isdisjoint(self.needs[node])]
            self.tails = [node for node in dict.fromkeys(self.tails) if node not in needed]
        return Pipeline(self.needs, self.members, self.heads, self.tails)

    def _merge(self, graph: Pipeline) -> int:
        """Take in the nodes; returns how many were here already."""
        common = self.needs.keys() & graph._needs.keys()
        both = {node: _union(self.needs[node], graph._needs[node]) for node in common}
        self.needs.update(graph._needs)
        self.needs.update(both)
        self.members |= graph._members
        return len(common)


def _after(part: Unfinished, earlier: Sequence[Composable]) -> Composable:
    if not earlier:
        raise InvalidInput(f"{part!r} takes the output of what comes before it, and nothing does: call it first")
    return part.after(earlier)


def _graph(part: Part, known: Needs, earlier: Sequence[Composable]) -> Pipeline:
    """A part as a graph of its own; what a single node brings with it is followed up to what is known."""
    if isinstance(part, Unfinished):
        part = _after(part, earlier)
    if isinstance(part, Pipeline):
        return part
    if not isinstance(part, Composable):
        return _parallel((part,), earlier)
    needs: dict[Composable, tuple[Composable, ...]] = {}
    stack = [part]
    while stack:
        node = stack.pop()
        if node not in needs:
            needs[node] = upstream = _union(getattr(node, "upstream", ()), ())
            stack.extend(() if node in known else reversed(upstream))
    return Pipeline(needs, {part}, [part], [part])


def _flattened(parts: Sequence[Any], earlier: Sequence[Composable]) -> Iterator[Composable]:
    """The tasks and pipelines in lists of any nesting, behind those. A list met again says nothing new."""
    seen: set[int] = set()
    stack: list[Any] = [*reversed(parts)]
    while stack:
        part = stack.pop()
        if isinstance(part, Composable):
            yield part
        elif isinstance(part, Unfinished):
            yield _after(part, earlier)
        elif not isinstance(part, Sequence) or isinstance(part, (str, bytes, bytearray)):
            hint = ": call it first, to get a task" if callable(part) else ""
            raise WrongType(f"a pipeline takes tasks, pipelines and lists of them, not {type(part).__name__}{hint}")
        elif not part:
            raise InvalidInput("an empty list in a pipeline: what comes before it and after it would not be connected")
        elif id(part) not in seen:
            seen.add(id(part))
            stack.extend(reversed(part))


def _union(first: Sequence[Composable], second: Sequence[Composable]) -> tuple[Composable, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _all_needed(needs: Needs, nodes: AbstractSet[Composable] | Needs) -> set[Composable]:
    return set().union(*(needs[node] for node in nodes))


def _dependents(needs: Needs, nodes: Sequence[Composable]) -> dict[Composable, list[Composable]]:
    found: dict[Composable, list[Composable]] = {node: [] for node in nodes}
    for node in nodes:
        for needed in needs[node]:
            found[needed].append(node)
    return found


def _ordered(needs: Needs) -> tuple[Composable, ...]:
    """Kahn's algorithm (CACM 5:11, 1962), the earliest written first. Raises `InvalidInput` for a cycle."""
    nodes = list(needs)
    place = {node: at for at, node in enumerate(nodes)}
    dependents = _dependents(needs, nodes)
    missing = {node: len(needed) for node, needed in needs.items()}
    ready = [at for at, node in enumerate(nodes) if not missing[node]]
    heapify(ready)
    order: list[Composable] = []
    while ready:
        node = nodes[heappop(ready)]
        order.append(node)
        for dependent in dependents[node]:
            missing[dependent] -= 1
            if not missing[dependent]:
                heappush(ready, place[dependent])
    if len(order) < len(nodes):
        raise InvalidInput(f"a cycle: {_cycle_text(_cycle(needs, set(nodes).difference(order)))}")
    return tuple(order)


def _cycle(needs: Needs, left: set[Composable]) -> list[Composable]:
    """A cycle among nodes that never became ready, in the order in which they would run, the first one repeated."""
    node = next(node for node in needs if node in left)
    path: dict[Composable, int] = {}
    while node not in path:
        path[node] = len(path)
        node = next(needed for needed in needs[node] if needed in left)
    ring = list(path)[path[node] :][::-1]
    place = {node: at for at, node in enumerate(needs)}
    first = ring.index(min(ring, key=place.__getitem__))
    return [*ring[first:], *ring[: first + 1]]


def _cycle_text(cycle: Sequence[Composable]) -> str:
    names = _names(dict.fromkeys(cycle))
    shown = [_shown(names[node]) for node in cycle]
    if len(shown) > _SHOWN:
        shown = [*shown[: _SHOWN // 2], f"… {len(shown) - _SHOWN} more …", *shown[-_SHOWN // 2 :]]
    return " → ".join(shown)


def _name_of(node: Composable) -> str:
    return node._fixed_name or node._short_name


def _names(nodes: Sequence[Composable] | Mapping[Composable, Any]) -> dict[Composable, str]:
    taken: dict[str, Composable] = {}
    for node in nodes:
        if node._fixed_name is not None:
            taken.setdefault(node._fixed_name, node)
    found = {node: name for name, node in taken.items()}
    counts: dict[str, int] = {}
    for node in nodes:
        if node not in found:
            name = found[node] = _free_name(_name_of(node), taken, counts)
            taken[name] = node
    return {node: found[node] for node in nodes}


def _free_name(name: str, taken: Mapping[str, Any], counts: dict[str, int]) -> str:
    free = name
    while free in taken:
        counts[name] = counts.get(name, 1) + 1
        free = f"{name}-{counts[name]}"
    return free


def _shown(name: str) -> str:
    """A name on one line of text."""
    return name if name.isprintable() else repr(name)[1:-1]


def _mermaid_label(name: str) -> str:
    """A label between quotes: whatever could mean something to Mermaid or to HTML, as the code of its character."""
    return "".join(letter if letter.isalnum() or letter in " _-." else f"#{ord(letter)};" for letter in name)


def _tree_lines(
    roots: Sequence[Composable], dependents: Mapping[Composable, list[Composable]], names: Mapping[Composable, str]
) -> Iterator[str]:
    seen: set[Composable] = set()
    stack = [(root, "", "") for root in reversed(roots)]
    while stack:
        node, lead, indent = stack.pop()
        yield f"{lead}{_shown(names[node])}{' (above)' if node in seen else ''}"
        if node in seen:
            continue
        seen.add(node)
        below = [(later, f"{indent}├── ", f"{indent}│   ") for later in dependents[node]]
        if below:
            below[-1] = (below[-1][0], f"{indent}└── ", f"{indent}    ")
        stack.extend(reversed(below))
