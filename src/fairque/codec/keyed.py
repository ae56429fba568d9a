"""`Keyed`: what `Sign` and `Encrypt` have in common."""

from __future__ import annotations

from typing import ClassVar

from fairque.checks import check_id
from fairque.codec.codec import Codec, Kind, Place
from fairque.codec.frame import check_above, packed, unpacked
from fairque.codec.keys import KeyFor, KeyRing, Keys, check_secret
from fairque.codec.schemes import SCHEMES, Scheme, derived, sized
from fairque.errors import BrokenSeal, ConfigError

__all__ = ["Keyed"]

HASH_CHARS = 32
_OF_SCHEDULES = frozenset((Kind.SCHEDULE, Kind.SCHEDULED_CALLBACKS))


class Keyed(Codec):
    """Contents are protected by keys.

    What is sealed opens at its own place alone. Keys last for as long as nobody else has them, however much they seal.

    Args:
        keys: By id, at least 32 random bytes each. The first one seals, all of them open.
        key_for: Instead of `keys`: those of a user. It is called each time, mostly on the event loop, and from any
            thread: have them in memory.
            Where it raises, or knows no key of the id, tasks are put back for a worker that does.
        realm: What contents are bound to beside user and id; default: the name of the queue.
        hash_key: For keys of limits that are made from arguments, which are in Redis as keyed hashes. Default: the
            key that seals. Give one that stays, and limits count right while keys change.
        compress_above: Bytes beyond which contents are compressed first. How well something is compressed tells a
            little of it: leave it out where others choose a part of a text that is secret.
        accepts_plain: Read what is not sealed as well: while a queue in which tasks wait goes over to a codec.
    """

    scheme: ClassVar[Scheme]

    def __init__(
        self,
        keys: Keys | None = None,
        *,
        key_for: KeyFor | None = None,
        realm: str | None = None,
        hash_key: bytes | None = None,
        compress_above: int | None = None,
        accepts_plain: bool = False,
    ) -> None:
        self.scheme.prepare()
        self._ring = KeyRing(keys, key_for)
        self.realm = None if realm is None else check_id("realm", realm)
        self._hash_key = None if hash_key is None else check_secret("hash_key", hash_key)
        self._above = check_above("compress_above", compress_above)
        self.accepts_plain = accepts_plain

    def seal(self, place: Place, plain: bytes, associated: bytes) -> bytes:
        """See `Codec.seal`."""
        key = self._ring.current(place.user_id)
        head = b"".join((self.scheme.letter, bytes((len(key.name),)), key.name))
        same = place.kind in _OF_SCHEDULES  # who declares the same one again must see that it is the same
        frame = packed(plain, self._above)
        return head + self.scheme.seal(key.secret, place.context, frame, head + associated, same=same)

    def open(self, place: Place, sealed: bytes, associated: bytes, most: int) -> bytes:
        """See `Codec.open`. What `Sign` or `Encrypt` made by one of the keys, whichever this is."""
        end = 2 + (sealed[1] if len(sealed) > 1 else 0)
        scheme, head = SCHEMES.get(sealed[:1]), sealed[:end]
        if scheme is None:
            raise BrokenSeal(f"the {place}: sealed in a way that is not known here")
        key = self._ring.named(place.user_id, head[2:])
        frame = scheme.open(key.secret, place.context, sealed[end:], head + associated)
        if frame is None:
            raise BrokenSeal(f"the {place}: it was changed, or sealed for another place")
        return unpacked(frame, most)

    def hashed(self, realm: str, user_id: str | None, text: str) -> str:
        """See `Codec.hashed`."""
        if user_id is None and self._hash_key is None and not self._ring.is_shared:
            raise ConfigError("a limit of all users whose key is made from arguments needs the hash_key of the codec")
        secret = self._hash_key or self._ring.current(user_id or "").secret
        return derived(secret, b"hash", sized(realm.encode()), text.encode()).hex()[:HASH_CHARS]
