"""`Scheme`: a way to protect contents by a key that protects nothing else."""

from __future__ import annotations

import hmac
import os
from functools import cache
from typing import TYPE_CHECKING, Protocol

from fairque.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["ENCRYPTED", "SCHEMES", "SIGNED", "Scheme", "derived", "sized"]

_MAC_BYTES = 32
_SALT_BYTES = 16
_NO_NONCE = bytes(12)  # the key is used once


class Scheme(Protocol):
    """`letter` stands in front of what it made. `context` is what place the contents belong to."""

    letter: bytes

    def prepare(self) -> None:
        """Raises `ConfigError` where something is not installed."""

    def seal(self, key: bytes, context: bytes, frame: bytes, associated: bytes, *, same: bool) -> bytes:
        """`same`: the same contents are to look the same."""

    def open(self, key: bytes, context: bytes, sealed: bytes, associated: bytes) -> bytes | None:
        """None: not what was sealed."""


class _Signed:
    """HMAC with SHA-256: everybody can read it, nobody without the key can make or change it."""

    letter = b"s"

    def prepare(self) -> None: ...

    def seal(self, key: bytes, context: bytes, frame: bytes, associated: bytes, *, same: bool) -> bytes:  # noqa: ARG002
        return _signature(key, context, frame, associated) + frame

    def open(self, key: bytes, context: bytes, sealed: bytes, associated: bytes) -> bytes | None:
        frame = sealed[_MAC_BYTES:]
        is_right = hmac.compare_digest(_signature(key, context, frame, associated), sealed[:_MAC_BYTES])
        return frame if is_right else None


class _Encrypted:
    """AES-256 in the mode GCM, by a key for these contents alone.

    It is derived from 16 random bytes and the place. With one key for all and random nonces of 12 bytes, a nonce would
    be likely to come again after some 2^48 messages, and the standard allows 2^32: two days at 20,000 a second.
    """

    letter = b"e"

    def prepare(self) -> None:
        _aesgcm()

    def seal(self, key: bytes, context: bytes, frame: bytes, associated: bytes, *, same: bool) -> bytes:
        if same:
            salt = derived(key, b"salt", sized(context), sized(associated), frame)[:_SALT_BYTES]
        else:
            salt = os.urandom(_SALT_BYTES)
        return salt + _aesgcm()(derived(key, b"seal", salt, context)).encrypt(_NO_NONCE, frame, associated)

    def open(self, key: bytes, context: bytes, sealed: bytes, associated: bytes) -> bytes | None:
        salt, rest = sealed[:_SALT_BYTES], sealed[_SALT_BYTES:]
        try:
            return _aesgcm()(derived(key, b"seal", salt, context)).decrypt(_NO_NONCE, rest, associated)
        except _invalid_tag():
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


@cache
def _invalid_tag() -> type[Exception]:
    from cryptography.exceptions import InvalidTag

    return InvalidTag


def derived(key: bytes, label: bytes, *parts: bytes) -> bytes:
    """32 bytes for one purpose: HKDF-Expand with SHA-256 (RFC 5869), of one block.

    Keys are random bytes, so there is nothing to extract. Labels have four bytes, and parts but the last one a fixed
    length, or their length in front: so no two purposes look the same.
    """
    return hmac.digest(key, b"".join((label, *parts, b"\1")), "sha256")


def _signature(key: bytes, context: bytes, frame: bytes, associated: bytes) -> bytes:
    return derived(key, b"sign", sized(context), sized(associated), frame)


def sized(part: bytes) -> bytes:
    return len(part).to_bytes(8) + part
