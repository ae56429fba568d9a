"""Breaking keys of a queue, one at a time, and bringing it back as it was."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from fairque.doctor.rows import key_of
from tests.support.resp import RespClient

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

HARMLESS = {
    "result:<u>:<id>",
    "errors:<u>:<id>",
    "chunks:<u>:<id>",
    "ends:<u>:<id>",
    "children:<u>:<id>",
    "left",
    "left:<g>",
    "group:<g>",
    "user:<u>",
    "reserved",
    "workers",
    "worker:<w>",
    "waiting",
    "waiting:<a>",
    "workers@<a>",
    "assignments:@<g>",
    "suspects",
    "collecting:<u>",  # the next task of the name begins another group
    "reserved@<a>",
    "ready@<a>:<g>",
    "metrics:<u>",
    "metrics:*",
    "usage:<u>:<day>",
    "usage:*:<day>",
    "run-times",
    "declared",
    "declarers",
    "schedule-keepers",
    "answer:<nonce>",
    "limit-rate:<k>",
    "keeper:<u>",
    "kept:<k>",
    "advanced",
}
"""Keys of which nobody can tell that they are gone: docs/guides/doctor.md, "What is lost without a word"."""


class Stored(NamedTuple):
    """A key with its content as `RESTORE` takes it, and its time to live in ms, 0 for ever."""

    content: bytes
    ttl_ms: int


class Damage:
    """The keys of one queue on a server that nobody else uses.

    Attributes:
        forms: The keys of each form of the table, without their prefix.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self._client = RespClient(url)
        self._prefix = prefix.encode()
        keys = sorted(self._client.execute("KEYS", b"*"))
        self._kept = {key: Stored(self._client.execute("DUMP", key), self._lasts(key)) for key in keys}
        self.forms: defaultdict[str, list[str]] = defaultdict(list)
        for key in keys:
            name = key.removeprefix(self._prefix).decode()
            if found := key_of(name):
                self.forms[found.row.form].append(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def undo(self) -> None:
        """All as it was."""
        self._client.execute("FLUSHALL")
        self._client.pipeline([("RESTORE", key, of.ttl_ms, of.content) for key, of in self._kept.items()])

    def delete(self, name: str) -> None:
        self._client.execute("DEL", self._prefix + name.encode())

    def retype(self, name: str) -> None:
        """Somebody writes something else under the name."""
        key = self._prefix + name.encode()
        kind = self._client.execute("TYPE", key)
        self._client.execute("DEL", key)
        self._client.execute(*(("RPUSH", key, "x") if kind == b"string" else ("SET", key, "x")))

    def put_there(self, name: str) -> None:
        """A key that is none of ours, where there was none."""
        found = key_of(name)
        verb = "RPUSH" if found and found.row.kind == "string" else "SET"
        self._client.execute(verb, self._prefix + name.encode(), "x")

    def restore(self, name: str) -> None:
        """This key as it was."""
        key = self._prefix + name.encode()
        self._client.execute("DEL", key)
        self._client.execute("RESTORE", key, self._kept[key].ttl_ms, self._kept[key].content)

    def messages(self) -> set[str]:
        """The tasks of which something can still be run."""
        keys = self._client.execute("KEYS", self._prefix.replace(b"{", b"\\{") + b"body:*")
        return {key.removeprefix(self._prefix).decode() for key in keys}

    def _lasts(self, key: bytes) -> int:
        return max(0, int(self._client.execute("PTTL", key)))
