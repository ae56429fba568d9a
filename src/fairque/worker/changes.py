"""`Changes`: of the Python files of a project, while somebody works on it."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from fairque.errors import InvalidInput

__all__ = ["Changes"]

MOST_NAMED = 3
DEBOUNCE_MS = 400
"""Files that are saved together are one change."""


class Changes:
    """Needs ``pip install 'fairque[reload]'``.

    Args:
        directories: Where the project is, with all that is in them, but for hidden ones of tools and ``site-packages``.

    Raises:
        InvalidInput: watchfiles is not installed.
    """

    def __init__(self, directories: Iterable[Path]) -> None:
        if importlib.util.find_spec("watchfiles") is None:
            raise InvalidInput("reload needs watchfiles: pip install 'fairque[reload]'")
        self._directories = _outermost({directory.resolve() for directory in directories})

    async def seen(self, stop: asyncio.Event) -> AsyncIterator[str]:
        """Of each change, the files in words, until `stop` is set."""
        from watchfiles import PythonFilter, awatch

        class OwnFiles(PythonFilter):
            ignore_dirs = (*PythonFilter.ignore_dirs, "site-packages")

        watched = awatch(*self._directories, watch_filter=OwnFiles(), stop_event=stop, debounce=DEBOUNCE_MS)
        async for changes in watched:
            yield _told(sorted({Path(path).name for _, path in changes}))


def _outermost(directories: set[Path]) -> list[Path]:
    """None of them is in another one: each change is told once."""
    return sorted(each for each in directories if not any(other in each.parents for other in directories))


def _told(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more} changed"
