"""Limits per task name in the model: over all users, and nothing behind them is blocked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fairque.fairness.choice import SortedSet, encoded
from fairque.fairness.model_task import ModelTask
from fairque.policy import Rate, next_start_us, tat_after_start_us

__all__ = ["NameLimit", "NameLimits"]

LOOK_MS = 1000  # between two looks, even if nothing was freed
LOOKS = 20  # names per claim
UNLIMITED = 100  # how many are let in when the limit is gone


@dataclass(slots=True, eq=False)
class NameLimit:
    max_running: int | None = None
    rate: Rate | None = None
    tat_us: int = 0

    def room(self, now_us: int, running: int) -> float:
        """How many may start now."""
        room = math.inf if self.max_running is None else self.max_running - running
        if self.rate is not None:
            ahead = max(0, self.tat_us - now_us) / self.rate.interval_us
            room = min(room, math.floor(self.rate.burst - ahead))
        return room

    def next_look_ms(self, now_us: int) -> int:
        if self.rate is not None:
            at_ms = math.ceil(next_start_us(self.tat_us, self.rate.interval_us, self.rate.burst) / 1000)
            if at_ms > now_us // 1000:
                return at_ms
        return now_us // 1000 + LOOK_MS


class NameLimits:
    """Who holds a slot of a name, and who waits for one: apart from the lanes, users by turns.

    Args:
        let_in: Puts a task back into its lane.

    Attributes:
        limits: By name.
        running: The tasks that count, by name.
        held: Names that tasks wait for → the ms of the next look.
        users: By name, the users that wait → the microsecond at which they were last let in.
        tasks: By user and name, those that wait → their score.
    """

    def __init__(self, let_in: Callable[[int, str, str], ModelTask]) -> None:
        self.limits: dict[str, NameLimit] = {}
        self.running: dict[str, set[tuple[str, str]]] = {}
        self.held: SortedSet[str] = SortedSet(str)
        self.users: dict[str, SortedSet[str]] = {}
        self.tasks: dict[tuple[str, str], SortedSet[str]] = {}
        self._let_in = let_in
        self._freed: dict[str, int] = {}

    def set(self, now_us: int, name: str, max_running: int | None, rate: Rate | None) -> None:
        if max_running is None and rate is None:
            self.limits.pop(name, None)
        else:
            before = self.limits.get(name)
            self.limits[name] = NameLimit(max_running, rate, before.tat_us if before else 0)
        if name in self.held:
            self.held.put(name, now_us // 1000)

    def must_wait(self, now_us: int, task: ModelTask) -> bool:
        """While others wait for the name, only those that were let in may take a slot."""
        limit = self.limits.get(task.name)
        if limit is None:
            return False
        return self._room(now_us, limit, task.name) < 1 or (task.name in self.users and not task.is_offered)

    def _room(self, now_us: int, limit: NameLimit, name: str) -> float:
        return limit.room(now_us, len(self.running.get(name, ())))

    def hold(self, now_us: int, task: ModelTask) -> None:
        assert task.score is not None, "it came from a lane"
        task.is_offered, task.is_held = False, True
        self.tasks.setdefault((task.user_id, task.name), SortedSet(str)).put(task.task_id, task.score)
        users = self.users.setdefault(task.name, SortedSet(encoded))
        if task.user_id not in users:
            users.put(task.user_id, now_us)
        if task.name not in self.held:
            self.held.put(task.name, self.limits[task.name].next_look_ms(now_us))

    def start(self, now_us: int, task: ModelTask) -> None:
        if (limit := self.limits.get(task.name)) is None:
            return
        self.running.setdefault(task.name, set()).add(task.key)
        if limit.rate is not None:
            limit.tat_us = tat_after_start_us(now_us, limit.tat_us, limit.rate.interval_us)
            if task.name in self.held:
                self.held.put(task.name, limit.next_look_ms(now_us))
        task.is_offered, task.limited = False, task.name

    def stop(self, task: ModelTask) -> None:
        """Its delivery is over."""
        running = self.running.get(task.limited, set())
        if task.key in running:
            running.remove(task.key)
            self._freed[task.limited] = self._freed.get(task.limited, 0) + 1
            if not running:
                del self.running[task.limited]

    def pass_on(self, now_us: int) -> None:
        """As many come back as slots became free."""
        freed, self._freed = self._freed, {}
        for name, slots in freed.items():
            if name in self.held:
                self._look(now_us, name, slots)

    def tick(self, now_us: int) -> None:
        for name in self.held.up_to(now_us // 1000, LOOKS):
            self._look(now_us, name, UNLIMITED)

    def _look(self, now_us: int, name: str, most: int) -> None:
        limit = self.limits.get(name)
        room = self._room(now_us, limit, name) if limit else UNLIMITED
        for turn in range(1, int(min(room, most)) + 1):
            if name in self.users:
                self._next(now_us, name, now_us + turn)
        if name in self.held:
            self.held.put(name, limit.next_look_ms(now_us) if limit else now_us // 1000)

    def _next(self, now_us: int, name: str, turn: int) -> None:
        """The first task of the user whose turn it is; the user goes to the end of the line."""
        users = self.users[name]
        user_id, _ = users.pop()
        tasks = self.tasks[user_id, name]
        task_id, _ = tasks.pop()
        if tasks:
            users.put(user_id, turn)
        else:
            del self.tasks[user_id, name]
        if not users:
            del self.users[name]
            self.held.drop(name)
        task = self._let_in(now_us, user_id, task_id)
        task.is_held, task.is_offered = False, True

    def waiting(self, user_id: str) -> int:
        return sum(len(tasks) for (owner, _), tasks in self.tasks.items() if owner == user_id)
