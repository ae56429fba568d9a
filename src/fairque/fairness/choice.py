"""The fair choice in pure Python, which the scripts are held against.

It knows no Redis and has no clock of its own, every call is told the time. Whatever the scripts decide is decided here
once more, from the rules instead of from their text, and the tests compare both after each step.

The choice is start-time fair queueing (Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996): each user has a
tag, its virtual start time; the lowest is served, and moves up by cost / weight. While two users of one line both have
servable work, the services S they received obey ``|S_i/w_i - S_j/w_j| <= c_i/w_i + c_j/w_j``, where c is the largest
cost of any task of that user. Groups share by the same rule, and so do the users and groups of one group with each
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from functools import lru_cache
from urllib.parse import quote

from fairque.fairness.line import CREDIT, HORIZON, LARGEST_DEBT, MEAN_OVER, Line
from fairque.fairness.sorted_set import SortedSet
from fairque.models import UserGroup

__all__ = [
    "CREDIT",
    "EVERYBODY",
    "HORIZON",
    "LARGEST_DEBT",
    "MEAN_OVER",
    "Assignment",
    "FairChoice",
    "Line",
    "SortedSet",
    "encoded",
    "encoded_path",
]

Assignment = frozenset[str]
"""The users that some workers serve."""
EVERYBODY: Assignment = frozenset()
ROOT = ""
SEPARATOR = "/"


@lru_cache(maxsize=65536)
def encoded(user_id: str) -> str:
    """How a user is named in Redis; ties between users are decided by this name."""
    return quote(user_id, safe="")


@lru_cache(maxsize=65536)
def encoded_path(group: str) -> str:
    """How a group is named in Redis: each of its segments as a user is."""
    return SEPARATOR.join(map(encoded, group.split(SEPARATOR)))


def _party(path: str) -> str:
    """All users of a group, as one member of the line above it."""
    return f"@{path}"


def min_of(tags: Iterable[float | None]) -> float | None:
    return min((tag for tag in tags if tag is not None), default=None)


class FairChoice:
    """Whose turn it is. Knows users, groups, costs and whom workers serve, nothing of tasks.

    There is a line for each group, and one for what is in no group. A group is a member of the line above its own, with
    a tag and a weight as a user has them. A group that has nobody to serve is in no line, as is a user.

    Attributes:
        lines: By the encoded path of the group; the first one has none.
        reserved: Those of the ready users that are served before all others, with their tags.
        default_weight: Of users that have none of their own. What is ahead of others is counted by a new one as soon
            as a user comes, has its turn, or is looked at by `weigh`.
        live: The lists of users that workers serve now; None as long as all workers serve everybody.
        is_returning: Workers that serve everybody have come back, and whom nobody served has not been looked at.
    """

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {ROOT: Line()}
        self.reserved: SortedSet[str] = SortedSet(encoded)
        self.default_weight = 1.0
        self.live: set[Assignment] | None = None
        self.is_returning = False
        self._weights: dict[str, float] = {}
        self._group_weights: dict[str, float] = {}
        self._group_of: dict[str, str] = {}
        self._user_of: dict[str, str] = {}

    @property
    def line(self) -> Line:
        """Of users without a group and of whole groups."""
        return self.lines[ROOT]

    @property
    def clock(self) -> float:
        return self.line.clock

    @clock.setter
    def clock(self, clock: float) -> None:
        self.line.clock = clock

    @property
    def ready(self) -> SortedSet[str]:
        return self.line.ready

    @property
    def kept(self) -> dict[str, float]:
        return self.line.kept

    # Weights and groups

    def weight(self, user_id: str) -> float:
        return self._weights.get(user_id, self.default_weight)

    def set_weight(self, user_id: str, weight: float | None) -> None:
        """Holds at once: what the user is ahead of the others is counted by the new weight. None is the default."""
        if weight is None:
            self._weights.pop(user_id, None)
        else:
            self._weights[user_id] = weight
        self.weigh(user_id)

    def group_weight(self, group: str) -> float:
        return self._group_weights.get(group, 1.0)

    def group_weights(self) -> dict[str, float]:
        """Those that were set."""
        return dict(self._group_weights)

    def set_group_weight(self, group: str, weight: float | None) -> None:
        if weight is None:
            self._group_weights.pop(group, None)
        else:
            self._group_weights[group] = weight
        path = encoded_path(group)
        self._weigh(self._line_at(path.rpartition(SEPARATOR)[0]), _party(path), self.group_weight(group))

    def _line_at(self, path: str) -> Line:
        """Those around it are there as well."""
        if path not in self.lines:
            self._line_at(path.rpartition(SEPARATOR)[0])
            self.lines[path] = Line()
        return self.lines[path]

    def weigh(self, user_id: str) -> None:
        """Whatever weights have changed, the tags of the user and of its groups are counted by those of now."""
        for line, member, weight in self._levels(user_id):
            self._weigh(line, member, weight)
        self._refresh(user_id)

    def _weigh(self, line: Line, member: str, weight: float) -> None:
        if line.weights.get(member, 1.0) != weight:
            line.weigh(member, weight)

    def group(self, user_id: str) -> str | None:
        return self._group_of.get(user_id)

    def set_group(self, user_id: str, group: str | None) -> None:
        """The user leaves the line it stood in, and its tag behind, which belongs to the time of that line."""
        if group == self.group(user_id):
            return
        if self.is_ready(user_id):
            self.leave(user_id)
        self.forget(user_id)
        if group is None:
            del self._group_of[user_id]
        else:
            self._group_of[user_id] = group

    def line_of(self, user_id: str) -> Line:
        """Where the user stands."""
        group = self._group_of.get(user_id)
        return self.line if group is None else self._line_at(encoded_path(group))

    def _levels(self, user_id: str) -> Iterator[tuple[Line, str, float]]:
        """From the innermost line outward: the line, who of it stands for the user, and its weight."""
        yield self.line_of(user_id), encoded(user_id), self.weight(user_id)
        group = self._group_of.get(user_id)
        while group:
            outer = group.rpartition(SEPARATOR)[0]
            line = self._line_at(encoded_path(outer) if outer else ROOT)
            yield line, _party(encoded_path(group)), self.group_weight(group)
            group = outer

    # Whom workers serve

    def note_workers(self, users: Assignment) -> None:
        """Workers that serve these users come. Whom nobody served is owed little for that time."""
        served = [self._tree(other) for other in self._living()]
        if self.live is None:
            self.live = set()
        self.live.add(users)
        for line, members in self._tree(users).items():
            orphans = {member for member in members if not any(member in tree.get(line, ()) for tree in served)}
            self._owe_no_more(line, orphans, members - orphans)
        for user_id in list(self.reserved):
            self._refresh(user_id)

    def end_return(self) -> None:
        """Workers that serve everybody had come back: the same for all whom nobody served meanwhile."""
        if not self.is_returning:
            return
        self.is_returning = False
        served = [self._tree(other) for other in self._living() if other]
        for line, members in self._tree(EVERYBODY).items():
            others = {member for tree in served for member in tree.get(line, ())}
            self._owe_no_more(line, members - others, others)
        for user_id in list(self.reserved):
            self._refresh(user_id)

    def _owe_no_more(self, line: Line, orphans: Set[str], others: Set[str]) -> None:
        low = min((line.ready.scores[member] for member in others), default=None)
        if low is not None:
            for member in orphans:
                line.owe_no_more(member, low)

    def _living(self) -> Set[Assignment]:
        return {EVERYBODY} if self.live is None else self.live

    def standing_for(self, line: Line, users: Assignment) -> Set[str]:
        """Who of a line is ready and stands for one of these users."""
        return self._tree(users).get(line, set())

    def _tree(self, users: Assignment) -> dict[Line, set[str]]:
        """Who of each line is ready and stands for one of these users."""
        found: dict[Line, set[str]] = {}
        for user_id in users or self.users_ready():
            if self.is_ready(user_id):
                for line, member, _ in self._levels(user_id):
                    found.setdefault(line, set()).add(member)
        return found

    def end_workers(self, users: Assignment) -> None:
        """The last worker that serves these users is gone: what it served them out of turn is forgiven."""
        if self.live is not None:
            self.live.discard(users)
        for user_id in sorted(users):
            self.forgive(user_id)

    def is_served(self, user_id: str) -> bool:
        return any(self._serves(users, user_id) for users in self._living())

    def _serves(self, users: Assignment, user_id: str) -> bool:
        return not users or user_id in users

    def _low(self, line: Line, user_id: str) -> float | None:
        """The lowest tag that counts for the user where it enters.

        Of all those that the same workers serve, or it would enter at the tag of one that nobody serves. Where several
        kinds of workers serve it, the highest of theirs: at a lower one it would pass the users of the others.
        """
        if self.live is None:
            return line.lowest_tag()
        lows = [self._lowest_among(line, users) for users in self.live if self._serves(users, user_id)]
        return max((low for low in lows if low is not None), default=None)

    def _lowest_among(self, line: Line, users: Assignment) -> float | None:
        if not users:
            return self._lowest_of_all(line)
        return min((line.ready.scores[member] for member in self._tree(users).get(line, ())), default=None)

    def _lowest_of_all(self, line: Line) -> float | None:
        """Whom nobody served for long holds nobody down as soon as it is served again."""
        low = line.lowest_tag()
        if low is not None and self.is_returning:
            served = [self._lowest_among(line, users) for users in self._living() if users]
            low = max([low, *(tag - CREDIT * line.mean for tag in [min_of(served)] if tag is not None)])
        return low

    # Who is ready

    def is_ready(self, user_id: str) -> bool:
        return encoded(user_id) in self.line_of(user_id).ready

    def tag(self, user_id: str) -> float:
        """Its virtual start time in its line, kept while it has nothing to serve; 0 of one that stands nowhere."""
        return self.line_of(user_id).tag(encoded(user_id)) or 0.0

    def join(self, user_id: str, cost: float = 1.0) -> None:
        """The user has servable work now, its first task costs this much. No effect on one that is ready already."""
        if self.is_ready(user_id):
            return
        self.weigh(user_id)
        self._user_of[encoded(user_id)] = user_id
        lows = [self._low(line, user_id) for line, _, _ in self._levels(user_id)]
        for (line, member, weight), low in zip(list(self._levels(user_id)), lows, strict=True):
            was_empty = not line.ready
            line.join(member, cost / weight, low)
            if not was_empty:
                return

    def leave(self, user_id: str, *, is_capped: bool = False) -> None:
        """The user has no servable work any more. It gains nothing by coming back: its tag is kept.

        `is_capped`: it has work, and as much of it runs as may.
        """
        self.reserved.drop(user_id)
        for line, member, _ in self._levels(user_id):
            line.leave(member, is_capped=is_capped)
            if line.ready:
                return

    def forget(self, user_id: str) -> None:
        """What is kept of one that is not ready."""
        self.line_of(user_id).forget(encoded(user_id))

    def uncap(self, user_id: str) -> None:
        """It has nothing any more that its cap keeps from running."""
        self.line_of(user_id).uncap(encoded(user_id))

    def forgive(self, user_id: str) -> None:
        """What it was served out of turn, by a reservation or a worker of its own, ends to count against it."""
        self.line_of(user_id).forgive(encoded(user_id))
        self._refresh(user_id)

    def reserve(self, user_id: str, is_below: bool) -> None:
        """Whether a user that is ready has less than what is reserved for it."""
        if is_below:
            self.reserved.put(user_id, self.tag(user_id))
        else:
            self.reserved.drop(user_id)

    # Services

    def lowest(self, group: UserGroup = (), but: Set[str] = frozenset()) -> str | None:
        """Who is to be served next, of these users or (without any) of all, but for some.

        A reserved user goes first. Of a group its lowest goes.
        """
        if group:
            able = (user_id for user_id in group if user_id not in but and self.is_ready(user_id))
            return min(able, key=self._turn, default=None)
        return next((user_id for user_id in self._in_order() if user_id not in but), None)

    def _in_order(self) -> Iterator[str]:
        yield from self.reserved
        yield from self._users_ready()

    def users_ready(self) -> list[str]:
        return list(self._users_ready())

    def _users_ready(self, path: str = ROOT) -> Iterator[str]:
        for member in self.lines[path].ready:
            if member.startswith("@"):
                yield from self._users_ready(member[1:])
            else:
                yield self._user_of[member]

    def _turn(self, user_id: str) -> tuple[object, ...]:
        if user_id in self.reserved:
            return 0, self.tag(user_id), encoded(user_id)
        places = [(line.ready.scores[member], member) for line, member, _ in self._levels(user_id)]
        return 1, *reversed(places)

    def serve(self, user_id: str, cost: float) -> None:
        """Charge one service, to the user and to its groups."""
        self.weigh(user_id)
        for line, member, weight in self._levels(user_id):
            line.serve(member, cost, weight)
        self._refresh(user_id)

    def adjust(self, user_id: str, cost: float) -> None:
        """A service has cost so much more than what was charged for it, or less."""
        self.weigh(user_id)
        for line, member, weight in self._levels(user_id):
            line.move(member, cost / weight)
        self._refresh(user_id)

    def _refresh(self, user_id: str) -> None:
        if user_id in self.reserved:
            self.reserved.put(user_id, self.tag(user_id))
