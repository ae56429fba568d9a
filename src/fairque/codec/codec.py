"""`Codec`: what makes contents into bytes that go to Redis, and back. `Sealer`: the one of a queue."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import msgspec

from fairque.errors import SealError, UnknownKey, WrongType

__all__ = ["Codec", "Kind", "Place", "Sealer"]

_encode = msgspec.msgpack.Encoder().encode


class Kind(StrEnum):
    """What is sealed. A part of what it is bound to: a result is no argument."""

    ARGUMENTS = "arguments"
    CALLBACK = "callback"  # arguments, of a task that is put in at the end of another one
    DEBOUNCED = "debounced"  # arguments, of a call that is put in under the id of an earlier one
    RESULT = "result"
    FAILURE = "failure"  # in the record of a task that failed
    ATTEMPT = "attempt"  # in the list of failed attempts
    PROGRESS = "progress"
    CANCELLATION = "cancellation"  # why a task was canceled
    CHUNKS = "chunks"  # some of those that a task has yielded
    XCOM = "xcom"
    SCHEDULE = "schedule"  # arguments, of a task that is to be repeated
    SCHEDULED_CALLBACKS = "scheduled callbacks"  # all of such a task, with their messages


class Place(NamedTuple):
    """What sealed bytes belong to. At any other place they cannot be opened.

    Attributes:
        realm: The queue's name, unless the codec says otherwise.
        user_id: Whose they are.
        id: Of the task, of the schedule; of an XCom value the namespace and the key. Of a callback without the numbers
            that scripts give it, of a debounced call its key, as a hash: their ids are not known before. Of the reason
            for which many tasks are canceled nothing.
    """

    realm: str
    kind: Kind
    user_id: str
    id: str

    @property
    def context(self) -> bytes:
        """Different for each place, whatever its parts contain."""
        return _encode(self)

    def __str__(self) -> str:
        return f"{self.kind} of {self.id!r}, of user {self.user_id!r}, in realm {self.realm!r}"


class Codec(ABC):
    """What `TaskQueue(codec=…)` takes: `Encrypt`, `Sign` or `Compress`, or a class of your own.

    Its methods are called for each task, mostly on the event loop, with what one user put in: they must be fast, bound
    their memory, and work in any thread.

    Attributes:
        realm: What contents are bound to beside user and id. None: the name of the queue, so that nothing can be moved
            to another one.
        accepts_plain: Whether what is not sealed is read as it is.
    """

    realm: str | None = None
    accepts_plain: bool = False

    @abstractmethod
    def seal(self, place: Place, plain: bytes, associated: bytes) -> bytes | None:
        """The bytes to keep in Redis; None, from a codec that `accepts_plain`: as they are.

        `associated` stands beside them, readable: changed, they must not open any more.

        Raises:
            UnknownKey: There is no key for this user.
        """

    @abstractmethod
    def open(self, place: Place, sealed: bytes, associated: bytes, most: int) -> bytes:
        """What was sealed, of at most `most` bytes.

        Raises:
            UnknownKey: Another process may have the key.
            BrokenSeal: They were changed, or sealed for another place.
        """

    def hashed(self, realm: str, user_id: str | None, text: str) -> str:
        """A text that stands for this one in keys of Redis: the same for the same text. `user_id`: of this user alone;
        None: for all users alike.
        """
        del realm, user_id
        return text


class Sealer:
    """The codec of one queue.

    Args:
        codec: Of the queue.
        queue_name: The realm, where the codec names none.
        most_bytes: Says how many bytes contents may have.
    """

    __slots__ = ("_codec", "_most_bytes", "accepts_plain", "realm")

    def __init__(self, codec: Codec, queue_name: str, most_bytes: Callable[[], int]) -> None:
        if not isinstance(codec, Codec):
            raise WrongType(f"codec must be a Codec, such as Encrypt(keys), not {type(codec).__name__}")
        self._codec = codec
        self._most_bytes = most_bytes
        self.realm = queue_name if codec.realm is None else codec.realm
        self.accepts_plain = codec.accepts_plain

    def seal(self, kind: Kind, user_id: str, name: str, plain: bytes, associated: bytes = b"") -> bytes | None:
        """See `Codec.seal`. Whatever it raises is no reason to lose a task, or to show what was to be sealed."""
        place = Place(self.realm, kind, user_id, name)
        try:
            return self._codec.seal(place, plain, associated)
        except SealError:
            raise
        except Exception as exc:
            raise UnknownKey(f"the {place}: cannot be sealed: {type(exc).__name__}") from exc

    def open(self, kind: Kind, user_id: str, name: str, sealed: bytes, associated: bytes = b"") -> bytes:
        """See `Codec.open`. Whatever it raises, another process may be able to."""
        place = Place(self.realm, kind, user_id, name)
        try:
            return self._codec.open(place, sealed, associated, self._most_bytes())
        except SealError:
            raise
        except Exception as exc:
            raise UnknownKey(f"the {place}: cannot be opened: {type(exc).__name__}") from exc

    def stand_in(self, user_id: str) -> Callable[[str, bool], str]:
        """What `Codec.hashed` makes of texts, which are of this user alone, or of all."""
        return lambda text, is_own: self._codec.hashed(self.realm, user_id if is_own else None, text)
