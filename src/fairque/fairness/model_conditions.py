"""Tasks of the model that are put in on a condition: what becomes of each of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from fairque.errors import TaskExists
from fairque.fairness.model_backlog import PRIORITY_STEP_MS
from fairque.fairness.model_ends import ModelEnds
from fairque.fairness.model_task import ModelTask
from fairque.models import Enqueued, TaskState

__all__ = ["ANSWER_MS", "Answer", "ModelConditions", "Stands", "answer_of"]

Stands = Literal["new", "living", "retried", "replaces", "kept", "answered", "superseded"]
Answer = bool | tuple[Enqueued, str]
ANSWER_MS = 60_000
"""For so long a call that is repeated is answered as the last time."""


class ModelConditions(ModelEnds):
    """A task replaces another one, is alone under a key, or waits until no further one has come.

    Attributes:
        answers: By the name of its call, what became of each task that was put in on a condition, and the ms until
            which that is known.
        holders: Of users and keys, the task that has the key, if it still has.
        windows: Of users and keys, the id that has the key whatever becomes of its task, and the ms until when.
    """

    def __init__(self, priority_step_ms: int = PRIORITY_STEP_MS) -> None:
        super().__init__(priority_step_ms)
        self.answers: dict[bytes, tuple[Answer, int]] = {}
        self.holders: dict[tuple[str, str], ModelTask] = {}
        self.windows: dict[tuple[str, str], tuple[str, int]] = {}

    def _judge(self, now_us: int, batch: Sequence[ModelTask]) -> dict[int, Stands]:
        """By position. The ids of those that go on with another task are changed. Raises `TaskExists`."""
        call = _Call(self, now_us // 1000)
        for at, task in enumerate(batch):
            call.take(at, task)
        return call.stands

    def _known(self, task: ModelTask) -> ModelTask | None:
        """One that stands in the way: it lives, or this very call stored it before."""
        known = self.tasks.get(task.key) or self.ended.get(task.key)
        return known if known and (known.nonce == task.nonce or not known.state.ended) else None

    def _holder(self, task: ModelTask) -> ModelTask | None:
        holder = self.holders.get((task.user_id, task.pointer))
        return holder if holder and holder.has_key else None

    def _holder_in_window(self, now_ms: int, task: ModelTask) -> str | None:
        task_id, until_ms = self.windows.get((task.user_id, task.pointer), ("", 0))
        return task_id if now_ms <= until_ms else None

    def _withdraw(self, task: ModelTask) -> tuple[str, str] | None:
        """The one whose place this task takes. Returns the batch that counted it."""
        old = self.tasks[task.key]
        if old.state is TaskState.QUEUED and old.score is not None:
            task.came_us = old.score + self._head_start(old)
        self._remove(old)
        self.limits.end_offer(old)
        self.expiry.forget(old)
        self.links.deferred.pop(old.key, None)
        old.has_key = False
        del self.tasks[old.key]
        return self._drop_ends(old)

    def _hold(self, now_us: int, task: ModelTask) -> None:
        if task.kind == "throttle":
            self._open_window(now_us, task)
        elif task.kind:
            task.has_key = True
            self.holders[task.user_id, task.pointer] = task
            self.windows.pop((task.user_id, task.pointer), None)

    def _open_window(self, now_us: int, task: ModelTask) -> None:
        self.windows[task.user_id, task.pointer] = task.task_id, now_us // 1000 + task.span_ms

    def let_time_pass(self, now_us: int) -> None:
        """What lasts until a moment before this is over."""
        now_ms = now_us // 1000
        self.windows = {key: window for key, window in self.windows.items() if window[1] >= now_ms}
        self.answers = {call: answer for call, answer in self.answers.items() if answer[1] >= now_ms}
        for key in [key for key, task in self.ended.items() if task.known_until_ms < now_ms]:
            task = self.ended.pop(key)
            self.bytes.expire(task.user_id, task.known_until_ms, task.bytes)
        self.bytes.let_time_pass(now_ms)
        self.limits.let_time_pass(now_ms)


class _Call:
    """Judges the tasks of one call, one after the other."""

    def __init__(self, model: ModelConditions, now_ms: int) -> None:
        self.stands: dict[int, Stands] = {}
        self._model = model
        self._now_ms = now_ms
        self._mine: dict[tuple[str, str], tuple[int, ModelTask]] = {}  # that are added
        self._pointing: dict[tuple[str, str], tuple[int, ModelTask]] = {}
        self._seen: set[tuple[str, str]] = set()

    def take(self, at: int, task: ModelTask) -> None:
        stands = self._of_condition(task) if task.call else self._of_plain(task)
        self.stands[at] = stands
        if stands in ("new", "replaces"):
            self._mine[task.key] = at, task
            if task.kind:
                self._pointing[task.user_id, task.pointer] = at, task

    def _of_plain(self, task: ModelTask) -> Stands:
        if task.key in self._seen:
            return "living"
        self._seen.add(task.key)
        known = self._model._known(task)
        if known is None:
            return "new"
        return "retried" if known.nonce == task.nonce else "living"

    def _of_condition(self, task: ModelTask) -> Stands:
        if task.call in self._model.answers:
            return "answered"
        return (self._by_key(task) if task.kind else None) or self._by_id(task)

    def _by_key(self, task: ModelTask) -> Stands | None:
        at, first = self._pointing.get((task.user_id, task.pointer), (-1, None))
        holder = first or self._model._holder(task)
        known = holder.task_id if holder else self._model._holder_in_window(self._now_ms, task)
        if known is not None and task.kind != "debounce":
            task.answer = Enqueued.DROPPED if task.kind == "throttle" else Enqueued.KEPT, known
            return "kept"
        if holder is None:
            if task.kind == "debounce":
                self._put_off(task)
            return None
        task.task_id, task.answer = holder.task_id, (Enqueued.REPLACED, holder.task_id)
        if first is None:
            task.first_ms = holder.first_ms
            if holder.state is TaskState.SCHEDULED:
                self._put_off(task)
            return "replaces"
        task.first_ms, task.start_ms = first.first_ms, first.start_ms
        return self._supersede(at)

    def _put_off(self, task: ModelTask) -> None:
        task.first_ms = task.first_ms or self._now_ms
        task.start_ms = self._now_ms + task.span_ms
        if task.longest_ms:
            task.start_ms = min(task.start_ms, task.first_ms + task.longest_ms)

    def _by_id(self, task: ModelTask) -> Stands:
        task.answer = Enqueued.CREATED, task.task_id
        earlier = self._mine.get(task.key)
        stands: Stands = "living"
        if earlier is None:
            self._seen.discard(task.key)
            stands = self._of_plain(task)
        if stands != "living":
            return stands
        if task.conflict == "error":
            raise TaskExists("", *task.key)
        lives = earlier is None and self._model.tasks[task.key].state is TaskState.STARTED
        if task.conflict != "replace" or lives:
            task.answer = Enqueued.KEPT, task.task_id
            return "living"
        task.answer = Enqueued.REPLACED, task.task_id
        return self._supersede(earlier[0]) if earlier else "replaces"

    def _supersede(self, at: int) -> Stands:
        stands, self.stands[at] = self.stands[at], "superseded"
        return stands


def answer_of(task: ModelTask, stands: Stands, answers: Mapping[bytes, tuple[Answer, int]]) -> Answer:
    if task.call:
        return answers[task.call][0] if task.call in answers else task.answer
    return stands != "living"
