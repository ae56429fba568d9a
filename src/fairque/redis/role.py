"""`Role`: what a user of Redis has to be permitted for one kind of process, derived from the scripts that it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from fairque.redis.commands import commands_of, readers
from fairque.redis.keys import Keys, glob

__all__ = ["ROLES", "Role", "rules_of"]

_BESIDE = "client|setname exists fcall_ro hgetall info ping select sscan ssubscribe sunsubscribe zrevrange zscan"
_EVERYBODY = frozenset(_BESIDE.split())
"""What connections, `TaskQueue.open` and pages of a listing send beside scripts."""
_GUIDES = {"sentinel": "role", "cluster": "cluster|slots"}
"""What is asked by the scheme of a URL, to find the server."""
_WRITES = frozenset(("fcall",))
_MENDS = frozenset(
    ("function|load", "get", "hscan", "pexpire", "pttl", "rename", "scan", "time", "type", "unlink", "xrange", "zscan")
)
"""What walks through all keys, mends those without which no script runs, and brings the scripts along."""
_OF_WRITERS = frozenset(("scan",))
"""What a check shares files with, and does not run: SCAN tells the names of all keys of the server."""


class Role(NamedTuple):
    """One kind of process. What only reads is of all roles.

    Attributes:
        name: As `fairque acl` takes it.
        scripts: Names of those that it adds to those of the roles it includes.
        plain: Commands that are sent beside them.
        includes: Names of roles.
        writes: Whether it may change keys of the queue.
    """

    name: str
    scripts: Callable[[], Iterable[str]]
    plain: frozenset[str]
    includes: tuple[str, ...] = ()
    writes: bool = True

    @property
    def own_commands(self) -> frozenset[str]:
        """Without those of roles that it includes."""
        commands = self.plain.union(*map(commands_of, self.scripts()))
        return commands if self.writes else commands - _OF_WRITERS

    @property
    def commands(self) -> frozenset[str]:
        return self.own_commands.union(*(ROLES[name].commands for name in self.includes))

    @property
    def all_scripts(self) -> frozenset[str]:
        return frozenset(self.scripts()).union(*(ROLES[name].all_scripts for name in self.includes))


_PUTS_IN = (
    "agree batch_cancel batch_close batch_open cancel cancel_all change confirm discard enqueue enqueue_linked requeue"
    " watch xcom_clear xcom_delete xcom_pull xcom_push"
)
_FIRES = "agree declare expire fire leave_schedules ripe schedule unschedule"
_SERVES = "accuse agree append claim hand_on leave limits policy progress receive renew settle sign turn"
_OF_PARTITIONS = "accept adopt erase exchange follow forward lend thaw"
_MANAGES = "arrive change_settings depart forfeit freeze import manifest purge repair"

ROLES = {
    role.name: role
    for role in (
        Role("reader", readers, _EVERYBODY, writes=False),
        Role("producer", _PUTS_IN.split, _EVERYBODY | _WRITES, ("reader",)),
        Role("scheduler", _FIRES.split, _EVERYBODY | _WRITES, ("reader",)),
        Role("worker", f"{_SERVES} {_OF_PARTITIONS}".split, _EVERYBODY | _WRITES, ("producer", "scheduler")),
        Role("admin", _MANAGES.split, _EVERYBODY | _WRITES | _MENDS, ("worker",)),
    )
}
"""Whose tasks put in others, and who fires schedules beside them, is a worker: it may what those may."""


class Rules(NamedTuple):
    """What `ACL SETUSER` takes after the name of a user."""

    keys: tuple[str, ...]
    channels: tuple[str, ...]
    commands: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return *self.keys, *self.channels, "-@all", *(f"+{command}" for command in self.commands)


def rules_of(
    roles: Iterable[str], keys: Keys, scheme: str = "redis", *, partitions: Iterable[Keys] = (), loads: bool = False
) -> Rules:
    """All that these roles need on one queue.

    Args:
        roles: Names in `ROLES`.
        keys: Of the queue.
        scheme: Of the URL by which it is reached.
        partitions: The keys of each of its partitions. They are named one by one: a pattern for all of them would
            let in whoever has a queue with a name that is like theirs. Who knows of none may look whether there are.
        loads: Whether it may bring the scripts along as well.
    """
    chosen = [ROLES[name] for name in roles]
    commands = frozenset[str]().union(*(role.commands for role in chosen))
    if scheme in _GUIDES:
        commands |= {_GUIDES[scheme]}
    if loads:
        commands |= {"function|load"}
    parts = tuple(partitions)
    patterns = [pattern_of(each) for each in (keys, *parts)]
    reads = "" if any(role.writes for role in chosen) else "%R"
    named = [f"{reads}~{pattern}" for pattern in patterns]
    named.append(f"{reads if parts else '%R'}~{pattern_of(keys.copy)}")
    return Rules(tuple(named), tuple(f"&{pattern}" for pattern in patterns), tuple(sorted(commands)))


def pattern_of(keys: Keys) -> str:
    """All keys and channels of a queue. A rule has no space: of what a name may be made of, a class has that alone."""
    return f"{glob(keys.prefix)}*".replace(" ", "[^!-~]")
