"""`Settlers`: what a worker was handed by all partitions of a queue, and has not reported yet."""

from __future__ import annotations

from collections.abc import Sequence

from fairque.redis.delivery import Delivery, Outcome
from fairque.redis.places import Places, UserElsewhere
from fairque.worker.settler import Settler

__all__ = ["Settlers"]


class Settlers:
    """To those who run tasks it is what the one `Settler` of a queue without partitions is.

    Args:
        each: By the numbers of the partitions.
        places: Where users live.
    """

    def __init__(self, each: Sequence[Settler], places: Places) -> None:
        self._each = each
        self._places = places
        for settler in each:
            settler.peers, settler.find = each, self._find

    def _find(self, delivery: Delivery, elsewhere: UserElsewhere) -> int:
        """An answer of a partition to which it is on its way is none: see `Places.learn`."""
        self._places.learn_all(elsewhere.moved)
        return self._places.of(delivery.user.decode())

    def follow(self, delivery: Delivery, elsewhere: UserElsewhere) -> bool:
        return self._each[delivery.partition].follow(delivery, elsewhere)

    def __len__(self) -> int:
        return sum(map(len, self._each))

    @property
    def holds(self) -> int:
        return sum(each.holds for each in self._each)

    @property
    def suspects(self) -> int:
        return sum(each.suspects for each in self._each)

    @property
    def alone_left(self) -> float:
        return max(each.alone_left for each in self._each)

    @property
    def stolen(self) -> int:
        return sum(each.stolen for each in self._each)

    @property
    def unreported(self) -> int:
        return sum(each.unreported for each in self._each)

    def hold(self, delivery: Delivery) -> None:
        self._each[delivery.partition].hold(delivery)

    def forget(self, delivery: Delivery) -> None:
        self._each[delivery.partition].forget(delivery)

    def report(self, outcome: Outcome) -> None:
        self._each[outcome.delivery.partition].report(outcome)
