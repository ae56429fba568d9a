"""What a function hands on and is given through XCom, as its decorator says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from fairque.checks import check_id, check_number
from fairque.errors import InvalidInput

__all__ = ["LONGEST_TTL", "MOST_NAMES", "NO_XCOM", "XComOptions"]

LONGEST_TTL = 10 * 366 * 86_400.0
MOST_NAMES = 100


class XComOptions(msgspec.Struct, frozen=True, kw_only=True):
    """See `xcom_task`."""

    push_key: str | None = None
    pull_keys: dict[str, str] = {}
    pull_defaults: dict[str, Any] = {}
    ttl_seconds: float = 3600.0
    namespace: str = "default"
    auto: bool = False

    @classmethod
    def of(cls, pull_keys: Mapping[str, str] | Sequence[str] = (), **options: Any) -> XComOptions:
        """Pull keys as a mapping of parameters to keys, or as a list of names that are both."""
        if isinstance(pull_keys, str) or not isinstance(pull_keys, (Mapping, Sequence)):
            raise InvalidInput(f"pull_keys must map parameters to keys, or list them, not {pull_keys!r}")
        by_parameter = dict(pull_keys) if isinstance(pull_keys, Mapping) else {key: key for key in pull_keys}
        return cls(pull_keys=by_parameter, **options)

    def __post_init__(self) -> None:
        unknown = set(self.pull_defaults) - set(self.pull_keys)
        if unknown:
            raise InvalidInput(f"pull_defaults has {min(unknown)!r}, which pull_keys has not")
        if len(self.pull_keys) > MOST_NAMES:
            raise InvalidInput(f"pull_keys has {len(self.pull_keys)} entries, the limit is {MOST_NAMES}")
        check_number("ttl_seconds", self.ttl_seconds, 0.001, LONGEST_TTL, " seconds")
        check_id("namespace", self.namespace)
        if self.push_key is not None:
            check_id("push_key", self.push_key)
        for key in self.pull_keys.values():
            check_id("an entry of pull_keys", key)

    @property
    def reads(self) -> bool:
        """Something has to be fetched before the function runs."""
        return self.auto or bool(self.pull_keys)


NO_XCOM = XComOptions()
