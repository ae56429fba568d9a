"""`examine`: look at everything that a queue has in Redis.

A walk over all keys (SCAN, from here) says what there is to look at; what it finds is old by then. So it only names
items: a key, a task in a place, a user, a pair of tasks one of which waits for the other. A script looks at some of
them at a time, and sees all of each at one moment. What seems wrong is looked at once more, and in a repair mended by
the script that sees it. Totals are compared when nothing moved between the first look and the last (see `totals`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from fairque.doctor.agreement import TIMES_KEPT, check_agreement
from fairque.doctor.apart import find_apart
from fairque.doctor.astray import find_astray
from fairque.doctor.finding import Finding, FindingKind, QueueCheck
from fairque.doctor.foundation import lay_foundation
from fairque.doctor.rows import Key, key_of
from fairque.doctor.steps import batched
from fairque.doctor.totals import compare_totals
from fairque.errors import ConfigError, QueueUnavailable, StoreError
from fairque.redis.keys import decode_user, encode_user
from fairque.redis.store import Store
from fairque.redis.store_checks import Item
from fairque.tasks.message import BadMessage, decode_body
from fairque.transfer.moving import finish_moves

__all__ = ["examine"]

PASSES = 6
"""Of a repair: what is mended may show, or cause, what is next."""
WEIGHT = 60
"""Of the items of one script, which takes a third of a millisecond, or where all is to be mended one or two."""
MEMBERS = 200
"""Of small keys that are read together."""
_LIGHT = {"key": 1}
_HEAVY = 4
_OF_ONE_TASK = {"key", "task", "seat", "delivery", "link", "leftover", "letter", "of_kind", "value"}
"""Checks that come once, or that are cheaper to repeat than to remember."""
_WHY_NOT = {
    FindingKind.UNKNOWN_KEY: "fairque does not know what it is: delete it if you do",
    FindingKind.UNREADABLE: "mend first what it depends on",
    FindingKind.WRONG_TOTAL: "the queue moved: try again",
    FindingKind.TWO_HOMES: "it has to be known which of the two is to be kept",
}


async def examine(store: Store, *, repair: bool = False) -> QueueCheck:
    """See `TaskQueue.check`. Of a queue with partitions, each is looked at by itself, one after the other."""
    checks: list[QueueCheck] = []
    if store.backend.is_part or not await _has_partitions(store):
        checks.append(await _examine(store, repair=repair))
        if store.backend.is_part or not await _has_partitions(store):  # what was mended may tell of some
            return checks[0]
    if repair:
        await _finish_moves(store)
    missing: list[int] = []
    for number, part in enumerate(store.parts):
        try:
            checks.append(_of_partition(number, await _examine(part, repair=repair)))
        except QueueUnavailable:
            missing.append(number)
            if len(missing) == len(store.parts):
                raise
    if repair:
        await _finish_moves(store)
    astray = await find_astray(store.parts, repair=repair) + await find_apart(store, repair=repair)
    if any(check.keys for check in checks):  # else nobody has written anything yet
        checks.insert(0, await check_agreement(store, repair=repair))
    return _sum(checks, tuple(missing), astray)


async def _has_partitions(store: Store) -> bool:
    """Settings that cannot be read are a finding, and say of no partitions."""
    with contextlib.suppress(ConfigError, KeyError, StoreError):
        if not await store.is_divided(store=False) and not store.backend.agreed:
            await store.agree_with_partitions()
    return store.backend.is_partitioned


def _of_partition(number: int, check: QueueCheck) -> QueueCheck:
    findings = tuple(msgspec.structs.replace(finding, partition=number) for finding in check.findings)
    return msgspec.structs.replace(check, findings=findings)


def _sum(checks: Sequence[QueueCheck], missing: tuple[int, ...], astray: Sequence[Finding]) -> QueueCheck:
    return QueueCheck(
        findings=(*(finding for check in checks for finding in check.findings), *astray),
        keys=sum(check.keys for check in checks),
        users=sum(check.users for check in checks),
        totals_compared=all(check.totals_compared for check in checks),
        complete=all(check.complete for check in checks) and not missing,
        seconds=sum(check.seconds for check in checks),
        missing=missing,
    )


async def _examine(store: Store, *, repair: bool) -> QueueCheck:
    began = time.monotonic()
    found, has_ground = await lay_foundation(store, repair=repair)
    if not has_ground or store.backend.is_partitioned:  # what was mended told of partitions, which are yet to come
        return msgspec.structs.replace(_check_of(found, None, began), complete=has_ground)
    look = None
    for _ in range(PASSES if repair else 1):
        look = _Pass(store, repair=repair)
        await look.run()
        found += [finding for finding in look.findings if finding.mended]
        if not any(finding.mended for finding in look.findings):
            break
    if look is not None:
        found += [finding for finding in look.findings if not finding.mended]
    return _check_of(found, look, began)


async def _finish_moves(store: Store) -> None:
    """Of users whose movers fell silent, as workers do. Where nobody has written anything yet, nothing is."""
    if len(await store.lost_settings()) == TIMES_KEPT:
        return
    for number in range(len(store.parts)):
        with contextlib.suppress(QueueUnavailable):
            while await finish_moves(store, number):
                pass


def _check_of(found: Iterable[Finding], look: _Pass | None, began: float) -> QueueCheck:
    return QueueCheck(
        findings=tuple(dict.fromkeys(found)),
        keys=look.keys if look else 0,
        users=len(look.users) if look else 0,
        totals_compared=look is not None and look.totals_compared,
        complete=look is not None,
        seconds=time.monotonic() - began,
    )


class _Pass:
    """One walk through the queue."""

    def __init__(self, store: Store, *, repair: bool) -> None:
        self._store = store
        self._repair = repair
        self._seen: set[Item] = set()
        self.findings: list[Finding] = []
        self.keys = 0
        self.users: set[str] = set()
        self.totals_compared = False

    async def run(self) -> None:
        since_ms = await self._store.now_ms()
        await self._judge([("state", "", "", False), ("byte_limits", "", "")])
        async for names in self._store.key_names():
            await self._look_at_keys(self._known(names))
        if self.users:
            await self._judge([("state", "", "", True)])
        totals = await compare_totals(self._store, self.users, since_ms, repair=self._repair)
        self.totals_compared = totals is not None
        self.findings += totals or ()

    def _known(self, names: list[str]) -> list[Key]:
        found = []
        for name in names:
            self.keys += 1
            if key := key_of(name):
                found.append(key)
            else:
                self.findings.append(_finding(("key", "", "", name), FindingKind.UNKNOWN_KEY, name, "", ""))
        return found

    async def _look_at_keys(self, keys: list[Key]) -> None:
        await self._judge([key.check for key in keys])
        await self._judge(item for key in keys for item in key.row.items_of(key.words))
        walked = [key for key in keys if key.row.has_members]
        for some in batched(walked, WEIGHT // 2):
            read = await self._store.small_members([(key.name, key.row.kind) for key in some], MEMBERS)
            for key, members in zip(some, read, strict=True):
                if members is None:
                    await self._look_at_large(key)
            await self._judge(
                item
                for key, members in zip(some, read, strict=True)
                for item in key.row.items_of_members(key.words, _texts(members or ()))
            )

    async def _look_at_large(self, key: Key) -> None:
        try:
            async for page in self._store.members(key.name, key.row.kind):
                await self._judge(key.row.items_of_members(key.words, _texts(page)))
        except StoreError:  # of a wrong type, which its own check has told
            return

    # Items

    async def _judge(self, items: Iterable[Item]) -> None:
        """Those that seem wrong get the second look, which mends in a repair."""
        for some in _in_steps(self._fresh(items)):
            first = await self._store.check(some)
            suspects = [item for item, wrong in zip(some, first, strict=True) if wrong]
            if not suspects:
                continue
            second = await self._store.check(suspects, repair=self._repair)
            found = [_finding_in(item, row) for item, wrong in zip(suspects, second, strict=True) for row in wrong]
            self.findings += [await self._mended(finding) for finding in found] if self._repair else found

    async def _mended(self, finding: Finding) -> Finding:
        """What takes more than a script, or why nothing could be done."""
        if finding.mended:
            return finding
        if finding.kind is FindingKind.WAITS_FOR_NOTHING and finding.user_id and finding.task_id:
            return await self._rewired(finding, finding.user_id, finding.task_id)
        return msgspec.structs.replace(finding, how=_WHY_NOT.get(finding.kind, ""))

    async def _rewired(self, finding: Finding, user_id: str, task_id: str) -> Finding:
        stored = await self._store.info(user_id, task_id)
        try:
            overrides = decode_body(stored.body).overrides
        except BadMessage as error:
            return msgspec.structs.replace(finding, how=f"cancel it: {error}")
        needs = overrides.depends_on if overrides else []
        item = ("rewire", encode_user(user_id), task_id, *needs)
        [found] = await self._store.check([item], repair=True)
        return _finding_in(item, found[0]) if found else finding

    def _fresh(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if item[0] not in _OF_ONE_TASK:
                if item in self._seen:
                    continue
                self._seen.add(item)
                if item[0] in ("user", "announcing"):
                    self.users.add(item[1])
            yield item


def _in_steps(items: Iterable[Item]) -> Iterator[Sequence[Item]]:
    """As many as one script takes."""
    step: list[Item] = []
    weight = 0
    for item in items:
        step.append(item)
        weight += _LIGHT.get(item[0], _HEAVY)
        if weight >= WEIGHT:
            yield step
            step, weight = [], 0
    if step:
        yield step


def _texts(members: Iterable[bytes]) -> list[str]:
    return [member.decode(errors="replace") for member in members]


def _finding_in(item: Item, row: list[bytes]) -> Finding:
    kind, key, detail, how = (part.decode(errors="replace") for part in row)
    return _finding(item, FindingKind(kind), key, detail, how)


def _finding(item: Item, kind: FindingKind, key: str, detail: str, how: str) -> Finding:
    named = key_of(key)
    user = item[1] or (named.words.get("u") if named else "")
    return Finding(
        kind=kind,
        key=key,
        user_id=decode_user(user.encode()) if user and user != "*" else None,
        task_id=item[2] if item[2] and kind is not FindingKind.UNREADABLE else None,  # one key may be that of many
        detail=detail,
        mended=bool(how),
        how=how,
    )
