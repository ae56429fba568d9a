"""How the tasks of the model end, and what comes of it: callbacks, the counts of a batch, and who waited for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from fairque.errors import QuotaExceeded
from fairque.fairness.model_backlog import PRIORITY_STEP_MS, ModelBacklog
from fairque.fairness.model_batch import Batches, ModelBatch, Opened
from fairque.fairness.model_bytes import Bytes
from fairque.fairness.model_links import verdict
from fairque.fairness.model_task import Ends, ModelCallback, ModelTask, UserCounts, names_of
from fairque.models import BatchState, TaskState

__all__ = ["ModelEnds"]

_OUTCOMES = {TaskState.FINISHED: "on_success", TaskState.FAILED: "on_failure"}


class ModelEnds(ModelBacklog):
    """Ends, and what follows from them in the same step.

    Attributes:
        batches: What counts tasks together.
        bytes: What users take, of those who have a limit.
    """

    def __init__(self, priority_step_ms: int = PRIORITY_STEP_MS) -> None:
        super().__init__(priority_step_ms)
        self.batches = Batches(self._call_back_for_batch)
        self.bytes = Bytes(self.policies, self._all_tasks, self.batches.of.values)
        self._announced: deque[tuple[tuple[str, str], TaskState]] = deque()
        self._calling: deque[tuple[ModelTask, TaskState]] = deque()

    def _all_tasks(self) -> Iterator[ModelTask]:
        yield from self.tasks.values()
        yield from self.ended.values()

    def _end(self, task: ModelTask, state: TaskState) -> None:
        """But for dead letters, nothing is kept but its result; that of a canceled one is written by the queue."""
        task.state, task.last, task.has_key = state, None, False
        if state is not TaskState.FAILED:
            task.body_bytes = task.error_bytes = 0
        if state is TaskState.CANCELED:
            task.result_bytes = self.freedom.size("result", task)
        self.limits.end_offer(task)
        self.expiry.forget(task)
        self.links.deferred.pop(task.key, None)
        if state is not TaskState.FAILED:  # a dead letter may be requeued
            task.uses = set()
        self.ended[task.key] = self.tasks.pop(task.key)
        self._announced.append((task.key, state))
        self._calling.append((task, state))
        self._count(task.user_id, state.value)

    def _count(self, user_id: str, what: str) -> None:
        for tally in (self._tally(user_id), self.totals):
            setattr(tally, what, getattr(tally, what) + 1)

    def _tally(self, user_id: str) -> UserCounts:
        return self.tallies.setdefault(user_id, UserCounts())

    def _pass_on(self, now_us: int) -> None:
        """Callbacks of what has ended are put in. Those that wait for it go on, or end as well, one after the other."""
        self._call_back(now_us)
        while self._announced:
            key, told = self._announced.popleft()
            state = self._standing(key) or told
            if state.ended:
                for task in self.links.dependents(key):
                    self._inform(now_us, task, key[1], state)
        self._call_back(now_us)

    def _inform(self, now_us: int, task: ModelTask, need: str, state: TaskState) -> None:
        does = verdict(task, state)
        if does == "go":
            task.needs.discard(need)
            if not task.needs:
                del self.links.deferred[task.key]
                self._begin(now_us, task)
        elif does == "end":
            self._end(task, TaskState.CANCELED)

    def letters(self) -> list[tuple[str, str]]:
        return [key for key, task in self.ended.items() if task.state is TaskState.FAILED]

    def kept(self) -> set[tuple[str, str]]:
        """Those whose results stay, as others that may still run depend on them."""
        letters = [self.ended[key] for key in self.letters()]
        used = {(task.user_id, need) for task in (*self.tasks.values(), *letters) for need in task.uses}
        return {key for key in used if key in self.ended and self.ended[key].state is TaskState.FINISHED}

    # Callbacks

    def _call_back(self, now_us: int) -> None:
        """Once for each life, past all quotas. What failed may be requeued, which is another life."""
        while self._calling:
            task, state = self._calling.popleft()
            if (ends := task.ends) is None:
                continue
            task.ends = ends.of_the_next_life() if state is TaskState.FAILED else None
            for task_id, callback in ends.named(task.task_id):
                if callback.kind in ("on_end", _OUTCOMES.get(state)):
                    self._put_in(now_us, task.user_id, task_id, callback)
            if ends.batch:
                self.batches.note_end(now_us, (task.user_id, ends.batch), task.task_id, state)

    def _call_back_for_batch(self, now_us: int, batch: ModelBatch, callbacks: tuple[ModelCallback, ...]) -> None:
        for task_id, callback in names_of(batch.batch_id, callbacks):
            self._put_in(now_us, batch.user_id, task_id, callback)

    def _put_in(self, now_us: int, user_id: str, task_id: str, callback: ModelCallback) -> None:
        """Under a longer id where that one is taken."""
        if self._standing((user_id, task_id)) is not None:
            task_id = f"{task_id}-{self._next_arrival(now_us)}"
        task = ModelTask(user_id, task_id, callback.priority, callback.cost, callback.nonce)
        task.name, task.delay_ms = callback.name, callback.delay_ms
        task.body_bytes = self.freedom.size("body", task)
        task.ends = Ends(callback.after, size=self.freedom.size("ends", task)) if callback.after else None
        self.tasks[task.key] = task
        self._begin(now_us, task)

    def _drop_ends(self, task: ModelTask) -> tuple[str, str] | None:
        """It is given up: nobody is called back, and its batch counts it no more. Returns the batch that did."""
        ends, task.ends = task.ends, None
        if ends is None or not ends.batch:
            return None
        key = task.user_id, ends.batch
        self.batches.drop(key, task.task_id)
        return key

    # Batches

    def open_batch(self, now_us: int, batch: ModelBatch) -> Opened:
        """Raises `QuotaExceeded` where its callbacks do not fit into the bytes of its user."""
        self.workers.look(now_us)
        if batch.key not in self.batches.of:
            self._check_bytes(batch.user_id, batch.bytes)
        return self.batches.open(now_us, batch)

    def _check_bytes(self, user_id: str, asked: int) -> None:
        """What was there before the limit came, and is not counted yet, may be left out."""
        if self.bytes.has_room(user_id, asked) or (self.bytes.is_counting(user_id) and not self.freedom.is_refused()):
            return
        raise QuotaExceeded("a user has no bytes left", 0, self.bytes.used(user_id), 0, asked)

    def close_batch(self, now_us: int, user_id: str, batch_id: str) -> bool:
        """False: it is not known."""
        self.workers.look(now_us)
        if (user_id, batch_id) not in self.batches.of:
            return False
        self.batches.end_adding(now_us, (user_id, batch_id), BatchState.CLOSED)
        return True

    def _abandon(self, now_us: int, batches: Sequence[ModelBatch]) -> None:
        for batch in batches:
            self.batches.end_adding(now_us, batch.key, BatchState.ABANDONED)
