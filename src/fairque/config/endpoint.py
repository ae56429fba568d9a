"""`Endpoint`: where something listens, as people write it: ``127.0.0.1:8080``."""

from __future__ import annotations

import re
from typing import NamedTuple

from fairque.errors import InvalidInput

__all__ = ["Endpoint", "parse_endpoint"]

_ENDPOINT = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\s\[\]:/@]{1,255})):([0-9]{1,5})")


class Endpoint(NamedTuple):
    """`host` is a name or an address, `port` 0 for any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """What ``HOST:PORT`` says; an IPv6 address is in brackets. Raises `InvalidInput`."""
    found = _ENDPOINT.fullmatch(text)
    if found is None or int(found[3]) > 65_535:
        raise InvalidInput(f"an address to listen at is HOST:PORT, like 127.0.0.1:8080 or [::1]:8080, not {text!r}")
    return Endpoint(found[1] or found[2], int(found[3]))
