"""`Compress`: large contents take less room in Redis."""

from __future__ import annotations

from fairque.codec.codec import Codec, Place
from fairque.codec.frame import check_above, packed, unpacked
from fairque.errors import BrokenSeal, UnknownKey

__all__ = ["Compress"]

_SCHEME = b"c"
_HAVE_KEYS = (b"e", b"s")
DEFAULT_ABOVE = 1024


class Compress(Codec):
    """Contents of more than `above` bytes are compressed, by zlib. It has no keys, and protects from nobody.

    Where contents are signed or encrypted, use their own ``compress_above`` instead.

    Args:
        above: Bytes up to which contents stay as they are.
    """

    accepts_plain = True

    def __init__(self, above: int = DEFAULT_ABOVE) -> None:
        self._above = check_above("above", above)

    def seal(self, place: Place, plain: bytes, associated: bytes) -> bytes | None:  # noqa: ARG002
        """See `Codec.seal`."""
        frame = packed(plain, self._above)
        return _SCHEME + frame if frame[0] else None

    def open(self, place: Place, sealed: bytes, associated: bytes, most: int) -> bytes:  # noqa: ARG002
        """See `Codec.open`."""
        if sealed[:1] == _SCHEME:
            return unpacked(sealed[1:], most)
        if sealed[:1] in _HAVE_KEYS:
            raise UnknownKey(f"the {place}: sealed by a key, and there are none here")
        raise BrokenSeal(f"the {place}: sealed in a way that is not known here")
