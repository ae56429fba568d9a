"""The lanes of the model: what waits, and what is out with whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fairque.fairness.freedom import Freedom
from fairque.fairness.model_task import LANES, Fence, Holding, Lane, LaneKey, ModelDelivery, ModelTask
from fairque.models import TaskState, UserGroup

__all__ = ["ModelClaim", "ModelLanes"]


@dataclass(slots=True)
class ModelClaim:
    """One call, and what it has got so far.

    `holds`: what its worker has, `suspects` of these that it was given less than a lease ago. `max_deliveries`: deaths
    of a task in workers that ran nothing else, after which it is given up.
    """

    worker: str
    want: int
    lease_ms: int
    now_us: int
    by_time: bool = False
    holds: int = 0
    suspects: int = 0
    max_deliveries: int = 5
    deliveries: list[ModelDelivery] = field(default_factory=list)

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    @property
    def missing(self) -> int:
        return self.want - len(self.deliveries)


class ModelLanes:
    """Lanes and deliveries.

    Attributes:
        tasks: Those that have not ended, by user and id.
        lanes: Those that something waits in or is out of.
        freedom: Decides what the rules leave open.
    """

    def __init__(self) -> None:
        self.tasks: dict[tuple[str, str], ModelTask] = {}
        self.lanes: dict[LaneKey, Lane] = {}
        self.freedom = Freedom()
        self._stream_id = 0

    def waiting(self, user_id: str) -> int:
        """For their turn."""
        return sum(len(lane.backlog) for lane in self._lanes_of(user_id))

    def running(self, user_id: str) -> int:
        return sum(len(lane.stream) for lane in self._lanes_of(user_id))

    def out(self) -> list[ModelTask]:
        """The tasks that run."""
        return [holding.task for lane in self.lanes.values() for holding in lane.stream.values()]

    def _lanes_of(self, user_id: str) -> list[Lane]:
        return [self.lanes[name, user_id] for name in LANES if (name, user_id) in self.lanes]

    def _lane(self, task: ModelTask) -> Lane:
        key = task.lane, task.user_id
        if key not in self.lanes:
            self.lanes[key] = Lane(*key)
        return self.lanes[key]

    def _forget_if_empty(self, lane: Lane) -> None:
        if not lane.stream and not lane.backlog:
            self.lanes.pop((lane.name, lane.user_id), None)

    def _take_out(self, task: ModelTask) -> None:
        self._lane(task).backlog.drop(task.task_id)
        self._forget_if_empty(self._lane(task))

    def _next_task(self, user_id: str) -> ModelTask:
        lane = next(lane for lane in self._lanes_of(user_id) if lane.backlog)
        return self.tasks[user_id, lane.backlog.pop()[0]]

    def _head_cost(self, user_id: str) -> float | None:
        first = next((lane.backlog.lowest() for lane in self._lanes_of(user_id) if lane.backlog), None)
        return None if first is None else self.tasks[user_id, first].cost

    # Deliveries

    def _deliver(self, claim: ModelClaim, task: ModelTask) -> None:
        self._stream_id += 1
        holding = Holding(task, claim.worker, claim.now_ms, claim.lease_ms)
        self._lane(task).stream[self._stream_id] = holding
        task.state, task.started_ms = TaskState.STARTED, claim.now_ms
        task.attempt, task.worker = task.attempt + 1, claim.worker
        self._hand_out(claim, task, self._stream_id)

    def _hand_out(self, claim: ModelClaim, task: ModelTask, stream_id: int, deaths: int = 0, alone_ms: int = 0) -> None:
        task.delivery = Fence(stream_id, task.attempt)
        history = (
            *(task.failures, task.lost, task.returned, task.returned_since_ms, bool(task.canceling)),
            *(deaths, alone_ms),
        )
        claim.deliveries.append(ModelDelivery(task, task.delivery, history))

    def _holdings(self, groups: Sequence[UserGroup]) -> Iterator[tuple[int, Holding]]:
        named = {user_id for group in groups for user_id in group}
        for lane in self.lanes.values():
            if not all(groups) or lane.user_id in named:
                yield from lane.stream.items()
