"""`tunables`: what the allocator of glibc is told, so that the server holds on to what it freed."""

from __future__ import annotations

__all__ = ["tunables"]

_KEPT = "glibc.malloc.tcache_count=4000"
"""Freed chunks of each size that are kept at hand: scripts free in thousands what they made, and glibc keeps seven."""
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Where the system leaves them to programs: keys of many users lie far apart, and each small page has to be found."""


def tunables(*, is_saved: bool) -> str:
    """For `GLIBC_TUNABLES` of a server whose data is saved to a file or not: it is forked then, and copies each page
    that is written to meanwhile, so that huge ones would cost more than they save. Where the C library is not glibc,
    it means nothing."""
    return _KEPT if is_saved else f"{_KEPT}:{_HUGE_PAGES}"
