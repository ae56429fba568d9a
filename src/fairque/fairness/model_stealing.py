"""Leases of the model: they are renewed, and silent workers are robbed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fairque.fairness.model_backlog import PRIORITY_STEP_MS
from fairque.fairness.model_changes import ModelChanges
from fairque.fairness.model_lanes import ModelClaim
from fairque.fairness.model_suspects import FOR_EVER_MS, Suspects, time_alone_ms
from fairque.fairness.model_task import Holding, LaneKey, ModelDelivery, ModelTask
from fairque.models import UserGroup

__all__ = ["ModelStealing"]

Silent = dict[int, Holding]  # by stream id


class ModelStealing(ModelChanges):
    """What becomes of deliveries that nobody has ended.

    Attributes:
        suspects: Those whose worker died.
        stole: The last free slot of a worker went to what a silent one had.
    """

    def __init__(self, priority_step_ms: int = PRIORITY_STEP_MS) -> None:
        super().__init__(priority_step_ms)
        self.suspects = Suspects()
        self.stole = False

    def let_time_pass(self, now_us: int) -> None:
        super().let_time_pass(now_us)
        self.suspects.let_time_pass(now_us // 1000)

    # Signs of life

    def renew(self, now_us: int, worker: str, deliveries: Iterable[ModelDelivery]) -> list[ModelDelivery]:
        """Keeps deliveries alive. Returns those that are no longer the worker's own."""
        now_ms = now_us // 1000
        self.suspects.signs[worker] = self.suspects.renewals[worker] = now_ms
        lost = []
        for delivery in deliveries:
            if self._touch(now_ms, worker, delivery):
                self._go_on(now_us, delivery.task)
            else:
                lost.append(delivery)
        return lost

    def _touch(self, now_ms: int, worker: str, delivery: ModelDelivery) -> bool:
        task = delivery.task
        if task.delivery != delivery.fence:
            return False
        holding = self._lane(task).stream[delivery.fence.stream_id]
        holding.worker, holding.touched_ms = worker, now_ms
        return True

    def _go_on(self, now_us: int, task: ModelTask) -> None:
        """It is still running."""

    def receive(self, now_us: int, worker: str, delivery: ModelDelivery) -> bool:
        """A suspect has arrived, and runs from now on. False: it is no longer the worker's own."""
        now_ms = now_us // 1000
        if not self._touch(now_ms, worker, delivery):
            return False
        self.suspects.signs[worker] = now_ms
        delivery.task.received = delivery.fence.attempt
        return True

    def accuse(self, worker: str, delivery: ModelDelivery) -> None:
        """This task made its worker end, whatever else ran there."""
        task = delivery.task
        if task.delivery == delivery.fence and task.worker == worker:
            task.is_suspect, task.received, task.alone_ms = True, task.attempt, FOR_EVER_MS
            task.tried = max(task.tried, 1)

    # Stealing

    def _steal(self, claim: ModelClaim, groups: Sequence[UserGroup]) -> bool:
        """One at most, as it may be what killed the worker that had it. True: this call serves nothing beside it."""
        now_ms, suspects = claim.now_ms, self.suspects
        if claim.suspects or suspects.open_at_ms(now_ms, self.policies.slots) > now_ms:
            return False
        if self._is_turn_of_others(claim):
            return False
        awaited = suspects.awaiting(now_ms, claim.worker) if claim.holds == 0 else None
        silent = self._in_lane(awaited.lane) if awaited and awaited.lane else dict(self._holdings(groups))
        lost = {stream_id: of for stream_id, of in silent.items() if self._is_lost(claim, of)}
        wait = {stream_id: of for stream_id, of in lost.items() if self._waits_for_room(claim, of)}
        open_to = [of.task for stream_id, of in lost.items() if stream_id not in wait]
        taken = self.freedom.steals(open_to, 1)
        assert taken or not (awaited and open_to), "it became empty for one of these"
        if taken:
            self.stole = self.stole or claim.want == 1
            return self._take_over(claim, taken[0])
        if awaited:
            suspects.room = None  # what it became empty for has gone
        elif wait and claim.holds:
            self._ask_for_room(claim, [(of.task.lane, of.task.user_id) for of in wait.values()])
        return False

    def _is_turn_of_others(self, claim: ModelClaim) -> bool:
        """Of a worker's last free slot every other one, while others wait for their turn."""
        if claim.want > 1 or not self.stole:
            return False
        self.stole = False
        return bool(self.choice.line.ready)

    def _ask_for_room(self, claim: ModelClaim, waiting: Sequence[LaneKey]) -> None:
        room = self.suspects.room
        if room is not None and room.opens_ms > claim.now_ms:
            return
        if lane := self.freedom.asks_for_room(waiting):
            self.suspects.ask_for_room(claim.now_ms, claim.worker, lane)

    def _in_lane(self, key: LaneKey) -> Silent:
        return dict(self.lanes[key].stream) if key in self.lanes else {}

    def _is_lost(self, claim: ModelClaim, of: Holding) -> bool:
        is_silent = claim.now_ms - of.touched_ms >= claim.lease_ms
        return is_silent and not self.suspects.may_have_it(claim.now_ms, claim.worker, claim.holds, of, claim.lease_ms)

    def _waits_for_room(self, claim: ModelClaim, of: Holding) -> bool:
        return self._needs_room(claim, of) and not self.suspects.is_open(claim.now_ms, claim.holds)

    def _needs_room(self, claim: ModelClaim, of: Holding) -> bool:
        """It was the only suspect when a worker died, and has not been convicted."""
        tried, deaths = self.suspects.judged(of.task, of, claim.lease_ms)
        return tried > 0 and deaths < claim.max_deliveries

    def _take_over(self, claim: ModelClaim, task: ModelTask) -> bool:
        """True: it runs alone."""
        assert task.delivery is not None
        stream_id = task.delivery.stream_id
        holding = self._lane(task).stream[stream_id]
        is_alone = self._needs_room(claim, holding)
        task.tried, task.deaths = self.suspects.judged(task, holding, claim.lease_ms)
        task.alone_ms = time_alone_ms(task, holding, claim.lease_ms) if is_alone else 0
        if is_alone:
            self.suspects.take_room(claim.now_ms, claim.worker, task.alone_ms)
        task.lost += 1
        task.attempt += 1
        task.is_suspect, task.started_ms, task.worker = True, claim.now_ms, claim.worker
        task.charge_anew()
        holding.worker, holding.touched_ms, holding.lease_ms = claim.worker, claim.now_ms, claim.lease_ms
        self.suspects.recent[task.key] = claim.now_ms + claim.lease_ms
        self._hand_out(claim, task, stream_id, task.deaths, task.alone_ms)
        return is_alone
