"""`XComManager` without await."""

from __future__ import annotations

from fairque.queue import xcom
from fairque.sync.face import Face, blocking

__all__ = ["XComManager"]


class XComManager(Face[xcom.XComManager], of=xcom.XComManager):
    """The values that the tasks of a user share, seen from outside, see `fairque.XComManager`."""

    push = blocking(xcom.XComManager.push)
    pull = blocking(xcom.XComManager.pull)
    pull_many = blocking(xcom.XComManager.pull_many)
    get = blocking(xcom.XComManager.get)
    keys = blocking(xcom.XComManager.keys)
    delete = blocking(xcom.XComManager.delete)
    clear = blocking(xcom.XComManager.clear)

    @property
    def user_id(self) -> str:
        """Whose values they are."""
        return self._inner.user_id

    @property
    def namespace(self) -> str:
        """Where they are looked for."""
        return self._inner.namespace
