"""`Changes`: of the Python files of a project, while somebody works on it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
from collections.abc import AsyncGenerator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fairque.errors import InvalidInput

if TYPE_CHECKING:
    from watchfiles import Change

__all__ = ["Changes"]

MOST_NAMED = 3
DEBOUNCE_MS = 400
"""Files that are saved together are one change."""
QUIET_MS = 500
_PYTHON = (".py", ".pyx", ".pyd")
_OF_TOOLS = frozenset(("__pycache__", "node_modules", "site-packages"))
_VIRTUAL_ENVIRONMENT = "pyvenv.cfg"


class Tree(NamedTuple):
    """A project at a moment: its directories, and of each Python file what changes with it."""

    directories: tuple[str, ...]
    stamps: dict[str, tuple[int, ...]]


class Changes:
    """Needs ``pip install 'fairque[reload]'``.

    What has changed is told by the stamps of the files; the system only says when to look. So nothing is missed that
    changes before the system watches: stamps are those of the moment at which this is made.

    Args:
        directories: Where the project is, with all that is in them, but for hidden directories, virtual environments
            and what tools keep.

    Attributes:
        tree: As it was seen last.

    Raises:
        InvalidInput: watchfiles is not installed.
    """

    def __init__(self, directories: Iterable[Path]) -> None:
        if importlib.util.find_spec("watchfiles") is None:
            raise InvalidInput("reload needs watchfiles: pip install 'fairque[reload]'")
        self._roots = _outermost({directory.resolve() for directory in directories})
        self.tree = _seen_in(self._roots)

    async def seen(self, stop: asyncio.Event) -> AsyncGenerator[str, None]:
        """Of each change, the files in words, until `stop` is set. Those before it was called are the first one."""
        async with contextlib.aclosing(self._reasons_to_look(stop)) as reasons:
            async for _ in reasons:
                before, self.tree = self.tree, await asyncio.to_thread(_seen_in, self._roots)
                if files := _different(before, self.tree):
                    yield _told(sorted({Path(path).name for path in files}))

    async def _reasons_to_look(self, stop: asyncio.Event) -> AsyncGenerator[None, None]:
        """One at first, when the directories are watched, and whenever there are others to be watched."""
        while not stop.is_set():
            watched = self.tree.directories
            try:
                async with contextlib.aclosing(_hints(watched, stop)) as hints:
                    async for _ in hints:
                        yield
                        if self.tree.directories != watched:
                            break
            except FileNotFoundError:  # it went meanwhile
                yield


async def _hints(directories: tuple[str, ...], stop: asyncio.Event) -> AsyncGenerator[None, None]:
    """That something changed in one of them itself; the first one says that they are watched."""
    from watchfiles import awatch

    events = awatch(
        *directories,
        watch_filter=_matters,
        stop_event=stop,
        debounce=DEBOUNCE_MS,
        rust_timeout=QUIET_MS,
        yield_on_timeout=True,
        recursive=False,
        ignore_permission_denied=True,
    )
    is_new = True
    async for changes in events:
        if changes or is_new:
            yield
        is_new = False


def _matters(change: Change, changed: str) -> bool:  # noqa: ARG001
    path = Path(changed)
    return path.suffix in _PYTHON or (_is_own(path.name) and path.is_dir())


def _is_own(name: str) -> bool:
    """Of a directory in a project."""
    return not name.startswith(".") and name not in _OF_TOOLS


def _seen_in(roots: Iterable[Path]) -> Tree:
    directories: dict[tuple[int, int], str] = {}
    stamps: dict[str, tuple[int, ...]] = {}
    for root in roots:
        _look_at(str(root), directories, stamps)
    return Tree(tuple(directories.values()), stamps)


def _look_at(root: str, directories: dict[tuple[int, int], str], stamps: dict[str, tuple[int, ...]]) -> None:
    """Links are followed, and each directory is looked at once. What goes away, or is forbidden, is not there."""
    left = [root]
    while left:
        path = left.pop()
        with contextlib.suppress(OSError):
            identity, entries = _identity(path), list(os.scandir(path))
            if identity in directories or any(each.name == _VIRTUAL_ENVIRONMENT for each in entries):
                continue
            directories[identity] = path
            left += _inner(entries)
            stamps.update(_stamps(entries))


def _identity(path: str) -> tuple[int, int]:
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def _inner(entries: Iterable[os.DirEntry[str]]) -> list[str]:
    return sorted((each.path for each in entries if _is_own(each.name) and each.is_dir()), reverse=True)


def _stamps(entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for each in entries:
        if each.name.endswith(_PYTHON):
            with contextlib.suppress(OSError):
                found = each.stat()
                yield each.path, (found.st_mtime_ns, found.st_size, found.st_ino)


def _different(before: Tree, after: Tree) -> list[str]:
    """Files that came, went, or have another content."""
    paths = before.stamps.keys() | after.stamps.keys()
    return [path for path in paths if before.stamps.get(path) != after.stamps.get(path)]


def _outermost(directories: set[Path]) -> list[Path]:
    """None of them is in another one: each change is told once."""
    return sorted(each for each in directories if not any(other in each.parents for other in directories))


def _told(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more} changed"
