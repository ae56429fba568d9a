"""`CodecConfig`: the section that says what contents look like in Redis."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from fairque.codec.codec import Codec
from fairque.codec.compress import Compress
from fairque.codec.encrypt import Encrypt
from fairque.codec.sign import Sign
from fairque.config.section import Section
from fairque.errors import InvalidInput

__all__ = ["CodecConfig"]

_WITH_KEYS = {"encrypt": Encrypt, "sign": Sign}
_OF_KEYS = ("keys", "hash_key", "realm", "accepts_plain")


class CodecConfig(Section, frozen=True, kw_only=True):
    """What `TaskQueue` is told as its `codec`.

    Args:
        method: ``encrypt``, ``sign`` or ``compress``; None: contents are in Redis as they are.
        keys: Texts ``id:key``, the key in base64 (32 bytes). The first one seals, all of them open.
        hash_key: For keys of limits that are made from arguments, in base64; see `Encrypt`.
        realm: What contents are bound to beside user and id; default: the name of the queue.
        compress_above: Bytes beyond which contents are compressed.
        accepts_plain: Read what is not sealed as well.
    """

    method: Literal["encrypt", "sign", "compress"] | None = None
    keys: Annotated[tuple[str, ...], Meta(max_length=100)] = ()
    hash_key: str | None = None
    realm: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    compress_above: Annotated[int, Meta(ge=0, le=1_000_000_000)] | None = None
    accepts_plain: bool = False

    secrets: ClassVar[frozenset[str]] = frozenset(("keys", "hash_key"))

    @property
    def codec(self) -> Codec | None:
        """Raises `InvalidInput`."""
        if self.method is None:
            return None
        if self.method == "compress":
            return Compress() if self.compress_above is None else Compress(self.compress_above)
        return _WITH_KEYS[self.method](
            dict(map(_key, self.keys)),
            realm=self.realm,
            hash_key=None if self.hash_key is None else _decoded("hash_key", self.hash_key),
            compress_above=self.compress_above,
            accepts_plain=self.accepts_plain,
        )

    def contradictions(self) -> Iterator[tuple[str, str]]:
        given: dict[str, Any] = self.given()
        if self.method not in _WITH_KEYS:
            for field in [*_OF_KEYS, *(("compress_above",) if self.method is None else ())]:
                if field in given:
                    yield field, "it needs a method: encrypt or sign"
            return
        try:
            assert self.codec is not None
        except InvalidInput as error:
            yield "hash_key" if "hash_key" in str(error) else "keys", str(error)


def _key(text: str) -> tuple[str, bytes]:
    name, colon, encoded = text.rpartition(":")
    if not colon:
        raise InvalidInput("a key is written id:base64, such as 2026-11:…")
    return name, _decoded(name, encoded)


def _decoded(name: str, encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"the key {name!r} is not in base64") from None
