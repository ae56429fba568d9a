"""The bound of the fair choice on the scripts: with costs that are known at the end, and between groups of any depth.

docs/concepts/fairness.md derives both.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fairque.redis.delivery import Delivery, Outcome
from fairque.redis.keys import encode_user
from tests.support.core import Core, new_task, outcome
from tests.support.fair_share import TOLERANCE
from tests.support.servers import Server

examples = settings(derandomize=True, deadline=None, max_examples=40, phases=(Phase.explicit, Phase.generate))
TASKS = 130
weights = st.sampled_from([0.25, 1.0, 1.0, 3.0, 10.0])
costs = st.sampled_from([0.1, 1.0, 1.0, 20.0])


@dataclass
class Shares:
    """What each member had for its weight, and how far each two have been apart at most over any span."""

    weights: dict[str, float]
    had: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    lowest: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    highest: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))

    def serve(self, member: str, cost: float) -> None:
        self.had[member] += cost / self.weights[member]
        for pair in itertools.combinations(self.weights, 2):
            apart = self.had[pair[0]] - self.had[pair[1]]
            self.lowest[pair] = min(self.lowest[pair], apart)
            self.highest[pair] = max(self.highest[pair], apart)

    def check(self, allowed: Callable[[str], float]) -> None:
        for pair in itertools.combinations(self.weights, 2):
            spread, bound = self.highest[pair] - self.lowest[pair], sum(map(allowed, pair))
            assert spread <= bound * (1 + TOLERANCE), f"{pair} were {spread} apart, the bound is {bound}"


async def fill(core: Core, user_id: str, costs: Iterable[float]) -> None:
    made = [new_task(user_id, str(at), 3, cost, 0, b"a backlog") for at, cost in enumerate(costs)]
    assert all(await core.enqueue_all(made))


# Costs that are known at the end


class LateCharges:
    """Users with backlogs, of whose tasks it is known at the end what they cost.

    Args:
        of_users: Weight, and the largest cost in the end.
        parts: Of the largest cost, in turn: what a task is charged at its start, and what it costs in the end.
    """

    def __init__(self, core: Core, of_users: dict[str, tuple[float, float]], parts: list[tuple[float, float]]) -> None:
        self.core = core
        self.of_users = of_users
        self.parts = parts
        self.shares = Shares({user_id: weight for user_id, (weight, _) in of_users.items()})
        self.running: list[Delivery] = []
        self.too_little: dict[str, float] = defaultdict(float)  # the most that what ran at once was charged wrongly
        self.too_much: dict[str, float] = defaultdict(float)

    def costs_of(self, delivery: Delivery) -> tuple[float, float]:
        begin, end = self.parts[int(delivery.id) % len(self.parts)]
        largest = self.of_users[delivery.user_id][1]
        return begin * largest, end * largest

    async def play(self, slots: int, order: list[int]) -> None:
        async with self.core:
            for user_id, (weight, largest) in self.of_users.items():
                await self.core.store.set_policy(encode_user(user_id), {"weight": weight})
                of_tasks = itertools.islice(itertools.cycle(self.parts), TASKS)
                await fill(self.core, user_id, (begin * largest for begin, _ in of_tasks))
            for pick in order:
                await self.start(slots)
                await self.end(self.running.pop(pick % len(self.running)))
            self.core.forget()
        self.shares.check(self.allowed)

    async def start(self, slots: int) -> None:
        for delivery in await self.core.take(slots - len(self.running)):
            self.running.append(delivery)
            self.shares.serve(delivery.user_id, self.costs_of(delivery)[1])
            self.note_what_is_not_known()

    def note_what_is_not_known(self) -> None:
        wrong: dict[str, list[float]] = defaultdict(list)
        for delivery in self.running:
            begin, end = self.costs_of(delivery)
            wrong[delivery.user_id].append(end - begin)
        for user_id, of_user in wrong.items():
            little, much = sum(by for by in of_user if by > 0), -sum(by for by in of_user if by < 0)
            self.too_little[user_id] = max(self.too_little[user_id], little)
            self.too_much[user_id] = max(self.too_much[user_id], much)

    async def end(self, delivery: Delivery) -> None:
        begin, end = self.costs_of(delivery)
        ended: Outcome = outcome(delivery, "finished")
        ended.charge = end - begin
        assert await self.core.store.settle("w", [ended]) == [True]

    def allowed(self, user_id: str) -> float:
        weight, largest = self.of_users[user_id]
        return (largest + self.too_little[user_id] + self.too_much[user_id]) / weight


parts = st.sampled_from([0.0, 0.125, 0.5, 1.0])


def test_charges_at_the_end_stay_within_the_bound_for_what_is_in_flight(server: Server, queue_name: str) -> None:
    numbers = itertools.count()

    @examples
    @given(
        st.fixed_dictionaries(dict.fromkeys(("a", "b:c", "zoë"), st.tuples(weights, costs))),
        st.lists(st.tuples(parts, parts), min_size=1, max_size=5),
        st.integers(1, 12),
        st.lists(st.integers(0, 11), min_size=20, max_size=50),
    )
    def play(of_users: dict[str, tuple[float, float]], parts: Any, slots: int, order: list[int]) -> None:
        core = Core(server.url, f"{queue_name}/{next(numbers)}")
        asyncio.run(LateCharges(core, of_users, parts).play(slots, order))

    play()


# Cousins

PATHS = {"alone": "", "a1": "a", "a2": "a", "ab1": "a/b", "ab2": "a/b", "c1": "c", "cd1": "c/d/e", "cd2": "c/d/e"}
NODES = ("a", "a/b", "c", "c/d", "c/d/e")


def nodes_of(user_id: str) -> list[str]:
    """From the user outward: itself, and the groups around it."""
    segments = PATHS[user_id].split("/") if PATHS[user_id] else []
    return [user_id, *("/".join(segments[:depth]) for depth in range(len(segments), 0, -1))]


def line_of(node: str) -> str:
    """The group in whose line it stands."""
    return PATHS[node] if node in PATHS else node.rpartition("/")[0]


class Tree:
    """All users have backlogs, in groups of groups.

    Args:
        of_nodes: The weight of each user and group.
        costs: The largest cost of each user.
    """

    def __init__(self, of_nodes: dict[str, float], costs: dict[str, float]) -> None:
        self.weights = of_nodes
        self.largest = {node: max(costs[user] for user in PATHS if node in nodes_of(user)) for node in of_nodes}
        self.costs = costs

    def members(self, group: str) -> list[str]:
        return [node for node in self.weights if line_of(node) == group]

    def worth(self, node: str) -> float:
        """The weight that it has in the first line, by its parts of the groups around it."""
        group = line_of(node)
        if not group:
            return self.weights[node]
        return self.worth(group) * self.weights[node] / sum(self.weights[other] for other in self.members(group))

    def allowed(self, user_id: str) -> float:
        """A term for each line between the user and the first one."""
        *inner, outermost = nodes_of(user_id)
        found = self.largest[outermost] / self.weights[outermost]
        for node in inner:
            group = line_of(node)
            others = sum(self.largest[other] for other in self.members(group))
            found += self.largest[node] / self.worth(node) + others / self.worth(group)
        return found


async def play_tree(core: Core, tree: Tree, wants: list[int]) -> None:
    shares = Shares({user_id: tree.worth(user_id) for user_id in PATHS})
    inside = {line: Shares({node: tree.weights[node] for node in tree.members(line)}) for line in ("", *NODES)}
    async with core:
        for node in NODES:
            await core.store.set_policy(f"@{node}", {"weight": tree.weights[node]})
        for user_id, group in PATHS.items():
            await core.store.set_policy(
                user_id, {"weight": tree.weights[user_id]} | ({"group": group} if group else {})
            )
            await fill(core, user_id, [tree.costs[user_id]] * TASKS)
        for want in wants:
            for delivery in (taken := await core.take(want)):
                shares.serve(delivery.user_id, delivery.cost)
                for node in nodes_of(delivery.user_id):
                    inside[line_of(node)].serve(node, delivery.cost)
            await core.settle(taken)
        core.forget()
    for of_line in inside.values():
        of_line.check(lambda node: tree.largest[node] / tree.weights[node])
    shares.check(tree.allowed)


def test_siblings_keep_the_bound_and_cousins_one_with_a_term_for_each_level(server: Server, queue_name: str) -> None:
    numbers = itertools.count()

    @examples
    @given(
        st.fixed_dictionaries(dict.fromkeys((*PATHS, *NODES), weights)),
        st.fixed_dictionaries(dict.fromkeys(PATHS, costs)),
        st.lists(st.integers(1, 4), min_size=10, max_size=30),
    )
    def play(of_nodes: dict[str, float], costs: dict[str, float], wants: list[int]) -> None:
        asyncio.run(play_tree(Core(server.url, f"{queue_name}/{next(numbers)}"), Tree(of_nodes, costs), wants))

    play()
