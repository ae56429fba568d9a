"""Schedules by the rules of their page in the documentation, with a clock of half hours."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Definition", "ModelSchedule", "ModelUser"]

MISFIRE_LIMIT = 3


@dataclass(frozen=True)
class Definition:
    """`every` counts half hours."""

    every: int
    max_runs: int | None = None
    overlap: str = "allow"
    misfire: str = "once"
    number: int = 0


@dataclass
class ModelUser:
    """Its tasks by id, of those that have not ended: queued or started. `room`: how many may wait."""

    tasks: dict[str, str] = field(default_factory=dict)
    room: int | None = None

    def waiting(self) -> int:
        return sum(state == "queued" for state in self.tasks.values())

    def has_room(self, more: int) -> bool:
        return self.room is None or self.waiting() + more <= self.room


class ModelSchedule:
    """One schedule. Its tasks are called ``new 1`` and so on, until who plays knows how they are called."""

    def __init__(self, user: ModelUser, definition: Definition, now: int) -> None:
        self.user = user
        self.own: set[str] = set()  # ids of tasks that it made
        self.made = 0
        self.begin(definition, now)

    def begin(self, definition: Definition, now: int) -> None:
        self.definition, self.state = definition, "active"
        self.runs = self.skipped = self.misfired = 0
        self.anchor, self.next = now, now + definition.every

    # What is done to it

    def add(self, definition: Definition, now: int) -> None:
        before = self.definition
        if self.state == "ended":
            if (before.every, before.max_runs) != (definition.every, definition.max_runs):
                self.begin(definition, now)
            else:
                self.definition = definition
        elif definition.max_runs is not None and definition.max_runs <= self.runs:
            self.definition, self.state = definition, "ended"
        else:
            self.change(definition, now)

    def may_change(self, definition: Definition) -> bool:
        enough = definition.max_runs is not None and definition.max_runs <= self.runs
        return self.state != "ended" and not enough

    def change(self, definition: Definition, now: int) -> None:
        if definition.every != self.definition.every:
            self.anchor, self.next = now, now + definition.every
        self.definition = definition

    def resume(self, now: int) -> None:
        if self.state == "paused":
            self.state, self.next = "active", max(self.next, self.next_after(now))

    def next_after(self, now: int) -> int:
        every = self.definition.every
        return self.anchor + ((now - self.anchor) // every + 1) * every

    def run_now(self) -> bool:
        overlap = "allow" if self.definition.overlap == "skip" else self.definition.overlap
        return self.put(overlap) == "fired"

    # Time

    def fire(self, now: int) -> None:
        """All that came due since it was looked at last. What came before now was missed."""
        if self.state != "active":
            return
        every, misfire = self.definition.every, self.definition.misfire
        due = list(range(self.next, now + 1, every))
        late = [slot for slot in due if slot < now]
        if late and misfire == "once":
            self.misfired += len(due) - 1
            due = due[-1:]
        elif late and misfire == "skip":
            self.misfired += len(late)
            due = due[len(late) :]
        elif misfire == "all" and len(late) > MISFIRE_LIMIT:
            missed = len(late) - MISFIRE_LIMIT
            self.misfired += missed
            due = due[missed:]
        self.next = max(self.next, self.next_after(now))
        self.fire_each(due)

    def fire_ahead(self, until: int) -> None:
        """Each slot as if its time had come."""
        if self.state == "active":
            due = list(range(self.next, until + 1, self.definition.every))
            self.next += len(due) * self.definition.every
            self.fire_each(due)

    def fire_each(self, due: list[int]) -> None:
        for _ in due:
            if self.state == "active":
                self.fire_one()

    def fire_one(self) -> None:
        if self.put(self.definition.overlap) == "fired":
            self.runs += 1
        else:
            self.skipped += 1
        if self.definition.max_runs is not None and self.runs >= self.definition.max_runs:
            self.state = "ended"

    def name_tasks(self, ids: list[str]) -> None:
        """Those that have no name yet are called so, in the order in which they were made."""
        new = sorted((each for each in self.user.tasks if each.startswith("new ")), key=lambda each: int(each[4:]))
        assert len(ids) == len(new)
        for name, task_id in zip(new, ids, strict=True):
            self.user.tasks[task_id] = self.user.tasks.pop(name)
            self.own.add(task_id)

    def put(self, overlap: str) -> str:
        living = self.own & self.user.tasks.keys()
        if overlap == "skip" and living:
            return "skipped"
        canceled = living if overlap == "cancel_running" else set()
        free = [task_id for task_id in canceled if self.user.tasks[task_id] == "queued"]
        if not self.user.has_room(1 - len(free)):
            return "full"
        for task_id in free:
            del self.user.tasks[task_id]
        self.made += 1
        name = f"new {self.made}"
        self.user.tasks[name] = "queued"
        self.own.add(name)
        return "fired"
