"""Headers: a small map of texts that travels with a task, beside its arguments, for those who know nothing of these."""

from __future__ import annotations

from collections.abc import Mapping

from fairque.errors import InvalidInput

__all__ = ["MAX_HEADER_BYTES", "checked_headers"]

MAX_HEADER_BYTES = 4096


def checked_headers(given: object) -> dict[str, str]:
    """A copy. Raises `InvalidInput` for what is no map of texts, has an empty name or takes more than 4,096 bytes."""
    if not isinstance(given, Mapping):
        raise InvalidInput(f"headers must be a map of texts, not {given!r}")
    headers = dict(given)
    size = sum(_size(name, value) for name, value in headers.items())
    if size > MAX_HEADER_BYTES:
        raise InvalidInput(f"headers have {size} bytes, names included, the limit is {MAX_HEADER_BYTES}")
    return headers


def _size(name: object, value: object) -> int:
    """In bytes of UTF-8."""
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"the name of a header must be a str that is not empty, not {name!r}")
    if not isinstance(value, str):
        raise InvalidInput(f"header {name!r} must be a str, not {value!r}")
    try:
        return len(name.encode()) + len(value.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"header {name!r} cannot be encoded as UTF-8: {value!r}") from None
