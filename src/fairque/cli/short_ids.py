"""Ids in less room: cut where they are alike, so that one can still tell which is which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.cells import cell_len

__all__ = ["short_ids"]

_CUT = "…"
_LEAST = 8
"""In less there is no room for what tells them apart."""


def short_ids(ids: Sequence[str], width: int) -> list[str]:
    """Each in at most `width` columns: those that are too wide without their middle.

    Some that look the same then are shown from where they begin to differ, and are numbered where that is no help.
    """
    shown = {each: each if cell_len(each) <= width else _without_middle(each, width) for each in ids}
    if width >= _LEAST:
        for alike in _alike(shown):
            same = _same(alike[0], alike[-1])
            shown |= {each: _from(each, same, width) for each in alike}
        for alike in _alike(shown):
            shown |= {each: _numbered(shown[each], number, width) for number, each in enumerate(alike, 1)}
    return [shown[each] for each in ids]


def _alike(shown: Mapping[str, str]) -> list[list[str]]:
    """Ids that look the same, in order: they keep their numbers while a live view is sorted anew."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for each in sorted(shown):
        groups[shown[each]].append(each)
    return [group for group in groups.values() if len(group) > 1]


def _same(first: str, last: str) -> int:
    """How many characters are the same at their begin; so they are in all ids that come between them."""
    return next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def _from(text: str, start: int, width: int) -> str:
    rest = text[start:]
    return _CUT + (rest if cell_len(rest) < width else _front(rest, max(0, width - 2)) + _CUT)


def _numbered(text: str, number: int, width: int) -> str:
    end = f"{_CUT}~{number}"
    return _front(text, width - len(end)) + end


def _without_middle(text: str, width: int) -> str:
    room = max(0, width - 1)
    return _front(text, room - room // 2) + _CUT + _front(text[::-1], room // 2)[::-1]


def _front(text: str, width: int) -> str:
    """As much of it as fits; a character may take two columns, or none."""
    taken = 0
    for at, char in enumerate(text):
        taken += cell_len(char)
        if taken > width:
            return text[:at]
    return text
