"""`Sign`: nobody without a key can make or change what is in Redis."""

from __future__ import annotations

from fairque.codec.keyed import Keyed
from fairque.codec.schemes import SIGNED

__all__ = ["Sign"]


class Sign(Keyed):
    """Contents are signed, by HMAC with SHA-256: readable for everybody, and refused where they were made or changed
    without a key. See `Keyed` for the arguments.
    """

    scheme = SIGNED
