"""Workers of the model: whom they serve, and who of them is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fairque.fairness.choice import EVERYBODY, Assignment, FairChoice
from fairque.fairness.freedom import Freedom
from fairque.models import UserGroup

__all__ = ["Workers", "assignments_of"]

SILENT_MS = 60_000
"""For so long a list of users is served after the last sign of life of a worker that serves it."""


def assignments_of(groups: Sequence[UserGroup]) -> list[Assignment]:
    """The lists that a worker serves, first to last. A user counts in the first one only."""
    known: set[str] = set()
    found = []
    for group in groups:
        users = frozenset(group) - known
        known |= users
        if users or not group:
            found.append(users)
    return found


class Workers:
    """The lists of users that workers serve. As long as all workers serve everybody, nothing is noted.

    Args:
        favour: Puts a user that is ready before all others where it has less than what is reserved for it.

    Attributes:
        noted: The ms of the last sign of life.
        ended: Lists that nobody serves any more → those of their users to whom nothing has been forgiven yet.
        names: By list, the workers that serve it.
    """

    def __init__(self, choice: FairChoice, favour: Callable[[str], None]) -> None:
        self.noted: dict[Assignment, int] = {}
        self.ended: dict[Assignment, set[str]] = {}
        self.names: dict[Assignment, set[str]] = {}
        self._choice = choice
        self._favour = favour

    def look(self, now_us: int) -> None:
        """Who lives at this time."""
        now_ms = now_us // 1000
        living = {users for users, at_ms in self.noted.items() if at_ms > now_ms - SILENT_MS}
        self._choice.live = living if self.noted or self.ended else None

    def note(self, now_us: int, worker: str, users: Assignment, freedom: Freedom) -> None:
        """A claim by a worker that serves these users, or everybody."""
        now_ms = now_us // 1000
        if not users and not (self.noted or self.ended):
            return
        if users and not self.noted and not self.ended:
            self.noted[EVERYBODY] = now_ms  # those that serve everybody were not noted so far
            self.look(now_us)
        before = self.noted.get(users)
        self.names.setdefault(users, set()).add(worker)
        if users and before is None:
            self.ended.pop(users, None)
            self._choice.note_workers(users)
        self.noted[users] = now_ms if before is None else freedom.notes(users, before, now_ms)
        self.look(now_us)
        self.tidy(now_us, freedom)
        self.look(now_us)
        if not users and (before is None or before <= now_ms - SILENT_MS) and len(self._choice.live or ()) > 1:
            self._choice.is_returning = True

    def leave(self, now_us: int, worker: str, groups: Sequence[UserGroup], freedom: Freedom) -> None:
        self.look(now_us)
        for users in assignments_of(groups):
            names = self.names.get(users, set())
            names.discard(worker)
            if users in self.noted and users and not names:
                self._end(users)
        if self.noted or self.ended:
            self.tidy(now_us, freedom)
        self.look(now_us)

    def _end(self, users: Assignment) -> None:
        del self.noted[users]
        self.names.pop(users, None)
        if users:
            self.ended[users] = set(users)

    def tidy(self, now_us: int, freedom: Freedom) -> None:
        """Lists that nobody served for long end, and what was served out of turn is forgiven to their users."""
        silent = [users for users, at_ms in self.noted.items() if at_ms <= now_us // 1000 - SILENT_MS]
        for users in freedom.ends(silent):
            self._end(users)
        for users in list(self.ended):
            released = freedom.releases(users, self.ended[users])
            self.ended[users] -= released
            for user_id in sorted(released):
                self._choice.forgive(user_id)
                if self._choice.is_ready(user_id):
                    self._favour(user_id)
            if not self.ended[users]:
                del self.ended[users]
        if not (self.noted.keys() - {EVERYBODY} or self.ended):
            self.noted.clear()
