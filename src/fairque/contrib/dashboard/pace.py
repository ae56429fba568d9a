"""`Pace`: how often a viewer of some users may have something read."""

from __future__ import annotations

from collections.abc import Hashable
from time import monotonic

from fairque.contrib.dashboard.viewer import Viewer

__all__ = ["Pace"]

A_SECOND = 10.0
AT_ONCE = 50
MOST_REMEMBERED = 1000


class Pace:
    """A look may cost the server ten milliseconds where many users wait, and whoever claims tasks waits for that. So
    each viewer of some users has ten a second, and fifty at once after a while without any; operators have as many as
    they like.
    """

    def __init__(self) -> None:
        self._even_at: dict[Hashable, float] = {}
        """When each will have had no more than ten a second."""

    def allows(self, viewer: Viewer) -> bool:
        """Whether it may have one more now, which is counted then."""
        if viewer.is_operator:
            return True
        now = monotonic()
        even_at = max(now, self._even_at.get(viewer.rights, now))
        if even_at - now > (AT_ONCE - 0.5) / A_SECOND:
            return False
        if len(self._even_at) >= MOST_REMEMBERED:
            self._even_at = {who: at for who, at in self._even_at.items() if at > now}
        self._even_at[viewer.rights] = even_at + 1 / A_SECOND
        return True
