"""What becomes of tasks that wait for each other, told in as few words as possible, and a look whether Redis agrees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fairque.redis.keys import encode_user
from tests.support.core import Key

LIVING = ("deferred", "scheduled", "queued", "started")


class Wish(NamedTuple):
    """A task as it is asked for."""

    task_id: str
    needs: tuple[str, ...] = ()
    policy: str = "wait"
    allow_unknown: bool = False
    delayed: bool = False


@dataclass
class Known:
    """A task as the model has it."""

    state: str
    policy: str = "wait"
    delayed: bool = False
    needs: set[str] = field(default_factory=set)
    uses: set[str] = field(default_factory=set)  # what it depends on, until it has ended; a dead letter may be requeued
    allow_unknown: bool = False
    canceling: bool = False


class UserModel:
    """The tasks of one user by id. What was discarded or purged is not known."""

    def __init__(self) -> None:
        self.tasks: dict[str, Known] = {}

    def ids(self, *states: str) -> list[str]:
        return sorted(task_id for task_id, task in self.tasks.items() if task.state in states)

    def refusal(self, wishes: Sequence[Wish]) -> str | None:
        """``unknown`` or ``cycle``; None when the tasks are taken."""
        new = self._new(wishes)
        for wish in new.values():
            if not wish.allow_unknown and any(need not in new and need not in self.tasks for need in wish.needs):
                return "unknown"
        waits = {task_id: set(task.needs) for task_id, task in self.tasks.items()}
        waits |= {wish.task_id: set(wish.needs) for wish in new.values()}
        return "cycle" if any(self._reaches(waits, task_id) for task_id in new) else None

    def enqueue(self, wishes: Sequence[Wish]) -> list[bool]:
        new = self._new(wishes)
        for wish in new.values():
            known, needs = self.tasks.get(wish.task_id), set(wish.needs)
            uses = self._used(wish, new) | (known.uses if known else set())
            self.tasks[wish.task_id] = Known("deferred", wish.policy, wish.delayed, needs, uses, wish.allow_unknown)
        for wish in new.values():
            for need in wish.needs:
                if need not in new and need in self.tasks:
                    self._inform(wish.task_id, need, self.tasks[need].state)
            task = self.tasks[wish.task_id]
            if task.state == "deferred" and not task.needs:
                self._release(task)
        return [wish.task_id in new for wish in wishes]

    def _used(self, wish: Wish, new: dict[str, Wish]) -> set[str]:
        """Not one that is known to give nothing."""
        given_up = self.ids("failed", "canceled") if wish.policy == "run" else []
        return {need for need in wish.needs if need in new or need not in given_up}

    def end(self, task_id: str, state: str) -> None:
        task = self.tasks[task_id]
        task.state, task.canceling, task.needs = state, False, set()
        if state != "failed":
            task.uses = set()
        self._tell(task_id, state)

    def _tell(self, task_id: str, state: str) -> None:
        for other in [other for other, waiting in self.tasks.items() if task_id in waiting.needs]:
            self._inform(other, task_id, state)

    def settle(self, task_id: str, kind: str, *, later: bool) -> None:
        task = self.tasks[task_id]
        if kind in ("finished", "failed"):
            self.end(task_id, kind)
        elif kind == "canceled" or task.canceling:
            self.end(task_id, "canceled")
        else:
            task.state = "scheduled" if later else "queued"

    def cancel(self, task_id: str) -> str | None:
        task = self.tasks.get(task_id)
        if task is None:
            return None
        if task.state == "started":
            task.canceling = True
            return "canceling"
        if task.state not in LIVING:
            return "ended"
        self.end(task_id, "canceled")
        return "done"

    def requeue(self, task_id: str) -> bool:
        is_dead = task_id in self.ids("failed")
        if is_dead:
            self.tasks[task_id].state = "queued"
        return is_dead

    def discard(self, task_id: str) -> bool:
        is_dead = task_id in self.ids("failed")
        if is_dead:
            del self.tasks[task_id]
            self._tell(task_id, "discarded")
        return is_dead

    def _new(self, wishes: Iterable[Wish]) -> dict[str, Wish]:
        living = self.ids(*LIVING)
        return {wish.task_id: wish for wish in wishes if wish.task_id not in living}

    def _reaches(self, waits: dict[str, set[str]], start: str) -> bool:
        todo, seen = list(waits[start]), set[str]()
        while todo:
            task_id = todo.pop()
            if task_id == start:
                return True
            if task_id not in seen:
                seen.add(task_id)
                todo += waits.get(task_id, ())
        return False

    def _inform(self, task_id: str, need: str, state: str) -> None:
        task = self.tasks[task_id]
        if task.state != "deferred" or state in LIVING:
            return
        if state == "finished" or task.policy == "run":
            task.needs.discard(need)
            if not task.needs:
                self._release(task)
        elif task.policy == "cancel" or (state != "failed" and not (task.policy == "run" or task.allow_unknown)):
            self.end(task_id, "canceled")

    def _release(self, task: Known) -> None:
        task.state = "scheduled" if task.delayed else "queued"


# What is in Redis

_PLACES = {"critical": "queued", "normal": "queued", "scheduled": "scheduled", "deferred": "deferred", "dead": "failed"}
_RECORDS = {b"F": "finished", b"X": "failed", b"C": "canceled"}


class Found:
    """Every task that the keys of a queue tell of. Raises AssertionError where they contradict each other."""

    def __init__(self, dump: dict[str, Key]) -> None:
        self.dump = dump
        self.states: dict[tuple[str, str], str] = {}
        self.needs = self._sets("needs")
        self.uses = self._sets("uses")
        self.feeds = self._sets("feeds")
        for pair, ids in self._sets("informed").items():
            self.feeds.setdefault(pair, set()).update(ids)
        state = dump.get("state")
        self.counters = dict(state.pairs) if state else {}
        self.put_off = sum(len(key.content) for name, key in dump.items() if name.startswith("announcements:"))

    def check(self) -> None:
        self._each_is_in_one_place()
        self._links_mirror_each_other()
        self._results_stay_while_others_use_them()
        self._counters_are_right()

    def of_user(self, user_id: str) -> dict[str, str]:
        user = encode_user(user_id)
        return {task_id: state for (owner, task_id), state in self.states.items() if owner == user}

    def _sets(self, kind: str) -> dict[tuple[str, str], set[str]]:
        found = {}
        for name, key in self.dump.items():
            if name.startswith(f"{kind}:"):
                user, _, task_id = name.removeprefix(f"{kind}:").partition(":")
                found[user, task_id] = {member.decode() for member in key.content}
        return found

    def _members(self, kind: str) -> Iterable[tuple[str, str]]:
        for name, key in self.dump.items():
            place, _, user = name.partition(":")
            if place == kind and user:
                members = key.content if key.kind == "set" else key.content[::2]
                yield from ((user, member.decode()) for member in members)

    def _named(self, kind: str) -> dict[tuple[str, str], Key]:
        names = {name: key for name, key in self.dump.items() if name.startswith(f"{kind}:")}
        return {tuple(name.split(":", 2)[1:]): key for name, key in names.items()}  # type: ignore[misc]

    def _place(self, pair: tuple[str, str], state: str) -> None:
        assert pair not in self.states, f"{pair} is {self.states[pair]} and {state}"
        self.states[pair] = state

    def _each_is_in_one_place(self) -> None:
        for place, state in _PLACES.items():
            for pair in self._members(place):
                self._place(pair, state)
        self._place_what_is_out()
        assert set(self.states) == set(self._named("body")), "a body without a place, or the reverse"
        for pair, key in self._named("result").items():
            self._place_ended(pair, _RECORDS[key.content[0][9:10]])
        for pair, key in self._named("task").items():
            told = dict(key.pairs).get("state")
            assert told in (None, self.states.get(pair)), f"{pair} is {self.states.get(pair)} and says {told}"

    def _place_what_is_out(self) -> None:
        for name, key in self.dump.items():
            lane, _, user = name.partition(":")
            if lane in ("critical-stream", "normal-stream"):
                for task_id, _ in key.holdings:
                    self._place((user, task_id), "started")

    def _place_ended(self, pair: tuple[str, str], state: str) -> None:
        if state == "failed":
            assert self.states.get(pair) == "failed", f"{pair} failed and is {self.states.get(pair)}"
        else:
            self._place(pair, state)

    def _links_mirror_each_other(self) -> None:
        using = {(user, need, task_id) for (user, task_id), needs in self.uses.items() for need in needs}
        waiting = {(user, need, task_id) for (user, task_id), needs in self.needs.items() for need in needs}
        feeding = {(user, need, task_id) for (user, need), ids in self.feeds.items() for task_id in ids}
        assert feeding == using
        assert waiting <= using, f"waits for what it does not use: {waiting - using}"
        deferred = {pair for pair, state in self.states.items() if state == "deferred"}
        assert deferred == set(self.needs), "deferred without needs, or the reverse"
        if not self.put_off:
            told = {pair for pair, key in self._named("task").items() if "linked" in dict(key.pairs)}
            linked = {*self.feeds, *self.uses}
            assert told == linked, f"told {told}, found {linked}"
            lapsing = set(self._members("lapsing"))
            assert {pair for pair in linked if self.states.get(pair) == "failed"} == lapsing
            listed = self.dump["lapsing"].pairs if "lapsing" in self.dump else ()
            assert {user for user, _ in listed} == {user for user, _ in lapsing}

    def _results_stay_while_others_use_them(self) -> None:
        for pair, key in self._named("result").items():
            stays = self.states[pair] == "finished" and pair in self.feeds
            assert self.put_off or key.expires != stays, f"the result of {pair} {'expires' if stays else 'stays'}"

    def _counters_are_right(self) -> None:
        counted = {
            "critical": len(list(self._members("critical"))),
            "normal": len(list(self._members("normal"))),
            "scheduled": len(list(self._members("scheduled"))),
            "deferred": len(list(self._members("deferred"))),
            "started": list(self.states.values()).count("started"),
            "announcements": self.put_off,
        }
        for name, number in counted.items():
            assert int(self.counters.get(name, 0)) == number, f"{name}: {self.counters.get(name)}, counted {number}"
        ready = {user for user, _ in self.dump["ready"].pairs} if "ready" in self.dump else set()
        assert ready == {user for place in ("critical", "normal") for user, _ in self._members(place)}
        due = {user for user, _ in self.dump["due"].pairs} if "due" in self.dump else set()
        assert due == {user for user, _ in self._members("scheduled")}
        letters = {member for member, _ in self.dump["dead"].pairs} if "dead" in self.dump else set()
        assert letters == {f"{user}:{task_id}" for user, task_id in self._members("dead")}
