"""Limits in the model, by key: each task has one or more, and nothing behind those that wait is blocked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fairque.fairness.choice import SortedSet, encoded
from fairque.fairness.freedom import Freedom
from fairque.fairness.model_limit import Rules
from fairque.fairness.model_task import ModelTask
from fairque.policy import Rate

__all__ = ["KeyLimits"]

LOOK_MS = 1000  # between two looks, even if nothing was freed
PAUSE_MS = 3_600_000  # between two looks at a key that is paused: who ends the pause has it looked at
KEYS = 200  # looked at in one call
USERS = 20  # of one key that are looked at, beyond those that are let in
UNLIMITED = 100  # how many are let in when the limit is gone
KEPT_SHARE = 20  # a place is kept for this part of the wait, and afterwards none for so many times as long
FIRST = -1  # of its user: one that keeps a place of another key

_Of = TypeVar("_Of")
_Member = TypeVar("_Member")


def _member(key: tuple[str, str]) -> str:
    return f"{encoded(key[0])}:{key[1]}"


@dataclass(slots=True, eq=False)
class Lines:
    """Who waits for which key.

    Attributes:
        held: Keys that tasks wait for → the ms of the next look.
        users: By key, the users that wait → the microsecond at which they were last let in, or may be again.
        tasks: By user and key, those that wait → their score.
        of_user: The same by user, by their scores in the lanes.
    """

    held: SortedSet[str] = field(default_factory=lambda: SortedSet(str))
    users: dict[str, SortedSet[str]] = field(default_factory=dict)
    tasks: dict[tuple[str, str], SortedSet[str]] = field(default_factory=dict)
    of_user: dict[str, SortedSet[str]] = field(default_factory=dict)

    def join(self, now_us: int, key: str, task: ModelTask, *, is_first: bool) -> None:
        assert task.score is not None, "it came from a lane"
        task.held = key
        self.of_user.setdefault(task.user_id, SortedSet(str)).put(task.task_id, task.score)
        self.tasks.setdefault((task.user_id, key), SortedSet(str)).put(task.task_id, FIRST if is_first else task.score)
        users = self.users.setdefault(key, SortedSet(encoded))
        if task.user_id not in users:
            users.put(task.user_id, now_us)

    def move(self, task: ModelTask) -> None:
        """It has another score. One that keeps a place stays the first."""
        assert task.score is not None, "it came from a lane"
        for tasks in (self.of_user[task.user_id], self.tasks[task.user_id, task.held]):
            if tasks.scores[task.task_id] != FIRST:
                tasks.put(task.task_id, task.score)

    def leave(self, task: ModelTask) -> None:
        key, task.held = task.held, ""
        _drop(self.of_user, task.user_id, task.task_id)
        if _drop(self.tasks, (task.user_id, key), task.task_id) and _drop(self.users, key, task.user_id):
            self.held.drop(key)

    def others_wait(self, key: str, user_id: str) -> bool:
        return bool(set(self.users.get(key, ())) - {user_id})


def _drop(sets: dict[_Of, SortedSet[_Member]], of: _Of, member: _Member) -> bool:
    """Returns whether that was the last one."""
    if of in sets:
        sets[of].drop(member)
        if not sets[of]:
            del sets[of]
    return of not in sets


class KeyLimits:
    """Who holds a slot of a key, and who waits for one: apart from the lanes, users by turns.

    Args:
        tasks: All that live, by user and id.
        let_in: Puts a task back into its lane.
        take_out: Takes it out of its lane again.
        can_run: Whether nothing but its turn keeps a user from running.
        out: The tasks that run.
        retire: A task was taken out of a lane of the user by itself.

    Attributes:
        rules: What is set.
        lines: Who waits.
        running: The tasks that count, by key.
        offered: By user, those that have places in hand and have not started.
        let_in: The same by key → the ms until when, if others wait.
        kept: Those of them that are held, and keep their place while they wait for another key.
        keepers: By user, its task that does so, or did so in vain, and the ms until which it is remembered.
    """

    def __init__(
        self,
        tasks: dict[tuple[str, str], ModelTask],
        let_in: Callable[[int, ModelTask], None],
        take_out: Callable[[ModelTask], None],
        can_run: Callable[[int, str], bool],
        out: Callable[[], list[ModelTask]],
        retire: Callable[[str], None],
    ) -> None:
        self.rules = Rules()
        self.lines = Lines()
        self.running: dict[str, set[tuple[str, str]]] = {}
        self.offered: dict[str, dict[str, ModelTask]] = {}
        self.let_in: dict[str, SortedSet[tuple[str, str]]] = {}
        self.kept: dict[str, set[tuple[str, str]]] = {}
        self.keepers: dict[str, tuple[str, int]] = {}
        self._tasks = tasks
        self._let_in = let_in
        self._take_out = take_out
        self._can_run = can_run
        self._out = out
        self._retire = retire
        self._freed: dict[str, int] = {}
        self._looks_at_filled = False

    def set(self, now_us: int, record: str, max_running: int | None, rate: Rate | None) -> None:
        """A record may be that of many keys that are held: the next claim looks at them."""
        if self.rules.set(record, max_running, rate, is_counted=not self._out()):
            self._look_again(now_us, record)

    def pause(self, now_us: int, record: str, *, is_paused: bool) -> None:
        """Of the name of a task: none starts, until it is resumed."""
        if self.rules.pause(record, is_paused=is_paused):
            self._look_again(now_us, record)

    def _look_again(self, now_us: int, record: str) -> None:
        if record in self.lines.held:
            self.lines.held.put(record, now_us // 1000)
        else:
            self._looks_at_filled = True

    # Whether a task may start

    def _limited(self, task: ModelTask) -> list[str]:
        return [key for key in task.keys if self.rules.limit(key) is not None]

    def must_wait(self, now_us: int, task: ModelTask) -> bool:
        """While others wait for one of its keys, only those that were let in may take a slot."""
        return self._blocked(now_us, task, "") is not None

    def _blocked(self, now_us: int, task: ModelTask, turn: str) -> str | None:
        """The first key that keeps it from starting. At its turn it needs no empty line of the keys up to that one."""
        for key in self._limited(task):
            room = self._room(now_us, key)
            if key in task.places:
                if room < 0 or self._is_shut(key):
                    return key
            elif room < 1 or (key in self.lines.users and key > turn):
                return key
        return None

    def _room(self, now_us: int, key: str) -> float:
        """Beside those that have a place in hand."""
        if self._is_shut(key):
            return 0
        return self.rules.room(now_us, key, len(self.running.get(key, ()))) - len(self.let_in.get(key, ()))

    def _is_shut(self, key: str) -> bool:
        """It is paused, or what ran before there was the limit has not been counted."""
        limit = self.rules.limit(key)
        return limit is not None and (limit.is_paused or not limit.is_counted)

    def hold(self, now_us: int, task: ModelTask) -> None:
        key = self._blocked(now_us, task, "")
        assert key is not None, "it must wait"
        self._hold(now_us, task, key)

    def _hold(self, now_us: int, task: ModelTask, key: str) -> None:
        if not task.places:
            task.held_since_ms = now_us // 1000
        self.end_offer(task)
        self._join(now_us, key, task)

    def _join(self, now_us: int, key: str, task: ModelTask, *, is_first: bool = False) -> None:
        """Where a place is free, those before it cannot use it: they are looked at again."""
        self.lines.join(now_us, key, task, is_first=is_first)
        if self._room(now_us, key) >= 1:
            self._free(key, 1)
        if key not in self.lines.held:
            self.lines.held.put(key, self._next_look_ms(now_us, key))

    def _next_look_ms(self, now_us: int, key: str) -> int:
        """A full one, whose every end tells, is looked at in turn with the others that are held, at whole seconds."""
        now_ms = now_us // 1000
        limit = self.rules.limit(key)
        if limit is None or self.let_in.get(key):
            return now_ms + LOOK_MS
        if limit.is_paused:
            return now_ms + PAUSE_MS
        if (at_ms := self.rules.opens_ms(key)) > now_ms:
            return at_ms
        if not limit.is_counted or self._room(now_us, key) >= 1:
            return now_ms + LOOK_MS
        turns = max(1, math.ceil(len(self.lines.held) / KEYS))
        return math.ceil((now_ms + turns * LOOK_MS) / LOOK_MS) * LOOK_MS

    # Starts and ends

    def start(self, now_us: int, task: ModelTask) -> None:
        if task.places and self.keepers.get(task.user_id, ("", 0))[0] == task.task_id:
            del self.keepers[task.user_id]
        self._take_away(task)
        limited = self._limited(task)
        for key in limited:
            self.running.setdefault(key, set()).add(task.key)
            if self.rules.note_start(now_us, key) and key in self.lines.held:
                self.lines.held.put(key, self._next_look_ms(now_us, key))
        task.limited = limited or task.limited

    def stop(self, task: ModelTask) -> None:
        """Its delivery is over."""
        for key in task.limited:
            running = self.running.get(key, set())
            if task.key in running:
                running.remove(task.key)
                self._free(key, 1)
                if not running:
                    del self.running[key]

    def unhold(self, task: ModelTask) -> None:
        """It waits no longer: it has ended, or comes back."""
        self.lines.leave(task)

    # Places in hand

    def _hand_out(self, task: ModelTask, keys: list[str], until_ms: int) -> None:
        for key in keys:
            self.let_in.setdefault(key, SortedSet(_member)).put(task.key, until_ms)
        task.places += [key for key in keys if key not in task.places]
        if task.places:
            self.offered.setdefault(task.user_id, {})[task.task_id] = task

    def _take_away(self, task: ModelTask) -> list[str]:
        places, task.places = task.places, []
        for key in places:
            _drop(self.let_in, key, task.key)
            kept = self.kept.get(key, set())
            kept.discard(task.key)
            if not kept:
                self.kept.pop(key, None)
        offered = self.offered.get(task.user_id, {})
        offered.pop(task.task_id, None)
        if not offered:
            self.offered.pop(task.user_id, None)
        return places

    def end_offer(self, task: ModelTask) -> None:
        """Others may have its places."""
        for key in self._take_away(task):
            self._free(key, 1)

    def _free(self, key: str, places: int) -> None:
        self._freed[key] = self._freed.get(key, 0) + places

    def take_back(self, now_us: int, user_id: str) -> None:
        """The user cannot, or does not, use the places that it has in hand: others that wait may."""
        for task in list(self.offered.get(user_id, {}).values()):
            if not task.held:  # that one keeps them
                self._withdraw(now_us, task)

    def _withdraw(self, now_us: int, task: ModelTask) -> bool:
        """Of one in a lane only where others wait, and then it is held again."""
        key = next((key for key in task.places if self.lines.others_wait(key, task.user_id)), None)
        if not task.held and key is None:
            return False
        if task.held or key is None or self.rules.limit(key) is None:
            self.end_offer(task)
        else:
            self._take_out(task)
            self._hold(now_us, task, key)
        return True

    def _take_back_late(self, now_us: int, key: str) -> None:
        """From those that nobody served for a while, or that kept a place in vain."""
        now_ms = now_us // 1000
        for of in self.let_in.get(key, SortedSet(_member)).up_to(now_ms, USERS):
            if self._withdraw(now_us, self._tasks[of]):
                self._retire(of[0])
            else:
                self.let_in[key].put(of, now_ms + LOOK_MS)

    def came_back(self, user_id: str) -> None:
        """The user may have become able to use a place."""
        if user_id in self.lines.of_user:
            first = self.lines.of_user[user_id].lowest()
            self._free(self._tasks[user_id, str(first)].held, UNLIMITED)

    def _keep(self, now_us: int, key: str, full: str, task: ModelTask) -> bool:
        """A place of a key at its turn, while it waits for one that is full. Nobody waits so for one that is kept."""
        now_ms = now_us // 1000
        keeper, until_ms = self.keepers.get(task.user_id, ("", 0))
        if until_ms > now_ms and not (keeper == task.task_id and task.places):
            return False
        if self.kept.get(full):
            return False
        span_ms = max(LOOK_MS, (now_ms - task.held_since_ms) // KEPT_SHARE)
        self.kept.setdefault(key, set()).add(task.key)
        self._hand_out(task, [*task.places, key], now_ms + span_ms)
        self.keepers[task.user_id] = task.task_id, now_ms + span_ms * (KEPT_SHARE + 1)
        return True

    def let_time_pass(self, now_ms: int) -> None:
        """Some users may keep a place again."""
        self.keepers = {user_id: kept for user_id, kept in self.keepers.items() if kept[1] >= now_ms}

    # Turns

    def pass_on(self, now_us: int) -> bool:
        """As many come back as places became free, in the order of keys. True: some did."""
        freed, self._freed = self._freed, {}
        held = self.lines.held
        return sum(self._look(now_us, key, min(freed[key], UNLIMITED)) for key in sorted(freed) if key in held) > 0

    def is_counting(self) -> bool:
        return any(not limit.is_counted for limit in self.rules.of.values())

    def tick(self, now_us: int, freedom: Freedom) -> None:
        """The keys that are due share alike what one call lets in. Before, what runs is counted for new limits."""
        if freedom.counts():
            self._count()
        if self._looks_at_filled:
            for key in [key for key in self.lines.held if "=" in key.partition(":")[0]]:
                self.lines.held.put(key, min(now_us // 1000, self.lines.held.scores[key]))
            self._looks_at_filled = False
        keys = sorted(self.lines.held.up_to(now_us // 1000, KEYS))
        for key in keys:
            self._look(now_us, key, max(1, UNLIMITED // len(keys)))

    def _count(self) -> None:
        if not self.is_counting():
            return
        for task in self._out():
            for key in self._limited(task):
                limit = self.rules.limit(key)
                if limit and not limit.is_counted and task.key not in self.running.get(key, ()):
                    self.running.setdefault(key, set()).add(task.key)
                    task.limited = [*task.limited, key]
        self.rules.count()

    def _look(self, now_us: int, key: str, most: int) -> int:
        """Returns how many were let in."""
        is_limited = self.rules.limit(key) is not None
        if is_limited:
            self._take_back_late(now_us, key)
        room = self._room(now_us, key) if is_limited else UNLIMITED
        given, is_cut = 0, False
        if room > 0:
            given, is_cut = self._turns(now_us, key, int(min(room, most)))
        if key in self.lines.users:
            is_cut = is_cut or self.rules.limit(key) is None or given == most < room
            self.lines.held.put(key, now_us // 1000 if is_cut else self._next_look_ms(now_us, key))
        return given

    def _turns(self, now_us: int, key: str, most: int) -> tuple[int, bool]:
        """By turns of users; those that cannot run now come after all others, for as long as a look lasts.

        Returns how many were let in, and whether there are users that were not looked at.
        """
        given, passed, last = 0, set(), now_us + most + USERS
        for turn in range(1, most + USERS + 1):
            user_id = self.lines.users[key].lowest() if key in self.lines.users else None
            if given == most or user_id is None or user_id in passed:
                return given, False
            if self.rules.limit(key) is not None and self._room(now_us, key) < 1:
                return given, False
            if self._can_run(now_us, user_id):
                self.lines.users[key].put(user_id, now_us + turn)
                given += self._take_turn(now_us, user_id, key)
            else:
                passed.add(user_id)
                self.lines.users[key].put(user_id, last + turn + LOOK_MS * 1000)
        return given, key in self.lines.users and self.lines.users[key].lowest_score() <= last

    def _take_turn(self, now_us: int, user_id: str, key: str) -> bool:
        """The first held task of the user is let in; else it waits for another key. Its user is behind the others."""
        task = self._tasks[user_id, str(self.lines.tasks[user_id, key].lowest())]
        full = self._blocked(now_us, task, key)
        self.lines.leave(task)
        if full is not None:
            is_kept = self.rules.limit(key) is not None and self._keep(now_us, key, full, task)
            self._join(now_us, full, task, is_first=is_kept)
            return False
        self._hand_out(task, self._limited(task), now_us // 1000 + LOOK_MS)
        self._let_in(now_us, task)
        return True

    def waiting(self, user_id: str) -> int:
        return len(self.lines.of_user.get(user_id, ()))
