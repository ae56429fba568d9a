"""What users and workers do, for hypothesis to choose from."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from hypothesis import strategies as st

WORKERS = ("w1", "w2", "w3")

weights = st.one_of(st.just(1.0), st.floats(0.05, 20), st.sampled_from([0.1, 10.0]))
costs = st.one_of(st.just(1.0), st.floats(0.01, 100))


class Enqueue(NamedTuple):
    """Tasks of one user, each a part of what its largest may cost."""

    user_id: str
    parts: tuple[float, ...]


class Claim(NamedTuple):
    worker: str
    want: int


class Settle(NamedTuple):
    """Everything the worker has is finished."""

    worker: str


Step: TypeAlias = Enqueue | Claim | Settle
Steps: TypeAlias = list[Step]

workers = st.sampled_from(WORKERS)
claims = st.builds(Claim, workers, st.integers(1, 5))
ends = st.builds(Settle, workers)


def steps(
    users: tuple[str, ...], *, parts: tuple[float, ...] = (0.1, 0.5, 1.0), least: int = 10
) -> st.SearchStrategy[Steps]:
    """Arrivals, claims and ends in any order."""
    some = st.lists(st.sampled_from(parts), min_size=1, max_size=8).map(tuple)
    arrivals = st.builds(Enqueue, st.sampled_from(users), some)
    return st.lists(st.one_of(arrivals, claims, ends), min_size=least, max_size=80)


def tenants(users: tuple[str, ...]) -> st.SearchStrategy[dict[str, tuple[float, float]]]:
    """The weight and the largest cost of each user."""
    return st.fixed_dictionaries({user: st.tuples(weights, costs) for user in users})
