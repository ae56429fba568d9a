"""Names of tasks: that of a function, and what was meant by one that nobody knows."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["default_name", "hint"]

CUTOFF = 0.75
MOST_CHARS = 100
"""Of a name that is compared: names come from messages, and comparing takes the square of their length."""


def default_name(fn: Callable[..., Any]) -> str:
    """Module and qualified name. A script is known by the name under which others would import it."""
    module = fn.__module__
    if module in ("__main__", "__mp_main__"):
        main = sys.modules[module]
        spec = getattr(main, "__spec__", None)
        file = getattr(main, "__file__", None)
        if spec is not None:
            module = spec.name.removesuffix(".__main__")
        elif file:
            module = _imported_as(Path(file))
    return f"{module}.{fn.__qualname__}"


def _imported_as(script: Path) -> str:
    """With the packages that it lies in."""
    parts = [script.stem] if script.stem != "__main__" else []
    folder = script.absolute().parent
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts) or script.stem


def hint(name: str, known: Iterable[str]) -> str:
    """Which of the known names may have been meant, as the end of a sentence. Empty where none comes near."""
    names = sorted(known)
    for each in names:
        if each.endswith(f".{name}") or name.endswith(f".{each}"):
            return (
                f", only {each!r}: a module has another name as a script, or from another folder, than where it is "
                "imported. Start it with python -m, or give its tasks names: @task(name=…)"
            )
    short = {each[:MOST_CHARS]: each for each in names}
    near = difflib.get_close_matches(name[:MOST_CHARS], short, 1, CUTOFF)
    return f", did you mean {short[near[0]]!r}?" if near else ""
