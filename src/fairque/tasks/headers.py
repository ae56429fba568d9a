"""Headers: a small map of texts that travels with a task, beside its arguments, for those who know nothing of these."""

from __future__ import annotations

from collections.abc import Mapping

from fairque.errors import InvalidInput

__all__ = ["MAX_HEADER_BYTES", "checked_headers", "header_bytes"]

MAX_HEADER_BYTES = 4096


def checked_headers(given: object) -> dict[str, str]:
    """A copy. Raises `InvalidInput` for what is no map of texts, has an empty name or takes more than 4,096 bytes."""
    if not isinstance(given, (dict, Mapping)):
        raise InvalidInput(f"headers must be a map of texts, not {given!r}")
    headers = dict(given)
    try:
        size = header_bytes(headers)
    except (TypeError, UnicodeEncodeError):
        _refuse(headers)
        raise
    if "" in headers:
        raise InvalidInput("the name of a header must not be empty")
    if size > MAX_HEADER_BYTES:
        raise InvalidInput(f"headers have {size} bytes, names included, the limit is {MAX_HEADER_BYTES}")
    return headers


def header_bytes(headers: Mapping[str, str]) -> int:
    """What counts towards the limit: names and texts, as UTF-8."""
    return len("".join((*headers, *headers.values())).encode())


def _refuse(headers: dict[object, object]) -> None:
    """Raises `InvalidInput` for the first that is no header."""
    for name, value in headers.items():
        if not isinstance(name, str):
            raise InvalidInput(f"the name of a header must be a str, not {name!r}")
        if not isinstance(value, str):
            raise InvalidInput(f"header {name!r} must be a str, not {value!r}")
        try:
            f"{name}{value}".encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"header {name!r} cannot be encoded as UTF-8: {value!r}") from None
