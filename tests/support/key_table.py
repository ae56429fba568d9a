"""The table of keys in docs/architecture.md, read as rules, and the keys of a queue as they are found."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, NamedTuple

from tests.support.resp import RespClient

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_ENCODED = r"[A-Za-z0-9._~%-]+"
_ANYTHING = r".+"
PLACEHOLDERS = {
    "u": _ENCODED,
    "g": r"[A-Za-z0-9._~%/-]+",
    "a": r"[0-9a-f]+",
    "b": _ANYTHING,
    "ns": _ENCODED,
    "id": _ANYTHING,
    "k": _ANYTHING,
    "r": _ANYTHING,
    "w": _ANYTHING,
    "s": _ANYTHING,
    "day": r"\d+",
    "nonce": r"[0-9a-f]+",
    "any": _ANYTHING,
    "key": _ANYTHING,
}
EXPIRES = {"no": {False}, "yes": {True}, "sometimes": {False, True}}
_ROW = re.compile(r"^\| (`[^|]+`) \| (\w+) \| (\w+) \| .* \| .* \| .* \|$", re.MULTILINE)
_LOOK = """
local prefix, found = string.sub(KEYS[1], 1, -6), {}
for _, key in ipairs(redis.call('KEYS', prefix .. '*')) do
  found[#found + 1] = { string.sub(key, #prefix + 1), redis.call('TYPE', key).ok, redis.call('PTTL', key) }
end
return found
"""


class Rule(NamedTuple):
    """What the table says of the keys of one form."""

    form: str
    pattern: re.Pattern[str]
    kind: str
    expires: set[bool]


class Found(NamedTuple):
    """A key of the queue, without its prefix."""

    key: str
    kind: str
    expires: bool


def rules_in(page: str) -> list[Rule]:
    """A row may name several forms of keys."""
    table = page.partition("| key | type | expires |")[2].partition("\n\n")[0]
    return [
        Rule(form, _pattern_of(form), kind, EXPIRES[expires])
        for cell, kind, expires in _ROW.findall(table)
        for form in re.findall(r"`([^`]+)`", cell)
    ]


def _pattern_of(form: str) -> re.Pattern[str]:
    parts = re.split(r"<(\w+)>", form)
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [PLACEHOLDERS[name] for name in parts[1::2]]
    return re.compile("".join(parts), re.DOTALL)


class KeyWatch:
    """Every key that a queue ever has: those that are there when one looks, and the names of all that come.

    Args:
        url: A server with ``notify-keyspace-events Kn``, which tells of new keys.
        prefix: What the keys of the queue begin with.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self._prefix = prefix
        self._client, self._ear = RespClient(url), RespClient(url)
        self._channel = f"__keyspace@0__:{prefix}"
        self._thread = threading.Thread(target=self._listen, name="new keys")
        self.names: set[str] = set()
        self.found: set[Found] = set()

    def look(self) -> None:
        """All keys at one moment between two scripts."""
        rows = self._client.execute("EVAL", _LOOK, 1, f"{self._prefix}state")
        self.found |= {Found(key.decode(), kind.decode(), ttl >= 0) for key, kind, ttl in rows}

    def __enter__(self) -> Self:
        self._ear.execute("PSUBSCRIBE", re.sub(r"([*?\[\]\\])", r"\\\1", self._channel) + "*")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.execute("PUBLISH", self._channel, "the end")
        self._thread.join()
        self._client.close()
        self._ear.close()

    def _listen(self) -> None:
        while True:
            _, _, channel, event = self._ear.receive()
            if event == b"the end":
                return
            self.names.add(channel.decode().removeprefix(self._channel))
