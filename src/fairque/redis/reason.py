"""Why a server cannot be reached, in words for a person."""

from __future__ import annotations

import os
import re

__all__ = ["in_words"]

_OF_REDIS_PY = re.compile(r"Error -?[0-9]+ connecting to (.+?)\. ")


def in_words(error: BaseException) -> str:
    """redis-py quotes what the system said with its number and its arguments: here it is "Connection refused"."""
    told, cause = str(error) or type(error).__name__, error.__cause__ or error.__context__
    where = _OF_REDIS_PY.match(told)
    if where is None or not isinstance(cause, OSError) or not cause.errno:
        return told
    return f"{os.strerror(cause.errno) if cause.errno > 0 else cause.strerror} ({where[1]})"
