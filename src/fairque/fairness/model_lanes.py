"""The lanes of the model: what waits, what is out with whom, and how silent workers are robbed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fairque.fairness.freedom import Freedom
from fairque.fairness.model_task import LANES, Fence, Holding, Lane, LaneName, ModelDelivery, ModelTask
from fairque.models import TaskState, UserGroup

__all__ = ["LaneKey", "ModelClaim", "ModelLanes"]

LaneKey = tuple[LaneName, str]


@dataclass(slots=True)
class ModelClaim:
    """One call, and what it has got so far."""

    worker: str
    want: int
    lease_ms: int
    now_us: int
    by_time: bool = False
    deliveries: list[ModelDelivery] = field(default_factory=list)

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    @property
    def missing(self) -> int:
        return self.want - len(self.deliveries)


class ModelLanes:
    """Lanes, deliveries and leases.

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
        task.attempt += 1
        self._hand_out(claim, task, self._stream_id)

    def _hand_out(self, claim: ModelClaim, task: ModelTask, stream_id: int) -> None:
        task.delivery = Fence(stream_id, task.attempt)
        history = task.failures, task.lost, task.returned, task.returned_since_ms, bool(task.canceling)
        claim.deliveries.append(ModelDelivery(task, task.delivery, history))

    def _holdings(self, groups: Sequence[UserGroup]) -> Iterator[tuple[int, Holding]]:
        named = {user_id for group in groups for user_id in group}
        for lane in self.lanes.values():
            if not all(groups) or lane.user_id in named:
                yield from lane.stream.items()

    def _steal(self, claim: ModelClaim, groups: Sequence[UserGroup]) -> None:
        """One at most, as it may be what killed the worker that had it."""
        silent = {
            stream_id: holding
            for stream_id, holding in self._holdings(groups)
            if claim.now_ms - holding.touched_ms >= claim.lease_ms
        }
        for task in self.freedom.steals([holding.task for holding in silent.values()], 1):
            assert task.delivery is not None
            self._take_over(claim, silent[task.delivery.stream_id], task.delivery.stream_id)

    def _take_over(self, claim: ModelClaim, holding: Holding, stream_id: int) -> None:
        holding.task.lost += 1
        holding.task.attempt += 1
        holding.task.started_ms = claim.now_ms
        holding.task.charge_anew()
        holding.worker, holding.touched_ms, holding.lease_ms = claim.worker, claim.now_ms, claim.lease_ms
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
            self._go_on(now_us, task)
        return lost

    def _go_on(self, now_us: int, task: ModelTask) -> None:
        """It is still running."""
