"""Names under which something is served. A stranger's page whose name resolves to this machine asks under that name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from fairque.checks import check_list
from fairque.errors import InvalidInput

__all__ = ["LOOPBACK", "checked_hosts", "hostname_in", "is_address"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HEADER = re.compile(r"(?:\[([^\[\]\s/@?#\\]+)\]|([^\[\]:\s/@?#\\]+))(?::[0-9]*)?")
_HOST = re.compile(r"[a-z0-9._:-]+")
"""As browsers send one: a wildcard, or a letter of another alphabet, would never be met."""


def checked_hosts(hosts: Iterable[str]) -> frozenset[str]:
    """These names, as `hostname_in` finds them. Raises `InvalidInput` for one that no client sends."""
    return frozenset(map(_checked, check_list("hosts", hosts)))


def hostname_in(header: str) -> str:
    """What a header ``Host`` says, without the port; nothing for what is no host at all."""
    if is_address(header):
        return header.lower()
    found = _HEADER.fullmatch(header)
    return (found[1] or found[2]).lower() if found is not None else ""


def is_address(host: str) -> bool:
    """Whether it leads where it says: who answers for a name may have it lead anywhere."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _checked(host: object) -> str:
    name = hostname_in(host) if isinstance(host, str) else ""
    if not _HOST.fullmatch(name) or not isinstance(host, str) or name != host.strip("[]").lower():
        raise InvalidInput(f"hosts are names such as 'ops.example.com', as browsers send them, not {host!r}")
    return name
