"""`Places`: in which partition each user of a queue lives, as far as it is known here."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import NamedTuple

from fairque.errors import StoreError
from fairque.redis.keys import decode_user
from fairque.redis.partitions import partition_of

__all__ = [
    "ELSEWHERE",
    "HERE",
    "MembersApart",
    "MovedUser",
    "Places",
    "UserElsewhere",
    "moved_in",
    "raise_moved",
    "root_of",
]

ELSEWHERE = "ELSEWHERE"
"""With which a partition answers where a user does not live: lua/lib/moved.lua."""
MOST_KNOWN = 65_536
HERE = -1
"""In place of a partition: the one that is told so."""
_WORDS = 3


class MovedUser(NamedTuple):
    """Where a partition says that a user lives, by its name in Redis. The `epoch` of a user grows with each move."""

    user: str
    partition: int
    epoch: int


class UserElsewhere(StoreError):
    """What was asked for is of users who do not live in the partition that was asked. Nothing was written.

    Calls of a queue follow by themselves: this is for who asks one partition.

    Attributes:
        moved: Who, and where they live.
    """

    def __init__(self, moved: tuple[MovedUser, ...]) -> None:
        self.moved = moved
        named = ", ".join(f"{decode_user(user.encode())!r} in {at}" for user, at, _ in moved[:8])
        super().__init__(f"users live in other partitions: {named}{', …' if len(moved) > 8 else ''}")


class Places:
    """By its name, but for those who were moved. May be used from any thread.

    Of moved ones so many are kept; who was forgotten is asked for where its name leads, and found again.

    Args:
        count: How many partitions there are.
    """

    def __init__(self, count: int, most: int = MOST_KNOWN) -> None:
        self.count = count
        self._most = most
        self._moved: OrderedDict[str, MovedUser] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, user: str) -> int:
        """Of a user, by its name in Redis."""
        if user in self._moved:
            with self._lock:
                if (known := self._moved.get(user)) is not None:
                    self._moved.move_to_end(user)
                    return known.partition
        return partition_of(user, self.count)

    def learn(self, moved: MovedUser) -> bool:
        """Returns whether the user is to be looked for there. Not where a later move is known: a partition to which a
        user is on its way may still say where it went the last time.
        """
        with self._lock:
            known = self._moved.get(moved.user)
            if not 0 <= moved.partition < self.count:
                return False
            if known is not None and moved != known and moved.epoch <= known.epoch:
                return False
            self._moved[moved.user] = moved
            self._moved.move_to_end(moved.user)
            if len(self._moved) > self._most:
                self._moved.popitem(last=False)
            return True

    def learn_all(self, moved: Iterable[MovedUser]) -> None:
        """Those of whom no later move is known."""
        for each in moved:
            self.learn(each)

    def news_in(self, error: UserElsewhere, followed: Collection[MovedUser]) -> list[MovedUser]:
        """What of it is to be followed, but for what was before by the same call. All of it is learnt."""
        return [each for each in error.moved if self.learn(each) and each not in followed]


class MembersApart(StoreError):
    """A user is to be in a group, and does not live where that does. Nothing was written.

    Attributes:
        user: By its name in Redis.
        partition: Where the group lives.
    """

    def __init__(self, user: str, partition: int) -> None:
        self.user, self.partition = user, partition
        super().__init__(
            f"user {decode_user(user.encode())!r} does not live in partition {partition}, where its group does"
        )


def root_of(group: str) -> str:
    """By which name the place of a group is looked for, as that of a user is by its own: the first name of its path, as
    Redis has it, with an ``@`` in front.
    """
    return "@" + group.removeprefix("@").partition("/")[0]


def raise_moved(answers: Iterable[object]) -> None:
    """Where calls of several partitions were answered so, all of it is learnt at once."""
    if moved := tuple(each for answer in answers if isinstance(answer, UserElsewhere) for each in answer.moved):
        raise UserElsewhere(moved)


def moved_in(text: str) -> UserElsewhere:
    """The error that an answer of a partition is. Servers add words of their own."""
    words = text.split()[1:]
    found: list[MovedUser] = []
    for at in range(0, len(words) - 2, _WORDS):
        user, partition, epoch = words[at : at + _WORDS]
        if not (partition.isdigit() and epoch.isdigit()):
            break
        found.append(MovedUser(user, int(partition), int(epoch)))
    return UserElsewhere(tuple(found))
