"""`Keys`: the keys of a codec by their ids, for all users or for each of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fairque.errors import ConfigError, InvalidInput, UnknownKey

__all__ = ["Key", "KeyFor", "KeyRing", "Keys", "check_secret"]

LEAST_BYTES = 32
LONGEST_ID = 100  # bytes: it stands in front of all that the key seals
Keys = Mapping[str, bytes]
"""By id. The first one seals, all of them open."""
KeyFor = Callable[[str], Keys]
"""The keys of a user. None, an empty mapping: its contents cannot be read any more."""


class Key(NamedTuple):
    """One key, and its id as it stands in what it sealed."""

    name: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"<Key {self.name.decode(errors='replace')!r}>"


class KeyRing:
    """Where keys are looked up.

    Args:
        keys: Of all users.
        key_for: Those of a user. It is asked each time; what it raises counts as a key that is not known now.
    """

    def __init__(self, keys: Keys | None, key_for: KeyFor | None) -> None:
        if (keys is None) == (key_for is None):
            raise ConfigError("a codec needs either keys or key_for")
        if key_for is not None and not callable(key_for):
            raise ConfigError(f"key_for must be a function of a user id, not {type(key_for).__name__}")
        self.is_shared = keys is not None
        self._shared = _checked(keys) if keys is not None else {}
        self._key_for = key_for
        if keys is not None and not self._shared:
            raise ConfigError("a codec needs a key, as in Encrypt({'2026-11': os.urandom(32)})")

    def current(self, user_id: str) -> Key:
        """The one that seals. Raises `UnknownKey`."""
        keys = self._of(user_id)
        if not keys:
            raise UnknownKey(f"there is no key for user {user_id!r}")
        return Key(*next(iter(keys.items())))

    def named(self, user_id: str, name: bytes) -> Key:
        """Raises `UnknownKey`."""
        secret = self._of(user_id).get(name)
        if secret is None:
            raise UnknownKey(f"the key {name.decode(errors='replace')!r} of user {user_id!r} is not known here")
        return Key(name, secret)

    def _of(self, user_id: str) -> Mapping[bytes, bytes]:
        if self._key_for is None:
            return self._shared
        try:
            return _checked(self._key_for(user_id))
        except Exception as exc:  # code of the application, which may ask a service
            raise UnknownKey(f"the keys of user {user_id!r} cannot be had: {type(exc).__name__}") from exc


def _checked(keys: Keys) -> dict[bytes, bytes]:
    if not isinstance(keys, Mapping):
        raise InvalidInput(f"keys must be a mapping of ids to bytes, not {type(keys).__name__}")
    return {check_key_id(name): check_secret(name, secret) for name, secret in keys.items()}


def check_key_id(name: object) -> bytes:
    if not isinstance(name, str):
        raise InvalidInput(f"the id of a key must be a str, not {type(name).__name__}")
    encoded = name.encode(errors="replace")
    if not 1 <= len(encoded) <= LONGEST_ID:
        raise InvalidInput(f"the id of a key has 1 to {LONGEST_ID} bytes, not {len(encoded)}")
    return encoded


def check_secret(name: object, secret: object) -> bytes:
    """Never shown, not even in an error."""
    if not isinstance(secret, bytes):
        raise InvalidInput(f"the key {name!r} must be bytes, as from os.urandom(32), not {type(secret).__name__}")
    if len(secret) < LEAST_BYTES:
        raise InvalidInput(f"the key {name!r} has {len(secret)} bytes, at least {LEAST_BYTES} are needed")
    return secret
