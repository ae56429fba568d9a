"""`Encrypt`: nobody without a key can read, make or change what is in Redis."""

from __future__ import annotations

from fairque.codec.keyed import Keyed
from fairque.codec.schemes import ENCRYPTED

__all__ = ["Encrypt"]


class Encrypt(Keyed):
    """Contents are encrypted, by AES-256-GCM. See `Keyed` for the arguments.

    Needs ``pip install 'fairque[crypto]'``; raises `ConfigError` without it.
    """

    scheme = ENCRYPTED
