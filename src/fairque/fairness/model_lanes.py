"""The lanes of the model: what waits, what is out with whom, and how silent workers are robbed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fairque.fairness.choice import SortedSet, encoded
from fairque.fairness.model_task import LANES, Fence, Holding, Lane, LaneName, ModelDelivery, ModelTask
from fairque.models import TaskState, UserGroup

__all__ = ["LaneKey", "ModelClaim", "ModelLanes", "lanes_of_groups"]

LaneKey = tuple[LaneName, str]

LOOKS = 20
LOOK_SHARE = 0.4  # of a lease, between two looks at a lane


@dataclass(slots=True)
class ModelClaim:
    """One call, and what it has got so far."""

    worker: str
    want: int
    lease_ms: int
    now_us: int
    deliveries: list[ModelDelivery] = field(default_factory=list)

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    @property
    def missing(self) -> int:
        return self.want - len(self.deliveries)


def _lane_key(key: LaneKey) -> str:
    return f"{key[0]}:{encoded(key[1])}"


def lanes_of_groups(groups: Sequence[UserGroup]) -> list[LaneKey]:
    users = dict.fromkeys(user_id for group in groups for user_id in group)
    return [(lane, user_id) for user_id in users for lane in LANES]


class ModelLanes:
    """Lanes, deliveries and leases.

    Attributes:
        tasks: Those that have not ended, by user and id.
        lanes: Those that something waits in or is out of.
        leases: Lanes → the ms of the next look at their silent deliveries.
        stole: The last claim of a single task stole it.
    """

    def __init__(self) -> None:
        self.tasks: dict[tuple[str, str], ModelTask] = {}
        self.lanes: dict[LaneKey, Lane] = {}
        self.leases: SortedSet[LaneKey] = SortedSet(_lane_key)
        self.stole = False
        self._stream_id = 0

    def waiting(self, user_id: str) -> int:
        """For their turn."""
        return sum(len(lane.backlog) for lane in self._lanes_of(user_id))

    def running(self, user_id: str) -> int:
        return sum(len(lane.stream) for lane in self._lanes_of(user_id))

    def _lanes_of(self, user_id: str) -> list[Lane]:
        return [self.lanes[name, user_id] for name in LANES if (name, user_id) in self.lanes]

    def _lane(self, task: ModelTask) -> Lane:
        key = task.lane, task.user_id
        if key not in self.lanes:
            self.lanes[key] = Lane(*key)
        return self.lanes[key]

    def _forget_if_empty(self, lane: Lane) -> None:
        if not lane.stream:
            self.leases.drop((lane.name, lane.user_id))
            lane.cursor = 0
            if not lane.backlog:
                self.lanes.pop((lane.name, lane.user_id), None)

    def _next_task(self, user_id: str) -> ModelTask:
        lane = next(lane for lane in self._lanes_of(user_id) if lane.backlog)
        return self.tasks[user_id, lane.backlog.pop()[0]]

    def _head_cost(self, user_id: str) -> float | None:
        first = next((lane.backlog.lowest() for lane in self._lanes_of(user_id) if lane.backlog), None)
        return None if first is None else self.tasks[user_id, first].cost

    def _deliver(self, claim: ModelClaim, task: ModelTask) -> None:
        lane = self._lane(task)
        if not lane.stream:
            self.leases.put((lane.name, lane.user_id), claim.now_ms + claim.lease_ms)
        self._stream_id += 1
        lane.stream[self._stream_id] = Holding(task, claim.worker, claim.now_ms)
        task.state = TaskState.STARTED
        task.attempt += 1
        self._hand_out(claim, task, self._stream_id)

    def _hand_out(self, claim: ModelClaim, task: ModelTask, stream_id: int) -> None:
        task.delivery = Fence(stream_id, task.attempt)
        history = task.failures, task.lost, task.returned, task.returned_since_ms
        claim.deliveries.append(ModelDelivery(task, task.delivery, history))

    # Silent workers

    def _lanes_to_look_at(self, now_ms: int, groups: Sequence[UserGroup]) -> list[LaneKey]:
        if not all(groups):
            return self.leases.up_to(now_ms, LOOKS)
        looks = self.leases.scores
        due = [key for key in lanes_of_groups(groups) if looks.get(key, now_ms + 1) <= now_ms]
        return sorted(due, key=lambda key: looks[key])[:LOOKS]

    def _steal(self, claim: ModelClaim, groups: Sequence[UserGroup], *, others_wait: bool) -> None:
        """The lanes that are due share what may be stolen: half while others wait, of a single task every other one."""
        lanes = self._lanes_to_look_at(claim.now_ms, groups)
        if not lanes:
            return
        most = claim.want
        if others_wait and claim.want > 1:
            most = math.ceil(claim.want / 2)
        elif others_wait:
            most, self.stole = int(not self.stole), False
        for key in lanes:
            if (left := most - len(claim.deliveries)) > 0:
                self._steal_from(claim, self.lanes[key], min(left, math.ceil(most / len(lanes))))
        if claim.want == len(claim.deliveries) == 1:
            self.stole = True

    def _steal_from(self, claim: ModelClaim, lane: Lane, most: int) -> None:
        """One look, as XAUTOCLAIM does it: from the cursor on, and at no more than ten entries for each one wanted."""
        pending = [stream_id for stream_id in lane.stream if stream_id >= lane.cursor]
        seen = stolen = 0
        while seen < min(len(pending), most * 10) and stolen < most:
            holding = lane.stream[pending[seen]]
            if claim.now_ms - holding.touched_ms >= claim.lease_ms:
                self._take_over(claim, holding, pending[seen])
                stolen += 1
            seen += 1
        lane.cursor = pending[seen] if seen < len(pending) else 0
        look_ms = claim.now_ms if lane.cursor else claim.now_ms + math.ceil(claim.lease_ms * LOOK_SHARE)
        self.leases.put((lane.name, lane.user_id), look_ms)

    def _take_over(self, claim: ModelClaim, holding: Holding, stream_id: int) -> None:
        holding.task.lost += 1
        holding.task.attempt += 1
        holding.worker, holding.touched_ms = claim.worker, claim.now_ms
        self._hand_out(claim, holding.task, stream_id)

    def renew(self, now_us: int, worker: str, deliveries: Iterable[ModelDelivery]) -> list[ModelDelivery]:
        """Keeps deliveries alive. Returns those that are no longer the worker's own."""
        lost = []
        for delivery in deliveries:
            task = delivery.task
            if task.delivery != delivery.fence:
                lost.append(delivery)
                continue
            holding = self._lane(task).stream[delivery.fence.stream_id]
            holding.worker, holding.touched_ms = worker, now_us // 1000
        return lost
