"""Every key and channel name. The scripts build the rest from the same prefix."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote, unquote

from fairque.errors import ConfigError
from fairque.redis.partitions import queue_in_tag, tag_of_copy, tags_of

__all__ = ["KEYS_OF_ALL", "LAYOUT", "Keys", "decode_user", "encode_user", "glob", "queue_of", "tag_of"]

KEYS_OF_ALL = "fairque:{"
"""With which every key of every queue begins."""
LAYOUT = 1
"""The number of the data layout: another one when old and new processes could not work on the same keys."""


@lru_cache(maxsize=65536)
def encode_user(user_id: str) -> str:
    """Percent-encoded but for ``[A-Za-z0-9._~-]``, so that no id can run into another user's key."""
    return quote(user_id, safe="")


@lru_cache(maxsize=65536)
def decode_user(user: bytes) -> str:
    return unquote(user.decode())


def tag_of(key: bytes) -> str:
    """What says in which slot a key lies: the name of a queue, or of a partition."""
    return key.decode(errors="replace").removeprefix(KEYS_OF_ALL).partition("}")[0]


def queue_of(key: bytes) -> str:
    """Whose key this is, of whichever partition."""
    return queue_in_tag(tag_of(key))


def glob(text: str) -> str:
    """Literally, in a pattern."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)


def _is_name(queue: object) -> bool:
    if not isinstance(queue, str) or "{" in queue or "}" in queue:
        return False
    return 1 <= len(queue.encode(errors="surrogatepass")) <= 200 and queue.isprintable()


class Keys:
    """The names of one queue. The braces come first, so that nothing a user chose moves a key to another slot.

    Args:
        queue: Its name.
        partition: Which one of how many; None: of a queue without, or of what a queue with partitions says of them.
        is_copy: Of what it says of them once more.
        in_cluster: Whether it may move from node to node.

    Attributes:
        of_calls: What a call of a script names. In a cluster, beside `state`, a key of which there is never one: while
            a slot is moved key by key, a node refuses a call of which it has not all the keys, and one that has lost
            some of a queue is not to see the rest.
    """

    def __init__(
        self, queue: str, partition: tuple[int, int] | None = None, *, is_copy: bool = False, in_cluster: bool = False
    ) -> None:
        if not _is_name(queue):
            raise ConfigError(f"a queue name has 1 to 200 bytes and no braces, not {queue!r}")
        if queue_in_tag(queue) != queue:
            raise ConfigError(f"a queue name must not end like that of a partition, with '/number~number': {queue!r}")
        tag = tag_of_copy(queue) if is_copy else queue
        if partition is not None:
            at, count = partition
            tag = tags_of(queue, count)[at]
        self._queue = queue
        self.prefix = f"{KEYS_OF_ALL}{tag}}}:"
        self.state = self.prefix + "state"
        self.settings = self.prefix + "settings"
        self.of_calls = (self.state, self.prefix + "absent") if in_cluster else (self.state,)

    @property
    def copy(self) -> Keys:
        """Of the copy of what a queue with partitions says of them."""
        return Keys(self._queue, is_copy=True, in_cluster=len(self.of_calls) > 1)

    def wake_channel(self, worker_id: str) -> str:
        return f"{self.prefix}wake:{worker_id}"

    @property
    def schedules_channel(self) -> str:
        """Where a message says that a schedule was added or changed."""
        return self.prefix + "schedules"

    @property
    def moves_channel(self) -> str:
        """Where a message says that a user does not live here any more, and where it does: see `move_told`."""
        return self.prefix + "moved"

    def chunks_channel(self, user_id: str, task_id: str) -> str:
        """Where a message says that a task has yielded something, see `batch_told`."""
        return f"{self.prefix}chunks:{encode_user(user_id)}:{task_id}"

    def done_channel(self, user_id: str, task_id: str) -> str:
        return f"{self.prefix}done:{encode_user(user_id)}:{task_id}"
