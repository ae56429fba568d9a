"""`Scheme`: a way to protect contents by a key that protects nothing else."""

from __future__ import annotations

import hmac
import struct
from functools import cache
from typing import TYPE_CHECKING, Protocol

from fairque.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["ENCRYPTED", "SCHEMES", "SIGNED", "Scheme"]

_MAC_BYTES = 32
_NO_NONCE = bytes(12)  # the key is never used again, see `Keyed`


class Scheme(Protocol):
    """`letter` stands in front of what it made."""

    letter: bytes

    def prepare(self) -> None:
        """Raises `ConfigError` where something is not installed."""

    def seal(self, secret: bytes, frame: bytes, associated: bytes) -> bytes: ...

    def open(self, secret: bytes, sealed: bytes, associated: bytes) -> bytes | None:
        """None: not what was sealed."""


class _Signed:
    """HMAC with SHA-256: everybody can read it, nobody without the key can make or change it."""

    letter = b"s"

    def prepare(self) -> None: ...

    def seal(self, secret: bytes, frame: bytes, associated: bytes) -> bytes:
        return _signature(secret, frame, associated) + frame

    def open(self, secret: bytes, sealed: bytes, associated: bytes) -> bytes | None:
        frame = sealed[_MAC_BYTES:]
        is_right = hmac.compare_digest(_signature(secret, frame, associated), sealed[:_MAC_BYTES])
        return frame if is_right else None


class _Encrypted:
    """AES-256 in the mode GCM."""

    letter = b"e"

    def prepare(self) -> None:
        _aesgcm()

    def seal(self, secret: bytes, frame: bytes, associated: bytes) -> bytes:
        return _aesgcm()(secret).encrypt(_NO_NONCE, frame, associated)

    def open(self, secret: bytes, sealed: bytes, associated: bytes) -> bytes | None:
        from cryptography.exceptions import InvalidTag

        try:
            return _aesgcm()(secret).decrypt(_NO_NONCE, sealed, associated)
        except InvalidTag:
            return None


SIGNED: Scheme = _Signed()
ENCRYPTED: Scheme = _Encrypted()
SCHEMES = {scheme.letter: scheme for scheme in (SIGNED, ENCRYPTED)}


@cache
def _aesgcm() -> type[AESGCM]:
    """Raises `ConfigError` where the package is not installed."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigError("encryption needs the package cryptography: pip install 'fairque[crypto]'") from None
    return AESGCM


def _signature(secret: bytes, frame: bytes, associated: bytes) -> bytes:
    """Of both, told apart by the length of one."""
    return hmac.digest(secret, b"".join((struct.pack(">Q", len(associated)), associated, frame)), "sha256")
