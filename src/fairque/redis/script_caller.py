"""`ScriptCaller`: runs scripts over one connection, and repeats a call for as long as it may."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar

from fairque.backoff import Backoff
from fairque.errors import NotPermitted, QueueUnavailable, StoreError, UserFrozen
from fairque.redis.arguments import Agree, Arguments, ChangeSettings, encode
from fairque.redis.backend import Backend
from fairque.redis.commands import scripts_of_core
from fairque.redis.connector import NoScript, not_loadable
from fairque.redis.dividing import at_once, of_those_there
from fairque.redis.keys import LAYOUT, Keys, decode_user
from fairque.redis.places import MovedUser, Places, UserElsewhere
from fairque.redis.replies import fields_in
from fairque.redis.requester import LEAST_TRIES, LONGEST_PAUSE, Requester, pack
from fairque.redis.routes import route
from fairque.redis.scripts import MOST_LOADS, Script, load
from fairque.redis.shared import NodeConnections, PartitionRequester
from fairque.settings import QueueSettings

__all__ = ["ScriptCaller"]

logger = logging.getLogger("fairque.store")
R = TypeVar("R")
WRONG_TYPE = "WRONGTYPE"


class ScriptCaller:
    """The scripts of one queue over one connection; of one with partitions, over one to each node that has some.

    Every script is idempotent by the ids in its arguments, so each call may be repeated after a cut reply.

    Args:
        backend: Where the queue is.
        patience: Seconds during which a call is repeated when Redis is not available; 0: tried once.
        connections: Of a partition: those that it shares with others.

    Attributes:
        sealer: Of the queue's contents; None: they are in Redis as they are.
    """

    def __init__(self, backend: Backend, *, patience: float = 0.0, connections: NodeConnections | None = None) -> None:
        self.backend = backend
        self.keys = backend.keys
        self.sealer = backend.sealer
        self.patience = patience
        self._connections = connections
        self._requester = self._new_requester()
        self._parts: tuple[Self, ...] = ()
        self._retired: Requester | None = None

    def _new_requester(self) -> Requester:
        connector = self.backend.connector
        return Requester(connector) if self._connections is None else PartitionRequester(connector, self._connections)

    async def close(self) -> None:
        """Of a partition: what it shares with others is closed with the store that it was taken from."""
        await self._requester.close()
        if self._retired is not None:
            await self._retired.close()
        if self._parts and self._connections is not None:
            await self._connections.close()

    @property
    def number(self) -> int:
        """Of the partition, from 0 on; of a queue without any, 0."""
        return self.backend.number

    @property
    def parts(self) -> tuple[Self, ...]:
        """The same of each partition, to be closed with this; of a queue without any, this alone.

        Known for certain once `agree` has been through.
        """
        partitions = self.backend.partitions
        if len(partitions) == 1:
            return (self,)
        if len(self._parts) != len(partitions):
            self._parts = self._spread(partitions)
        return self._parts

    def _spread(self, partitions: Sequence[Backend]) -> tuple[Self, ...]:
        if self._connections is None:
            self._connections = NodeConnections(self.backend.connector.home)
            self._retired, self._requester = self._requester, self._new_requester()
            self._retired.retire()  # calls that began with it may still connect
        make = partial(type(self), patience=self.patience, connections=self._connections)
        return tuple(map(make, partitions))

    def part_of(self, user: str) -> Self:
        """That of the partition in which a user lives, by its name in Redis."""
        parts = self.parts
        return parts[self.places.of(user)] if len(parts) > 1 else self

    async def home_of(self, user: str) -> Self:
        """That of the partition in which a user lives by now, for who goes to its keys without a script."""
        if self.backend.is_plain or not await self.is_divided(store=False):
            return self
        return await self.following(lambda: self._found_home(user))

    async def _found_home(self, user: str) -> Self:
        part = self.part_of(user)
        told: bytes | None = await part._insist(pack((b"HGET", part.keys.prefix + "moved", user)))
        if told is not None:
            raise UserElsewhere((MovedUser(user, *map(int, told.split())),))
        return part

    def keys_of(self, user: str) -> Keys:
        """The keys of what a user has, by its name in Redis. Also before it is known whether there are partitions."""
        partitions = self.backend.partitions
        return partitions[self.places.of(user)].keys if len(partitions) > 1 else self.keys

    @property
    def places(self) -> Places:
        """Where users live, as far as it is known."""
        return self.backend.places

    @property
    def timeout(self) -> float:
        """Seconds for connecting and for one request."""
        return self.backend.connector.timeout

    @property
    def settings(self) -> QueueSettings:
        """Of the queue; those in force once `agree` has been through."""
        return self.backend.settings

    async def agree(self, *, store: bool = True, patience: float | None = None) -> None:
        """Take the settings of the queue over, or give it ours when it has none. Every call does this first.

        With ``store=False`` nothing is written: who only looks at a queue that nobody uses leaves nothing behind.

        Raises `SettingsMismatch` when the two contradict each other.
        """
        if self.backend.agreed:
            return
        try:
            stored = await self._stored(store=store, patience=patience)
        except QueueUnavailable:
            if not await self.agree_elsewhere():
                raise
        else:
            if stored:
                self.backend.adopt(fields_in(stored))
        if store and self.backend.is_partitioned:
            with contextlib.suppress(QueueUnavailable):  # one that is away is told by the next process
                await self._copy_settings()

    async def _stored(self, *, store: bool, patience: float | None) -> list[bytes]:
        """A queue whose settings are lost has them from their copy, and is not made anew as one without partitions."""
        if store and self.backend.is_part:
            return await self._agreed_on(patience)
        stored: list[bytes] = await self._insist(pack((b"HGETALL", self.keys.settings)), patience)
        if not (stored or self.backend.is_part):
            stored = await self._copied(patience)
            if stored:
                logger.warning("queue %r has lost its settings: their copy is used", self.backend.name)
                self.backend.adopt(fields_in(stored))
        return await self._agreed_on(patience) if store else stored

    async def _agreed_on(self, patience: float | None) -> list[bytes]:
        stored: list[bytes] = await self._run(load("agree"), [encode(Agree(LAYOUT, self.backend.said))], patience)
        return stored

    async def agree_elsewhere(self) -> bool:
        """Take the settings over while the node that has them is away. False: nobody else tells them.

        Raises `SettingsMismatch`.
        """
        if self.backend.is_part or self.backend.connector.scheme != "cluster":
            return False
        stored: list[bytes] = []
        with contextlib.suppress(QueueUnavailable):
            stored = await self._copied(0.0)
        if stored := stored or await self._stored_in_parts():
            self.backend.adopt(fields_in(stored))
        return bool(stored)

    async def _copied(self, patience: float | None) -> list[bytes]:
        """What the copy of the settings says; nothing of a queue without partitions, or where it may not be read.

        Of one that is known to have some it is not waited for.
        """
        stored: list[bytes] = []
        async with self._at_copy() as copy:
            try:
                stored = await copy._insist(pack((b"HGETALL", copy.keys.settings)), patience)
            except NotPermitted:
                return []
            except QueueUnavailable:
                if not self.backend.is_partitioned:
                    raise
        return stored

    async def _copy_settings(self) -> None:
        async with self._at_copy() as copy:
            await copy._agreed_on(0.0)

    @contextlib.asynccontextmanager
    async def _at_copy(self) -> AsyncIterator[Self]:
        """The same for the copy of the settings, with a connection for the moment where none to nodes is kept yet."""
        copy = type(self)(self.backend.copy, patience=self.patience, connections=self._connections)
        if copy.backend.connector is self.backend.connector:
            copy._requester = self._requester
            yield copy
            return
        try:
            yield copy
        finally:
            await copy._requester.close()

    async def _stored_in_parts(self) -> list[bytes]:
        """The same, of partitions that answer; nothing where there are none."""
        if not self.backend.is_partitioned:
            return []
        found = await of_those_there(self.parts, lambda part: part._insist(pack((b"HGETALL", part.keys.settings)), 0.0))
        return next(filter(None, found), [])

    async def is_divided(self, *, store: bool = True) -> bool:
        """Whether the queue has partitions. It is asked unless it is known."""
        if self.backend.is_part:
            return False
        await self.agree(store=store)
        return self.backend.is_partitioned

    async def change_settings(self, changes: Mapping[str, Any]) -> None:
        """Fields of `QueueSettings`, for all who open the queue from now on.

        Of a queue with partitions, what the queue says counts: it is the last to be told.
        """
        await self.call(ChangeSettings(changes))
        if self.backend.is_partitioned:
            change = load("change_settings"), [encode(ChangeSettings(changes))]
            async with self._at_copy() as copy:
                await copy._run(*change)
            await self._run(*change)

    async def call(self, arguments: Arguments, values: Sequence[bytes] = (), patience: float | None = None) -> Any:
        """Run the script that these are the arguments of."""
        script = load(arguments.script, arguments.package)
        if not self.backend.is_plain and await self._is_elsewhere(script, patience):
            return await self.following(lambda: route(self.parts, arguments, values, patience), patience)
        run = self._run_timed if self.backend.call_listeners else self._run
        try:
            return await run(script, [encode(arguments), *values], patience)
        except UserFrozen as exc:
            if not arguments.waits_for_user:
                raise
            return await self._run_when_thawed(script, [encode(arguments), *values], patience, exc)

    async def _run_when_thawed(
        self, script: Script, args: Sequence[bytes], patience: float | None, error: UserFrozen
    ) -> Any:
        """Its user stands still, for a while."""
        backoff, seconds = Backoff(), self.patience if patience is None else patience
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, backoff.next(LONGEST_PAUSE)))
            try:
                return await self._run(script, args, patience)
            except UserFrozen as exc:
                error = exc
        raise error

    async def following(
        self, ask: Callable[[], Awaitable[R]], patience: float | None = None, *, is_of_many: bool = False
    ) -> R:
        """What is asked of the queue, which may be about users who have moved: that is learnt, and it is asked again.

        A user that is on its way from one partition to another is waited for: for so many seconds, by default for as
        long as the store's own patience lasts. Raises `QueueUnavailable` when it does not arrive: whoever waits for a
        task goes on waiting. What `is_of_many` users does not wait, and raises `UserFrozen`: it is made again without
        that user.
        """
        backoff, until = Backoff(), time.monotonic() + (self.patience if patience is None else patience)
        followed: set[MovedUser] = set()
        while True:
            try:
                return await ask()
            except UserElsewhere as exc:
                error = exc
            if news := self.places.news_in(error, followed):
                followed.update(news)
                continue
            if is_of_many:
                raise UserFrozen(*_on_the_way(error))
            if (left := until - time.monotonic()) <= 0:
                raise QueueUnavailable(_on_the_way(error)[0])
            await asyncio.sleep(min(left, backoff.next(LONGEST_PAUSE)))

    async def _is_elsewhere(self, script: Script, patience: float | None) -> bool:
        """Whether the queue has partitions, each of which has what it needs; asked unless it is known."""
        if not (script.only_reads and self.backend.is_part):
            await self.agree(store=not script.only_reads, patience=patience)
        return self.backend.is_partitioned

    async def _run_timed(self, script: Script, args: Sequence[bytes], patience: float | None) -> Any:
        began = time.perf_counter()
        try:
            return await self._run(script, args, patience)
        finally:
            seconds = time.perf_counter() - began
            for listener in self.backend.call_listeners:
                listener(script.name, seconds)

    async def _run(self, script: Script, args: Sequence[bytes], patience: float | None = None) -> Any:
        try:
            return await self._run_known(script, args, patience)
        except StoreError as exc:
            if WRONG_TYPE not in str(exc):
                raise
            return await self._run_telling(script, args, patience, exc)

    async def _run_telling(
        self, script: Script, args: Sequence[bytes], patience: float | None, error: StoreError
    ) -> Any:
        """Whatever the call has done, it may be made again: by a script that tells which key that is."""
        try:
            return await self._insist(pack(script.told(self.keys.of_calls, args)), patience)
        except StoreError as told:
            raise (told if WRONG_TYPE in str(told) else error) from None  # EVAL may be denied

    async def _run_known(self, script: Script, args: Sequence[bytes], patience: float | None) -> Any:
        command = pack(script.called(self.keys.of_calls, args))
        for _ in range(MOST_LOADS):
            try:
                return await self._insist(command, patience)
            except NoScript:  # the next call may meet another server, after a failover
                if (refusal := await self._load(script)) is not None:
                    return await self._run_spelled_out(script, args, patience, refusal)
        raise StoreError(f"the server forgets script {script.name!r} each time it is loaded")

    async def _run_spelled_out(
        self, script: Script, args: Sequence[bytes], patience: float | None, refusal: QueueUnavailable
    ) -> Any:
        try:
            return await self._insist(pack(script.spelled_out(self.keys.of_calls, args)), patience)
        except NotPermitted:  # EVAL may be denied
            raise refusal from None

    async def _load(self, script: Script) -> QueueUnavailable | None:
        """Why the server takes no library just then, see `Script.spelled_out`. Raises `NotPermitted`."""
        try:
            await self._requester.request(pack(script.loading))
        except QueueUnavailable as exc:
            return exc
        except NotPermitted as exc:
            raise not_loadable(exc) from None
        return None

    async def load_functions(self) -> int:
        """Make all scripts of a queue known to the server. Returns how many; raises `NotPermitted`."""
        with contextlib.suppress(NotPermitted):  # who may load need not be one who may use the queue
            await self.agree(store=False)
        if self.backend.is_partitioned:
            return max(await at_once(part.load_functions() for part in self.parts))
        for name in scripts_of_core():
            await self._insist(pack(load(name).loading))
        return len(scripts_of_core())

    async def _insist(self, command: bytes, patience: float | None = None) -> Any:
        """Repeat until it is answered, for as long as the store's own patience lasts if no other is given."""
        began = time.monotonic()
        try:
            return await self._requester.request(command, patience)
        except QueueUnavailable as exc:
            left = (self.patience if patience is None else patience) - (time.monotonic() - began)
            if left <= 0:
                raise
            return await self._repeat(command, left, exc)

    async def _repeat(self, command: bytes, seconds: float, error: QueueUnavailable) -> Any:
        backoff, longest = Backoff(), min(LONGEST_PAUSE, seconds / LEAST_TRIES)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await asyncio.sleep(backoff.next(longest))
                    try:
                        return await self._requester.request(command)
                    except QueueUnavailable as exc:
                        error = exc
        except TimeoutError:
            raise error from None


def _on_the_way(error: UserElsewhere) -> tuple[str, str]:
    """A text, and the user."""
    user_id = decode_user(error.moved[0].user.encode())
    return f"user {user_id!r} is on its way from one partition to another", user_id
