"""The keys of a queue: a row for each that the table of docs/architecture.md has, with what is checked of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from fairque.redis.store_checks import Item

__all__ = ["ROWS", "Row", "key_of"]

_ENCODED = r"[A-Za-z0-9._~%-]+"
_ANYTHING = r".+"
_PLACEHOLDERS = {
    "u": _ENCODED,
    "g": r"[A-Za-z0-9._~%/-]+",
    "a": r"[0-9a-f]+",
    "b": _ANYTHING,
    "ns": _ENCODED,
    "id": _ANYTHING,
    "name": _ANYTHING,
    "w": _ANYTHING,
    "s": _ANYTHING,
    "day": r"\d+",
    "nonce": r"[0-9a-f]+",
    "any": _ANYTHING,
    "k": _ANYTHING,
    "r": _ANYTHING,
}


class Row:
    """What is known of the keys of one form.

    Args:
        form: As in the table: ``normal:<u>``.
        kind: The type in Redis; ``any`` where that does not matter.
        expires: Whether it has a time to live: no, yes or sometimes.
        whole: The checks of the key as a whole: words, of which ``$u`` is what stands for ``<u>`` in its name.
        each: The checks of each member: ``$m`` is the member, in a stream ``$m`` the entry and ``$task`` its task.
        split: The members are two names with a colon between, which these words stand for.
        ttl_days: What one gets that lacks its time to live; 0: that of dead letters.
    """

    def __init__(
        self,
        form: str,
        kind: str,
        expires: str,
        *,
        whole: tuple[str, ...] = (),
        each: tuple[str, ...] = (),
        split: tuple[str, str] | None = None,
        ttl_days: int = 0,
    ) -> None:
        self.form, self.kind, self.expires, self.ttl_days = form, kind, expires, ttl_days
        self._whole = [template.split(" ") for template in whole]
        self._each = [template.split(" ") for template in each]
        self._split = split

    def __repr__(self) -> str:
        return f"<Row {self.form}>"

    @property
    def has_members(self) -> bool:
        return bool(self._each)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = re.split(r"<(\w+)>", self.form)
        parts[::2] = map(re.escape, parts[::2])
        parts[1::2] = [f"(?P<{name}>{_PLACEHOLDERS[name]})" for name in parts[1::2]]
        return re.compile("".join(parts), re.DOTALL)

    def words_in(self, key: str) -> dict[str, str] | None:
        """What stands for the placeholders; None for a key of another form."""
        found = self._pattern.fullmatch(key)
        return found.groupdict() if found else None

    def items_of(self, words: dict[str, str]) -> Iterator[Item]:
        yield from (_filled(template, words) for template in self._whole)

    def items_of_members(self, words: dict[str, str], members: list[str]) -> Iterator[Item]:
        step = 2 if self.kind == "stream" else 1
        for at in range(0, len(members), step):
            of_member = words | self._words_of(*members[at : at + step])
            for template in self._each:
                if item := _applying(template, of_member):
                    yield item

    def _words_of(self, member: str, task: str = "") -> dict[str, str]:
        words = {"m": member, "task": task}
        if self._split:
            words |= dict(zip(self._split, member.split(":", 1), strict=False))
        return words


def _filled(template: list[str], words: dict[str, str]) -> Item:
    return tuple("" if word == "-" else _word(word, words) for word in template)


def _word(word: str, words: dict[str, str]) -> str:
    before, dollar, name = word.partition("$")
    return before + words[name] if dollar else before


def _applying(template: list[str], words: dict[str, str]) -> Item | None:
    """Where users stand, ``@`` begins a group, and ``*`` is everybody."""
    item = _filled(template, words)
    if item[0] == "user" and item[1][:1] in ("@", "*"):
        return ("group", "", "", item[1][1:]) if item[1][0] == "@" else None
    return item


_USER = ("user $u -",)
_USERS = ("user $m -",)


def _lane(lane: str) -> tuple[Row, Row]:
    return (
        Row(f"{lane}:<u>", "zset", "no", whole=_USER, each=(f"seat $u $m {lane}",)),
        Row(f"{lane}-stream:<u>", "stream", "no", whole=_USER, each=(f"delivery $u $task {lane} $m",)),
    )


ROWS = (
    Row("settings", "hash", "no"),
    Row("state", "hash", "no"),
    Row("users", "zset", "no"),
    *_lane("critical"),
    *_lane("normal"),
    Row("scheduled:<u>", "zset", "no", whole=_USER, each=("seat $u $m scheduled",)),
    Row("due", "zset", "no", each=_USERS),
    Row("expiring", "zset", "no", each=_USERS),
    Row("expiring:<u>", "zset", "no", whole=_USER, each=("expiring $u $m",)),
    Row("unique:<u>:<a>", "string", "sometimes", whole=("unique $u - $a",)),
    Row("deferred:<u>", "set", "no", whole=_USER, each=("seat $u $m deferred",)),
    Row("suspects", "zset", "no"),
    Row("leases", "zset", "no", each=_USER, split=("lane", "u")),
    Row("task:<u>:<id>", "hash", "sometimes", whole=("leftover $u $id task",)),
    Row("body:<u>:<id>", "string", "sometimes", whole=("task $u $id",)),
    Row("errors:<u>:<id>", "list", "sometimes", whole=("leftover $u $id errors",)),
    Row("chunks:<u>:<id>", "stream", "sometimes", whole=("chunks $u $id",)),
    Row("result:<u>:<id>", "string", "sometimes", whole=("result $u $id",)),
    Row("ends:<u>:<id>", "string", "sometimes", whole=("ends $u $id", "of_batch $u $id")),
    Row("children:<u>:<id>", "set", "sometimes", whole=("leftover $u $id children",)),
    Row("batch:<u>:<b>", "hash", "sometimes", whole=("batch $u $b",)),
    Row("batch-tasks:<u>:<b>", "set", "no", whole=("batch $u $b",), each=("counted $u $m $b",)),
    Row("batches:<u>", "zset", "no", whole=(*_USER, "batches $u -"), each=("batch $u $m",)),
    Row("batches", "zset", "no", each=("batches $m -",)),
    Row("needs:<u>:<id>", "set", "no", whole=("needs $u $id",), each=("link $u $id $m",)),
    Row("uses:<u>:<id>", "set", "no", whole=("uses $u $id",), each=("link $u $id $m",)),
    Row("feeds:<u>:<id>", "set", "no", whole=("fed $u $id",), each=("link $u $m $id",)),
    Row("informed:<u>:<id>", "set", "no", whole=("fed $u $id",), each=("link $u $m $id",)),
    Row("announcements", "zset", "no", each=("announcing $m -",)),
    Row("announcements:<u>", "list", "no", whole=("announcing $u -",)),
    Row("lapsing", "zset", "no", each=_USERS),
    Row("lapsing:<u>", "zset", "no", whole=_USER, each=("lapsing $u $m",)),
    Row("dead", "zset", "yes", each=("letter $u $id",), split=("u", "id")),
    Row("dead:<u>", "zset", "yes", whole=_USER, each=("letter $u $m",)),
    Row("dead-kinds:<u>", "zset", "yes"),
    Row("dead-kinds:*", "zset", "yes"),
    Row("dead-of:<u>:<any>", "zset", "yes", whole=("kind_listed $u - $any",), each=("of_kind $u $m $any $u",)),
    Row(
        *("dead-of:*:<any>", "zset", "yes"),
        whole=("kind_listed * - $any",),
        each=("of_kind $u $id $any *",),
        split=("u", "id"),
    ),
    Row("ready", "zset", "no", each=(*_USERS, "member $m - -")),
    Row("ready:<g>", "zset", "no", whole=("group - - $g",), each=(*_USERS, "member $m - $g")),
    Row("left", "zset", "yes", ttl_days=7),
    Row("left:<g>", "zset", "yes", ttl_days=7),
    Row("group:<g>", "hash", "sometimes"),
    Row("user:<u>", "hash", "sometimes", whole=_USER),
    Row("reserved", "zset", "no", each=_USERS),
    Row("parked", "zset", "no", each=_USERS),
    Row("swept", "zset", "no"),
    Row("sweep-lines", "list", "no"),
    Row("policy:<u>", "string", "no", whole=("policy - - $u",)),
    Row("policy:@<g>", "string", "no", whole=("policy - - @$g",)),
    Row("policy:*", "string", "no", whole=("policy - - *",)),
    Row("policy-users", "zset", "no", each=("policy - - $m",)),
    Row("policy-groups", "zset", "no", each=("policy - - $m",)),
    Row("limit:<r>", "hash", "no", whole=("limit - - $r", "uncounted - - $r", "paused - - $r")),
    Row("limit-keys", "zset", "no", each=("limit - - $m",)),
    Row("paused-tasks", "set", "no", each=("paused - - $m",)),
    Row("uncounted", "set", "no", each=("uncounted - - $m",)),
    Row("running:<k>", "set", "no", each=("running - - $k $m",)),
    Row("limit-rate:<k>", "string", "yes", ttl_days=1),
    Row("loan:<k>", "hash", "no", whole=("loan - - $k",)),
    Row("loans:<k>", "hash", "no", whole=("loan - - $k",)),
    Row("loans-closed", "hash", "no"),
    Row("exchanges", "zset", "no", each=("exchange - - $m",)),
    Row("held", "zset", "no", each=("held_name - - $m", "loan - - $m")),
    Row("held-turns", "zset", "no", each=("turns $m -",)),
    Row("held-keys:<u>", "zset", "no", whole=("turns $u -",), each=("held_key $u - $m",)),
    Row("held-users:<k>", "zset", "no", each=("holding $m - $k",)),
    Row("offers:<u>", "hash", "no", whole=_USER, each=("offer $u $m",)),
    Row("held:<u>", "zset", "no", whole=_USER, each=("seat $u $m held",)),
    Row("held:<u>:<k>", "zset", "no", whole=("holding $u - $k",), each=("held $u $m $k",)),
    Row("let-in:<k>", "zset", "no", each=("let_in - - $k $m",)),
    Row("kept:<k>", "set", "no", each=("kept - - $k $m",)),
    Row("keeper:<u>", "string", "yes", ttl_days=1),
    Row("collecting:<u>", "hash", "yes", whole=_USER, ttl_days=2),
    Row("collected:<u>:<id>", "list", "yes", ttl_days=2),
    Row("workers", "zset", "no"),
    Row("worker:<w>", "hash", "yes", ttl_days=1),
    Row("claimed:<w>", "string", "yes", ttl_days=1),
    Row("resting:<w>", "string", "yes", ttl_days=1),
    Row("waiting", "set", "no"),
    Row("waiting:<a>", "set", "no"),
    Row("assignments", "zset", "no"),
    Row("assignment:<a>", "set", "no", each=("assigned $m - $a",)),
    Row("assignments:<u>", "set", "no", whole=_USER, each=("assigned $u - $m",)),
    Row("assignments:@<g>", "set", "no"),
    Row("assignments-ended", "set", "no"),
    Row("workers@<a>", "set", "no"),
    Row("ready@<a>", "zset", "no"),
    Row("ready@<a>:<g>", "zset", "no"),
    Row("reserved@<a>", "zset", "no"),
    Row("leases@<a>", "zset", "no"),
    Row("metrics:<u>", "string", "yes", whole=("metrics $u -",), ttl_days=40),
    Row("metrics:*", "string", "yes", whole=("metrics * -",), ttl_days=40),
    Row("usage:<u>:<day>", "hash", "yes", ttl_days=40),
    Row("usage:*:<day>", "hash", "yes", ttl_days=40),
    Row("run-times", "hash", "yes", each=("run_time - - $m",), ttl_days=7),
    Row("xcom:<u>:<ns>", "hash", "yes", whole=("space $u - $ns",), each=("value $u - $ns $m",), ttl_days=7),
    Row("xcom-expiry:<u>:<ns>", "zset", "yes", each=("value $u - $ns $m",), ttl_days=7),
    Row("xcom-spaces:<u>", "zset", "yes", each=("space $u - $m",), ttl_days=7),
    Row("bytes:<u>", "hash", "no", whole=_USER),
    Row("bytes-expiring:<u>", "zset", "no", whole=_USER),
    Row("xcom-bytes:<u>", "hash", "no", whole=_USER),
    Row("weighed", "set", "no"),
    Row("weighing-spaces", "list", "no"),
    Row("schedules", "zset", "no", each=("planned $m -",)),
    Row("schedules:<u>", "zset", "no", whole=("planned $u -",), each=("schedule $u - $m",)),
    Row("schedule:<s>", "hash", "no", whole=("schedule - - $s",)),
    Row("schedule-index", "zset", "no", each=("indexed $u - $s",), split=("u", "s")),
    Row("schedules-broken", "zset", "no", each=("schedule - - $m",)),
    Row("schedule-keepers", "string", "yes", ttl_days=1),
    Row("schedules-ended", "zset", "no", each=("schedule - - $m",)),
    Row("declared", "zset", "no", each=("schedule - - $m",)),
    Row("declarers", "zset", "yes", ttl_days=1),
    Row("answer:<nonce>", "string", "yes", ttl_days=7),
    Row("advanced", "hash", "yes", ttl_days=1),
    Row("damaged", "zset", "no", each=_USERS),
    Row("damage", "hash", "no"),
    Row("frozen:<u>", "hash", "sometimes", whole=("on_its_way - - $u",)),
    Row("moved", "hash", "no", each=("moved - - $m",)),
    Row("moves", "zset", "no", each=("on_its_way - - $m",)),
    Row("departing", "hash", "no", each=("on_its_way - - $m",)),
    Row("manifest:<u>", "list", "sometimes", whole=("on_its_way - - $u",)),
    Row("damaged:<any>", "any", "yes", ttl_days=7),
)


def _head(name: str) -> str:
    return re.split("[:@]", name, maxsplit=1)[0]


_BY_HEAD: dict[str, list[Row]] = {}
for _row in ROWS:
    _BY_HEAD.setdefault(_head(_row.form), []).append(_row)


class Key(NamedTuple):
    """A key of a queue, without its prefix, and what its name tells."""

    name: str
    row: Row
    words: dict[str, str]

    @property
    def check(self) -> Item:
        """Of its type and expiry."""
        row = self.row
        user, task = self.words.get("u", ""), self.words.get("id", "")
        return ("key", user, task, self.name, row.kind, row.expires, row.ttl_days * 86_400_000)


def key_of(name: str) -> Key | None:
    """The key of this name; None for one that fairque does not have."""
    for row in _BY_HEAD.get(_head(name), ()):
        words = row.words_in(name)
        if words is not None:
            return Key(name, row, words)
    return None
