"""What workers of the model do: they claim tasks, and tell how they ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fairque.fairness.model_backlog import WITHIN_MS
from fairque.fairness.model_lanes import ModelClaim
from fairque.fairness.model_stealing import ModelStealing
from fairque.fairness.model_task import Ending, Kind, ModelDelivery, ModelTask
from fairque.fairness.model_workers import assignments_of
from fairque.models import ANY_USER, TaskState, UserGroup

__all__ = ["ModelClaims"]

RENEWAL = 0.2  # of a lease, between two renewals


class ModelClaims(ModelStealing):
    """Promotion, stealing and service, and what comes of a delivery."""

    # Claim

    def claim(
        self,
        now_us: int,
        worker: str,
        want: int,
        *,
        lease_ms: int,
        groups: Sequence[UserGroup] = ANY_USER,
        steal: bool = True,
        by_time: bool = False,
        holds: int = 0,
        suspects: int = 0,
        max_deliveries: int = 5,
    ) -> list[ModelDelivery]:
        """Promote what is due, steal from silent workers, then serve the groups in their order.

        `by_time`: a service is charged the time that it takes, which is known at its end, and until then what tasks of
        its name took lately. `holds`: how much the worker has, `suspects` of these that it was given less than a lease
        ago. `max_deliveries`: a task is given up that killed so many workers in which nothing else ran.
        """
        claim = ModelClaim(worker, want, lease_ms, now_us, by_time, holds, suspects, max_deliveries)
        self.suspects.signs[worker] = claim.now_ms
        self.workers.look(now_us)
        for users in assignments_of(groups):
            self.workers.note(now_us, worker, users, self.freedom)
        self._expire(now_us)
        self._promote(now_us)
        self.admission.sweep(now_us, self.freedom)
        self.choice.end_return()
        self.forget_reserved()
        self.admission.unpark(now_us, self.freedom)
        self.limits.tick(now_us, self.freedom)
        is_alone = False
        if steal:
            self._abandon(now_us, self.freedom.abandons(self.batches.due(now_us // 1000)))
            is_alone = self._steal(claim, groups)
        if not (is_alone or self._becomes_empty(claim)):
            self._serve_all(claim, groups)
        return claim.deliveries

    def _becomes_empty(self, claim: ModelClaim) -> bool:
        return claim.holds > 0 and self.suspects.awaiting(claim.now_ms, claim.worker) is not None

    def _expire(self, now_us: int) -> None:
        """What has not begun in time ends."""
        for key in self.expiry.take_due(now_us // 1000):
            task = self.tasks[key]
            self._remove(task)
            self._end(task, TaskState.CANCELED)
        self._pass_on(now_us)

    def _promote(self, now_us: int) -> None:
        """Who has more that is due comes after those that wait for their first."""
        now_ms = now_us // 1000
        for user_id in self.due.up_to(now_ms, len(self.due)):
            waiting = self.scheduled[user_id]
            due = [self.tasks[user_id, task_id] for task_id in waiting.up_to(now_ms + 1 - WITHIN_MS, len(waiting))]
            promoted = due[: self.freedom.promotes(user_id, due)]
            for task in promoted:
                waiting.drop(task.task_id)
                self._place(now_us, task)
            if not waiting:
                self._forget_due(user_id)
            elif promoted or not due:
                self.due.put(user_id, max(now_ms, math.floor(waiting.lowest_score())))

    def _serve_all(self, claim: ModelClaim, groups: Sequence[UserGroup]) -> None:
        """Whose task has to wait for its name rests until all others had their turn."""
        resting: set[str] = set()
        served_groups = groups if self.policies.all_paused_until() <= claim.now_ms else ()
        while True:
            for group in served_groups:
                while claim.missing and (user_id := self.choice.lowest(group, resting)) is not None:
                    if not self._serve(claim, user_id):
                        resting.add(user_id)
            are_let_in = self.limits.pass_on(claim.now_us)
            if not (claim.missing and (resting or are_let_in)):
                return
            resting.clear()

    def _serve(self, claim: ModelClaim, user_id: str) -> bool:
        """The user whose turn it is, if nothing closed its gate since it became ready. False: it started nothing."""
        if (at := self.admission.gate(claim.now_us, user_id)) is not None:
            self.admission.hold_back(claim.now_us, user_id, at)
            return False
        self.choice.weigh(user_id)
        task = self._next_task(user_id)
        is_held = self.limits.must_wait(claim.now_us, task)
        if is_held:
            self.limits.hold(claim.now_us, task)
            self._forget_if_empty(self._lane(task))
        else:
            self._start(claim, task)
        if not self.waiting(user_id):
            self.choice.leave(user_id)
        elif (at := self.admission.gate(claim.now_us, user_id)) is not None:
            self.admission.hold_back(claim.now_us, user_id, at)
        return not is_held

    def _start(self, claim: ModelClaim, task: ModelTask) -> None:
        self._deliver(claim, task)
        self.expiry.forget(task)
        if task.kind in ("started", "debounce"):
            task.has_key = False
        had_places = bool(task.places)
        self.limits.start(claim.now_us, task)
        self.policies.note_start(claim.now_us, task.user_id)
        self.choice.serve(task.user_id, self._price(claim, task))
        self.admission.favour(task.user_id)
        if not had_places:
            self.limits.take_back(claim.now_us, task.user_id)

    def _price(self, claim: ModelClaim, task: ModelTask) -> float:
        """What a service is charged at its start."""
        was_paid, task.paid = task.paid, False
        if not claim.by_time:
            return 0.0 if was_paid else task.cost
        task.charge_anew()
        task.charged = task.cost * min(self.run_times.expected(task.name), RENEWAL * claim.lease_ms / 1000)
        return task.charged

    def _go_on(self, now_us: int, task: ModelTask) -> None:
        used = task.cost * max(0, now_us // 1000 - task.started_ms) / 1000
        if task.charged is not None and used > task.charged:
            self.choice.adjust(task.user_id, used - task.charged)
            task.charged = used

    def leave(self, now_us: int, worker: str, groups: Sequence[UserGroup] = ANY_USER) -> None:
        """A worker says goodbye."""
        self.workers.leave(now_us, worker, groups, self.freedom)
        self.moments.hand_on(worker)
        self.suspects.leave(worker)

    # Settle

    def settle(
        self, now_us: int, delivery: ModelDelivery, kind: Kind, *, delay_ms: int = 0, charge: float = 0.0
    ) -> bool:
        """False: refused, another worker has the task. A delivery that was settled before is answered as done."""
        [answer] = self.settle_all(now_us, [Ending(delivery, kind, delay_ms, charge)])
        return answer

    def settle_all(self, now_us: int, endings: Iterable[Ending]) -> list[bool]:
        """A batch of one call: what ended makes room for others when all of it is done."""
        self.workers.look(now_us)
        answers = []
        reviewed: dict[str, bool] = {}  # users → their breaker opened
        for told in endings:
            task = told.delivery.task
            if task.delivery != told.delivery.fence:
                answers.append(self._was_settled(told.delivery))
                continue
            answers.append(True)
            is_canceled = task.canceling and told.kind in ("retry", "snoozed", "released")
            ending = self._fitting(told._replace(kind="canceled") if is_canceled else told)
            is_opened = self._account(now_us, ending)
            if self.policies.ends_matter(task.user_id):
                reviewed[task.user_id] = is_opened or reviewed.get(task.user_id, False)
            self._settle(now_us, ending)
            self._note_end_of_suspect(now_us, told.delivery)
        self._pass_on(now_us)
        for user_id, is_opened in reviewed.items():
            self.admission.freed(now_us, user_id, is_opened=is_opened)
        self.limits.pass_on(now_us)
        return answers

    def _fitting(self, ending: Ending) -> Ending:
        """No outcome is lost for bytes: a result that does not fit makes a failure, an error loses its texts."""
        task, size = ending.delivery.task, ending.record_bytes + ending.error_bytes
        limit = self.bytes.limit(task.user_id)
        if ending.kind not in ("finished", "failed", "retry") or limit is None:
            return ending
        asked = size - task.own_bytes if ending.kind == "finished" else size
        does_fit = size == 0 or self.bytes.used(task.user_id) + asked <= limit
        if does_fit or (self.bytes.is_counting(task.user_id) and self.freedom.fits(task)):
            return ending
        assert not self.freedom.fits(task), f"more was kept of {task.task_id!r} than fits"
        kind: Kind = "failed" if ending.kind == "finished" else ending.kind
        task.errors = task.error_bytes = 0
        of_both = self.freedom.size("result", task), self.freedom.size("errors", task)
        return ending._replace(kind=kind, record_bytes=of_both[0], error_bytes=of_both[1])

    def _note_end_of_suspect(self, now_us: int, delivery: ModelDelivery) -> None:
        """Another one may come."""
        if delivery.is_suspect:
            self.suspects.recent.pop(delivery.task.key, None)
        if delivery.is_alone:
            self.suspects.close_room(now_us // 1000, delivery.task.worker)

    def _was_settled(self, delivery: ModelDelivery) -> bool:
        known = self.tasks.get(delivery.task.key) or self.ended.get(delivery.task.key)
        return known is delivery.task and known.last == delivery.fence

    def _account(self, now_us: int, ending: Ending) -> bool:
        """What it cost, and whether the breaker opens. What was released has not ended."""
        task = ending.delivery.task
        if ending.kind == "released":
            if task.charged is not None:
                task.charged = self._correct(task, ending)
            return False
        before, task.charged_before = task.charged_before, 0.0
        self._tally(task.user_id).cost += before + self._correct(task, ending)
        if task.charged is not None and ending.run_ms > 0:
            self.run_times.learn(task.name, ending.run_ms / 1000)
        if ending.kind in ("retry", "snoozed"):
            task.charged = None
        else:
            task.charged_before = before  # a dead letter tells of it
        if ending.kind in ("canceled", "snoozed"):
            return False
        return self.policies.note_end(now_us, task.user_id, is_success=ending.kind == "finished")

    def _correct(self, task: ModelTask, ending: Ending) -> float:
        """What the delivery cost; what was charged before follows that."""
        total, before = task.cost + ending.charge, task.cost
        if task.charged is not None:
            before = task.charged
            # What did not run costs what it was thought to: nobody is served for nothing.
            total = (task.cost * ending.run_ms / 1000 if ending.run_ms > 0 else before) + ending.charge
        if total != before:
            self.choice.adjust(task.user_id, total - before)
        return total

    def _settle(self, now_us: int, ending: Ending) -> None:
        (task, fence, _), kind = ending.delivery, ending.kind
        self.limits.stop(task)
        task.delivery = None
        lane = self._lane(task)
        del lane.stream[fence.stream_id]
        self._forget_if_empty(lane)
        if kind in ("finished", "failed", "canceled"):
            task.errors += kind == "failed"
            task.error_bytes += ending.error_bytes
            task.result_bytes = ending.record_bytes
            if task.has_key and task.kind == "after" and kind != "canceled":
                self._open_window(now_us, task)
            if kind == "finished":
                task.known_until_ms = now_us // 1000 + ending.ttl_ms
            self._end(task, TaskState(kind))
        else:
            self._put_back(now_us, task, kind, ending.delay_ms, ending.error_bytes)
        task.last = fence

    def _put_back(self, now_us: int, task: ModelTask, kind: Kind, delay_ms: int, error_bytes: int) -> None:
        if kind == "retry":
            self._count(task.user_id, "retried")
            task.failures += 1
            task.errors += 1
            task.error_bytes += error_bytes
            task.clear_its_name()
        elif kind == "snoozed":
            task.attempt -= 1
            task.clear_its_name()
        else:
            task.attempt -= 1
            task.received = task.alone_ms = 0
            if delay_ms:  # no worker knew it: what it took is charged, and so is what comes
                task.returned += 1
                if task.attempt == 0 and task.expires_ms < math.inf:  # nobody knew it, and so it has not begun
                    self.expiry.note(task)
                task.returned_since_ms = task.returned_since_ms or now_us // 1000
            else:
                task.paid = True
        if delay_ms:
            self._schedule(now_us, task, now_us // 1000 + delay_ms)
        else:
            self._place(now_us, task)
