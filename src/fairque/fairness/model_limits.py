"""Limits per task name in the model: over all users, and nothing behind them is blocked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fairque.fairness.choice import SortedSet, encoded
from fairque.fairness.freedom import Freedom
from fairque.fairness.model_task import ModelTask
from fairque.policy import Rate, next_start_us, tat_after_start_us

__all__ = ["NameLimit", "NameLimits"]

LOOK_MS = 1000  # between two looks, even if nothing was freed
NAMES = 200  # looked at in one call
USERS = 20  # of one name that are looked at, beyond those that are let in
UNLIMITED = 100  # how many are let in when the limit is gone


@dataclass(slots=True, eq=False)
class NameLimit:
    max_running: int | None = None
    rate: Rate | None = None
    tat_us: int = 0
    tat_of_us: int = 0  # the interval it was counted with: for another rate it says nothing
    is_counted: bool = True  # what ran before there was this limit

    def tat_for(self, rate: Rate) -> int:
        return self.tat_us if self.tat_of_us == rate.interval_us else 0

    def room(self, now_us: int, running: int) -> float:
        """How many may start now."""
        if not self.is_counted:
            return 0
        room = math.inf if self.max_running is None else self.max_running - running
        if self.rate is not None:
            ahead = max(0, self.tat_for(self.rate) - now_us) / self.rate.interval_us
            room = min(room, math.floor(self.rate.burst - ahead))
        return room

    def next_look_ms(self, now_us: int, running: int, let_in: int, held: int) -> int:
        """A full one, whose every end tells, is looked at in turn with the others that are held, at whole seconds."""
        now_ms = now_us // 1000
        if let_in:
            return now_ms + LOOK_MS
        if self.rate is not None:
            at_ms = math.ceil(next_start_us(self.tat_for(self.rate), self.rate.interval_us, self.rate.burst) / 1000)
            if at_ms > now_ms:
                return at_ms
        if not self.is_counted or self.room(now_us, running) >= 1:
            return now_ms + LOOK_MS
        turns = max(1, math.ceil(held / NAMES))
        return math.ceil((now_ms + turns * LOOK_MS) / LOOK_MS) * LOOK_MS


def _member(key: tuple[str, str]) -> str:
    return f"{encoded(key[0])}:{key[1]}"


class NameLimits:
    """Who holds a slot of a name, and who waits for one: apart from the lanes, users by turns.

    Args:
        let_in: Puts a task back into its lane.
        take_out: Takes it out of its lane again.
        can_run: Whether nothing but its turn keeps a user from running.
        out: The tasks that run.
        retire: A task was taken out of a lane of the user by itself.

    Attributes:
        limits: By name.
        running: The tasks that count, by name.
        held: Names that tasks wait for → the ms of the next look.
        users: By name, the users that wait → the microsecond at which they were last let in, or may be again.
        tasks: By user and name, those that wait → their score.
        offered: By user, those that were let in and have not started: each has a place of its name in hand.
        let_in: The same by name → the ms until when, if others wait.
    """

    def __init__(
        self,
        let_in: Callable[[int, str, str], ModelTask],
        take_out: Callable[[ModelTask], None],
        can_run: Callable[[int, str], bool],
        out: Callable[[], list[ModelTask]],
        retire: Callable[[str], None],
    ) -> None:
        self.limits: dict[str, NameLimit] = {}
        self.running: dict[str, set[tuple[str, str]]] = {}
        self.held: SortedSet[str] = SortedSet(str)
        self.users: dict[str, SortedSet[str]] = {}
        self.tasks: dict[tuple[str, str], SortedSet[str]] = {}
        self.offered: dict[str, dict[str, ModelTask]] = {}
        self.let_in: dict[str, SortedSet[tuple[str, str]]] = {}
        self._let_in = let_in
        self._take_out = take_out
        self._can_run = can_run
        self._out = out
        self._retire = retire
        self._freed: dict[str, int] = {}

    def set(self, now_us: int, name: str, max_running: int | None, rate: Rate | None) -> None:
        known = self.limits.get(name, NameLimit())
        if (max_running, rate) == (known.max_running, known.rate):
            return
        if max_running is None and rate is None:
            self.limits.pop(name, None)
        else:
            before = self.limits.get(name, NameLimit(is_counted=not self._out()))
            self.limits[name] = NameLimit(max_running, rate, before.tat_us, before.tat_of_us, before.is_counted)
        if name in self.held:
            self.held.put(name, now_us // 1000)

    def must_wait(self, now_us: int, task: ModelTask) -> bool:
        """While others wait for the name, only those that were let in may take a slot."""
        limit = self.limits.get(task.name)
        if limit is None:
            return False
        room = self._room(now_us, limit, task.name)
        if task.is_offered:
            return not limit.is_counted or room < 0
        return room < 1 or task.name in self.users

    def _room(self, now_us: int, limit: NameLimit, name: str) -> float:
        """Beside those that have a place in hand."""
        if not limit.is_counted:
            return 0
        return limit.room(now_us, len(self.running.get(name, ()))) - self._in_hand(name)

    def _in_hand(self, name: str) -> int:
        return len(self.let_in.get(name, ()))

    def _next_look_ms(self, now_us: int, name: str) -> int:
        running, held = len(self.running.get(name, ())), len(self.held)
        return self.limits[name].next_look_ms(now_us, running, self._in_hand(name), held)

    def hold(self, now_us: int, task: ModelTask) -> None:
        """Where a place is free, those before it cannot use it: they are looked at again."""
        assert task.score is not None, "it came from a lane"
        self.end_offer(task)
        task.is_held = True
        if self._room(now_us, self.limits[task.name], task.name) >= 1:
            self._free(task.name, 1)
        self.tasks.setdefault((task.user_id, task.name), SortedSet(str)).put(task.task_id, task.score)
        users = self.users.setdefault(task.name, SortedSet(encoded))
        if task.user_id not in users:
            users.put(task.user_id, now_us)
        if task.name not in self.held:
            self.held.put(task.name, self._next_look_ms(now_us, task.name))

    def start(self, now_us: int, task: ModelTask) -> None:
        self.end_offer(task, used=True)
        if (limit := self.limits.get(task.name)) is None:
            return
        self.running.setdefault(task.name, set()).add(task.key)
        if limit.rate is not None:
            limit.tat_us = tat_after_start_us(now_us, limit.tat_for(limit.rate), limit.rate.interval_us)
            limit.tat_of_us = limit.rate.interval_us
            if task.name in self.users and task.name in self.held:
                self.held.put(task.name, self._next_look_ms(now_us, task.name))
        task.limited = task.name

    def end_offer(self, task: ModelTask, *, used: bool = False) -> None:
        """It starts, or others may have its place."""
        if task.is_offered and not used:
            self._free(task.name, 1)
        task.is_offered = False
        if (let_in := self.let_in.get(task.name)) is not None:
            let_in.drop(task.key)
            if not let_in:
                del self.let_in[task.name]
        offered = self.offered.get(task.user_id, {})
        offered.pop(task.task_id, None)
        if not offered:
            self.offered.pop(task.user_id, None)

    def stop(self, task: ModelTask) -> None:
        """Its delivery is over."""
        running = self.running.get(task.limited, set())
        if task.key in running:
            running.remove(task.key)
            self._free(task.limited, 1)
            if not running:
                del self.running[task.limited]

    def _free(self, name: str, places: int) -> None:
        self._freed[name] = self._freed.get(name, 0) + places

    def take_back(self, now_us: int, user_id: str) -> None:
        """The user cannot, or does not, use the places that it was offered: others that wait may."""
        for task in list(self.offered.get(user_id, {}).values()):
            self._withdraw(now_us, task)

    def _withdraw(self, now_us: int, task: ModelTask) -> bool:
        """Unless nobody else waits."""
        if not set(self.users.get(task.name, ())) - {task.user_id}:
            return False
        if task.name in self.limits:
            self._take_out(task)
            self.hold(now_us, task)
        else:
            self.end_offer(task)
        return True

    def _take_back_late(self, now_us: int, name: str) -> None:
        """From those that nobody served for a while."""
        now_ms = now_us // 1000
        for user_id, task_id in self.let_in.get(name, SortedSet(_member)).up_to(now_ms, USERS):
            if self._withdraw(now_us, self.offered[user_id][task_id]):
                self._retire(user_id)
            else:
                self.let_in[name].put((user_id, task_id), now_ms + LOOK_MS)

    def came_back(self, user_id: str) -> None:
        """The user may have become able to use a place."""
        waiting = [
            (score, task_id, name)
            for (owner, name), tasks in self.tasks.items()
            if owner == user_id
            for task_id, score in tasks.scores.items()
        ]
        if waiting:
            self._free(min(waiting)[2], UNLIMITED)

    def pass_on(self, now_us: int) -> bool:
        """As many come back as places became free. True: some did."""
        freed, self._freed = self._freed, {}
        given = [self._look(now_us, name, places) for name, places in sorted(freed.items()) if name in self.held]
        return any(given)

    def unhold(self, task: ModelTask) -> None:
        """It waits no longer: it has ended, or comes back."""
        task.is_held = False
        tasks, users = self.tasks[task.user_id, task.name], self.users[task.name]
        tasks.drop(task.task_id)
        if not tasks:
            del self.tasks[task.user_id, task.name]
            users.drop(task.user_id)
        if not users:
            del self.users[task.name]
            self.held.drop(task.name)

    def is_counting(self) -> bool:
        return any(not limit.is_counted for limit in self.limits.values())

    def tick(self, now_us: int, freedom: Freedom) -> None:
        """The names that are due share alike what one call lets in. Before, what runs is counted for new limits."""
        if freedom.counts():
            self._count(now_us)
        names = sorted(self.held.up_to(now_us // 1000, NAMES))
        for name in names:
            self._look(now_us, name, max(1, UNLIMITED // len(names)))

    def _count(self, now_us: int) -> None:
        uncounted = {name: limit for name, limit in self.limits.items() if not limit.is_counted}
        for task in self._out() if uncounted else ():
            if task.name in uncounted:
                self.running.setdefault(task.name, set()).add(task.key)
                task.limited = task.name
        for name, limit in uncounted.items():
            limit.is_counted = True
            if name in self.held:
                self.held.put(name, now_us // 1000)

    def _look(self, now_us: int, name: str, most: int) -> int:
        """Returns how many were let in."""
        limit = self.limits.get(name)
        if limit:
            self._take_back_late(now_us, name)
        room = self._room(now_us, limit, name) if limit else UNLIMITED
        given, is_cut = 0, False
        if room > 0:
            given, is_cut = self._turns(now_us, name, int(min(room, most, UNLIMITED)))
        if name in self.held:
            is_cut = is_cut or limit is None or given == most < room
            at_ms = now_us // 1000
            if not is_cut and limit:
                at_ms = self._next_look_ms(now_us, name)
            self.held.put(name, at_ms)
        return given

    def _turns(self, now_us: int, name: str, most: int) -> tuple[int, bool]:
        """By turns of users; those that cannot run now come after all others, for as long as a look lasts.

        Returns how many were let in, and whether there are users that were not looked at.
        """
        given, passed, last = 0, set(), now_us + most + USERS
        for turn in range(1, most + USERS + 1):
            user_id = self.users[name].lowest() if name in self.users else None
            limit = self.limits.get(name)
            if limit and self._room(now_us, limit, name) < 1:
                return given, False
            if given == most or user_id is None or user_id in passed:
                return given, False
            if self._can_run(now_us, user_id):
                self._next(now_us, name, now_us + turn)
                given += 1
            else:
                passed.add(user_id)
                self.users[name].put(user_id, last + turn + LOOK_MS * 1000)
        return given, name in self.users and self.users[name].lowest_score() <= last

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
        task.is_held = False
        if name in self.limits:
            task.is_offered = True
            self.offered.setdefault(user_id, {})[task_id] = task
            self.let_in.setdefault(name, SortedSet(_member)).put(task.key, now_us // 1000 + LOOK_MS)

    def waiting(self, user_id: str) -> int:
        return sum(len(tasks) for (owner, _), tasks in self.tasks.items() if owner == user_id)
