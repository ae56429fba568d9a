"""`Moves`: tells who waits for a task that its user lives in another partition from now on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

from fairque.redis.home import Home
from fairque.redis.keys import Keys, encode_user
from fairque.redis.listener import Listener
from fairque.redis.places import MovedUser, Places

__all__ = ["Moves"]


class Moves:
    """One subscription to each partition in which somebody has waited for something.

    Args:
        listener: Of the queue.
        home: Where it is bound to.
    """

    def __init__(self, listener: Listener, home: Home) -> None:
        self._listener = listener
        self.abandon()
        home.add(self)

    def abandon(self) -> None:
        """Nothing is heard any more."""
        self._waiting: defaultdict[str, dict[Callable[[], None], None]] = defaultdict(dict)  # by encoded users
        self._heard: set[str] = set()  # prefixes

    async def join(self, user_id: str, keys: Keys, places: Places, moved: Callable[[], None]) -> None:
        """Have `moved` called when the user leaves that partition. Raises `QueueUnavailable`."""
        self._waiting[encode_user(user_id)][moved] = None
        if keys.prefix in self._heard:
            return
        self._heard.add(keys.prefix)
        try:
            await self._listener.subscribe(keys.moves_channel, partial(self._hear, places))
        except BaseException:
            self._heard.discard(keys.prefix)
            raise

    def leave(self, user_id: str, moved: Callable[[], None]) -> None:
        user = encode_user(user_id)
        self._waiting[user].pop(moved, None)
        if not self._waiting[user]:
            del self._waiting[user]

    def _hear(self, places: Places, told: bytes | None) -> None:
        """Where messages may have been missed, whoever waits looks, and is told by the partition."""
        if told is None:
            return
        user, partition, epoch = told.decode().split()
        places.learn(MovedUser(user, int(partition), int(epoch)))
        for moved in tuple(self._waiting.get(user, ())):
            moved()
