"""One method per script: replies become values, errors are our own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import msgspec

from fairque.errors import ConfigError, FairqueError, StoreError, UserFrozen
from fairque.metrics import Metrics, metrics_in
from fairque.models import ANY_USER, QueueStats, UserGroup, UserInfo
from fairque.redis import arguments
from fairque.redis.arguments import Values
from fairque.redis.assignment import assignments_of
from fairque.redis.blocking_call import call_blocking
from fairque.redis.delivery import Answer, Claim, Delivery, Heads, NewTask, Outcome, Put, Refusal, StoredTask
from fairque.redis.dividing import at_once, divided, in_order, of_those_there
from fairque.redis.frozen import FROZEN, frozen_in
from fairque.redis.keys import Keys, encode_user, glob
from fairque.redis.missing import noting_missing
from fairque.redis.places import ELSEWHERE, UserElsewhere, moved_in
from fairque.redis.replies import (
    SeenUsers,
    answer_in,
    claim_in,
    fields_in,
    heads_in,
    put_in,
    refusal,
    users_in,
    worker_info,
)
from fairque.redis.requester import BlockingRequester, pack
from fairque.redis.store_batches import BatchScripts, packed_callbacks
from fairque.redis.store_chunks import ChunkScripts
from fairque.redis.store_loans import LoanScripts
from fairque.redis.store_moves import MoveScripts
from fairque.redis.store_permissions import PermissionScripts
from fairque.redis.store_sights import SightScripts
from fairque.redis.store_tenants import TenantScripts
from fairque.redis.store_xcom import XComScripts
from fairque.settings import QueueSettings
from fairque.tasks.message import new_nonce

__all__ = ["ClaimOptions", "HealthFacts", "Renewed", "Store", "renew", "report"]

logger = logging.getLogger("fairque.store")
WORKER_TTL_MS = 60_000
NO_EVICTION = "noeviction"
_UNKNOWN_COMMAND = "unknown command"
_TOO_OLD = "fairque needs Redis 7.0 or Valkey 7.2, this server is older (it does not know FCALL_RO)"
_UNKNOWN = -2
"""Instead of a time to sleep: the script does not know an assignment."""
_TOTALS = ("critical", "normal", "started", "scheduled", "deferred", "finished", "failed", "canceled", "retried")


class HealthFacts(NamedTuple):
    """Dead letters, how many of them others wait for, ms of the first scheduled task and of the first schedule, users,
    as they are named in Redis, that became ready last, those that claims leave alone for a damaged key, and the
    server's memory.
    """

    letters: int
    blocking: int
    due_ms: int | None
    fires_ms: int | None
    recent: list[bytes]
    left_alone: list[bytes]
    memory: dict[str, str]


class Renewed(NamedTuple):
    """The deliveries that are no longer its own, with why, those that were canceled, those whose users have moved, with
    where they live, which were not renewed, and whether the scheduler in its process is to look at schedules, as nobody
    else does.
    """

    lost: list[tuple[Delivery, Refusal]]
    canceled: list[Delivery]
    moved: list[tuple[Delivery, UserElsewhere]]
    is_to_fire: bool = False


class ClaimOptions(TypedDict, total=False):
    """Of a claim, see `arguments.Claim`: `groups` (default: everyone), `wait` and `steal` (True), `holds`, `suspects`,
    `max_deliveries` (5), `number`, `repeats`, `latest`, `floor`, `up_to`, `revision`, `rests`, `rested`; `settings`
    are other ones than those of the queue.
    """

    groups: Sequence[UserGroup]
    wait: bool
    steal: bool
    holds: int
    suspects: int
    max_deliveries: int
    number: int
    repeats: bool
    latest: float | None
    floor: float
    up_to: float | None
    revision: int
    rests: bool
    rested: bool
    settings: QueueSettings


class Store(
    TenantScripts,
    LoanScripts,
    XComScripts,
    ChunkScripts,
    BatchScripts,
    SightScripts,
    MoveScripts,
    PermissionScripts,
):
    """A method for each script of a queue; see `ScriptCaller`."""

    async def check_server(self) -> None:
        """Raises `ConfigError` for a server that is too old, `NotPermitted`; warns when it may evict keys."""
        try:
            await self.check_opening()
        except StoreError as exc:
            if _UNKNOWN_COMMAND not in str(exc):
                raise
            raise ConfigError(_TOO_OLD) from None
        policy = (await self._memory()).get("maxmemory_policy", NO_EVICTION)
        if policy != NO_EVICTION:
            logger.warning("the server may evict tasks: set maxmemory-policy to %s, not %s", NO_EVICTION, policy)

    async def _memory(self) -> dict[str, str]:
        """Nothing, where INFO is not permitted or not known. Of several servers, of the one that is fullest."""
        if self.backend.is_partitioned:
            some = _one_of_each_server(self.parts)
            return max(await of_those_there(some, lambda part: part._memory()), key=_fullness, default={})
        try:
            memory: bytes = await self._insist(pack(("INFO", "memory")))
        except StoreError:
            return {}
        lines = memory.decode("utf-8", "replace").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def enqueue(
        self,
        tasks: Sequence[NewTask],
        patience: float | None = None,
    ) -> list[Put]:
        """True for each task that was created, False where one with its id lives; or what became of its condition.

        Raises `DependencyError` when one waits for what is not known, or for itself, `QueueFull`, `QuotaExceeded` and
        `TaskExists`; then nothing was written.
        """
        if not self.backend.is_plain and await self.is_divided():
            return await self._enqueue_apart(tasks, patience)
        values = Values()
        added = [_added(new, values) for new in tasks]
        it = self.settings
        answers: list[Any] = [b"linked"]
        if not any(new.is_linked for new in tasks):
            answers = await self.call(arguments.Enqueue(it.priority_step_ms, added), values, patience)
        if answers and answers[0] == b"linked":
            with_ends = _with_ends(tasks, values)
            linked = arguments.EnqueueLinked(it.priority_step_ms, it.dead_letter_ttl_ms, added, with_ends)
            answers = await self.call(linked, values, patience)
        if answers and isinstance(answers[0], bytes):
            raise refusal(answers)
        return [put_in(answer) for answer in answers]

    async def _enqueue_apart(self, tasks: Sequence[NewTask], patience: float | None) -> list[Put]:
        """Those of each partition together, all or nothing, in the order in which they were given."""

        async def put() -> list[Put]:
            shares = divided(tasks, lambda new: self.part_of(encode_user(new.user_id)))
            return await in_order(shares, lambda part, some: part.enqueue(some, patience))

        return await self.following(put, patience, is_of_many=True)

    async def confirm(self, nonces: Sequence[str], keep_ms: int) -> int:
        """What was put in with these receipts is gone where it came from. Returns ms since the epoch."""
        now_ms: int = await self.call(arguments.Confirm(nonces, keep_ms))
        return now_ms

    async def claim(self, worker: str, want: int, **how: Unpack[ClaimOptions]) -> Claim:
        claim = self._claim(worker, want, **how)
        return await self._claimed(await self.call(claim), claim, **how)

    async def settle(self, worker: str, outcomes: Sequence[Outcome]) -> list[Answer]:
        """Per outcome: True, why it was refused, or what went wrong."""
        values = Values()
        return self._answers(await self.call(report(self.settings, worker, outcomes, values), values), len(outcomes))

    async def turn(
        self, worker: str, outcomes: Sequence[Outcome], want: int, **how: Unpack[ClaimOptions]
    ) -> tuple[list[Answer], Claim | FairqueError]:
        """`settle` and `claim` in one call. What goes wrong with the claim keeps nothing from the report."""
        values, claim = Values(), self._claim(worker, want, **how)
        answers, claimed = await self.call(
            arguments.Turn(report(self.settings, worker, outcomes, values), claim), values
        )
        told = self._answers(answers, len(outcomes))
        if not isinstance(claimed, list):
            return told, self._failure(claimed)
        try:
            return told, await self._claimed(claimed, claim, **how)
        except FairqueError as exc:
            return told, exc

    def _claim(self, worker: str, want: int, **how: Unpack[ClaimOptions]) -> arguments.Claim:
        it = how.get("settings", self.settings)
        return arguments.Claim(
            worker,
            want,
            it.lease_ms,
            it.max_message_bytes,
            it.priority_step_ms,
            it.dead_letter_ttl_ms,
            how.get("wait", True),
            how.get("steal", True),
            it.fairness,
            _names_of(how.get("groups", ANY_USER)),
            how.get("holds", 0),
            how.get("suspects", 0),
            how.get("max_deliveries", 5),
            how.get("number", 0),
            how.get("repeats", False),
            (),
            how.get("latest"),
            how.get("floor", 0.0),
            how.get("up_to"),
            how.get("revision", 0),
            how.get("rests", False),
            how.get("rested", False),
        )

    async def _claimed(self, reply: list[Any], claim: arguments.Claim, **how: Unpack[ClaimOptions]) -> Claim:
        """With the lists of users that the script asked for, where it does not know an assignment."""
        if reply[1] == _UNKNOWN:
            lists = [assignment.users for assignment in assignments_of(how.get("groups", ANY_USER))]
            reply = await self.call(msgspec.structs.replace(claim, lists=lists))
        return claim_in(reply, claim.priority_step_ms)

    def answer_in(self, message: bytes) -> tuple[int, Claim]:
        """The number of a claim that rested, and what it is answered with."""
        number, reply = answer_in(message)
        return number, claim_in(reply, self.settings.priority_step_ms)

    def _answers(self, answers: list[int | bytes], outcomes: int) -> list[Answer]:
        for text in answers[outcomes:]:
            logger.warning("what follows from outcomes: %s", self._failure(text))
        return [_answer(of) if isinstance(of, int) else self._failure(of) for of in answers[:outcomes]]

    def _failure(self, text: Any) -> StoreError | UserFrozen:
        if text.startswith(ELSEWHERE.encode()):  # one of many in the call
            return moved_in(text.decode())
        if text.startswith(FROZEN.encode()):
            return frozen_in(text.decode())
        return StoreError(f"Redis at {self.backend.connector.safe_url}: {text.decode('utf-8', 'replace')}")

    async def receive(self, worker: str, delivery: Delivery) -> Literal[True] | Refusal:
        """Note that a suspect arrived, before it runs; or why the worker has it no longer."""
        of = delivery
        arrived = arguments.Receive(
            worker, of.lane.decode(), of.user.decode(), of.id, of.stream_id.decode(), of.attempt
        )
        return _answer(await self.call(arrived))

    async def cancel(self, user_id: str, task_id: str, reason: str) -> str | None:
        """``done``, ``canceling``, ``ended`` when it had ended before, or None when it is not known."""
        it, nonce = self.settings, new_nonce().hex()
        answer: bytes | None = await self.call(
            arguments.Cancel(encode_user(user_id), task_id, reason, it.dead_letter_ttl_ms, it.priority_step_ms, nonce)
        )
        return answer.decode() if answer is not None else None

    async def cancel_step(
        self,
        user_id: str,
        place: str,
        start: str,
        most: int,
        name: str,
        older_ms: int,
        before_ms: int,
        reason: str,
    ) -> tuple[str | None, int, int]:
        """Where the next step begins, None at the end, how many were canceled, and `before_ms` of the next step."""
        ttl_ms, step_ms = self.settings.dead_letter_ttl_ms, self.settings.priority_step_ms
        user, nonce = encode_user(user_id), new_nonce().hex()
        step = arguments.CancelAll(nonce, user, place, start, most, name, older_ms, before_ms, reason, ttl_ms, step_ms)
        following, canceled, before = await self.call(step)
        return following.decode() or None, canceled, before

    async def change(self, user_id: str, task_id: str, *, start: str = "", priority: int = 0) -> str | None:
        """``changed``, ``same``, ``started``, ``ended``, or None when it is not known."""
        step_ms, nonce = self.settings.priority_step_ms, new_nonce().hex()
        change = arguments.Change(encode_user(user_id), task_id, start, priority, step_ms, nonce)
        answer: bytes | None = await self.call(change)
        return answer.decode() if answer is not None else None

    async def records(self, user_id: str, task_ids: Sequence[str]) -> list[bytes | None]:
        """The result records of tasks of one user."""
        found: list[bytes | None] = await self.call(arguments.Records(encode_user(user_id), task_ids))
        return found

    async def progress(self, delivery: Delivery, fraction: float, message: str) -> None:
        of = delivery
        await self.call(
            arguments.Progress(of.user.decode(), of.id, of.stream_id.decode(), of.attempt, repr(fraction), message)
        )

    async def watch(self, user_id: str, task_id: str) -> bool:
        """Have the start of a task announced. False when it does not live."""
        return bool(await self.call(arguments.Watch(encode_user(user_id), task_id)))

    async def dead_letters(
        self, user_id: str | None, limit: int, after_ms: int, after: str, kind: str = ""
    ) -> list[list[bytes]]:
        """Per letter: user, id, ms, record, name. `kind`: of one kind of error, as `dead_kinds` names it."""
        user = encode_user(user_id) if user_id is not None else ""
        dead = arguments.Dead(user, limit, after_ms, after, self.settings.dead_letter_ttl_ms, kind)
        found: list[list[bytes]] = await self.call(dead)
        return found

    async def dead_kinds(self, user_id: str | None) -> tuple[int, int, list[tuple[str, int, int, int]]]:
        """Ms since the epoch, letters in all; per kind that is counted by itself: letters, ms of the first and last."""
        user = encode_user(user_id) if user_id is not None else ""
        now_ms, letters, *flat = await self.call(arguments.DeadKinds(user, self.settings.dead_letter_ttl_ms))
        rows = zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
        return now_ms, letters, [(kind.decode(), many, int(first), int(last)) for kind, many, first, last in rows]

    async def requeue(self, user_id: str, task_ids: Sequence[str]) -> list[bool]:
        step_ms = self.settings.priority_step_ms
        answers = await self.call(arguments.Requeue(new_nonce().hex(), encode_user(user_id), step_ms, task_ids))
        if answers and isinstance(answers[0], bytes):
            raise refusal(answers)
        return [bool(answer) for answer in answers]

    async def discard(self, user_id: str, task_ids: Sequence[str]) -> list[bool]:
        settings = self.settings
        ttl_ms, step_ms = settings.dead_letter_ttl_ms, settings.priority_step_ms
        answers = await self.call(arguments.Discard(new_nonce().hex(), encode_user(user_id), step_ms, ttl_ms, task_ids))
        return [bool(answer) for answer in answers]

    async def purge_step(self, user_id: str, most: int) -> list[int]:
        """Counts of what was erased, and 1 at the end when more is left."""
        counts: list[int] = await self.call(arguments.Purge(new_nonce().hex(), encode_user(user_id), most))
        return counts

    async def erase_results(self, user_id: str) -> int:
        """Erase what has ended of a user: results, what its tasks yielded, batches, keys of unique tasks that last on.

        Batches and keys of tasks that live, as they run on or came meanwhile, stay. Returns how many results.

        They are not indexed, which would cost every task: this looks at every key.
        """
        user, kinds = encode_user(user_id), ("result", "chunks", "unique", "batch")
        home = await self.home_of(user)
        if home is not self:
            return await home.erase_results(user_id)
        results, chunks, *lasting = (f"{self.keys.prefix}{kind}:{user}:".encode() for kind in kinds)
        erased = 0
        async for found in self._scan(b"SCAN", pattern=f"{glob(self.keys.prefix)}*:{glob(user)}:*"):
            erased += await self._unlink([key for key in found if key.startswith(results)])
            await self._unlink([key for key in found if key.startswith(chunks)])
            await self._unlink([key for key in found if key.startswith(tuple(lasting)) and await self._expires(key)])
        return erased

    async def _expires(self, key: bytes) -> bool:
        left_ms: int = await self._insist(pack((b"PTTL", key)))
        return left_ms >= 0

    async def erase_all(self) -> None:
        """Also what is said of the queue, and so that it has partitions."""
        if await self.is_divided(store=False):
            await at_once(part.erase_all() for part in self.parts)
            async with self._at_copy() as copy:
                await copy.erase_all()
        async for found in self._scan(b"SCAN", pattern=glob(self.keys.prefix) + "*"):
            await self._unlink(found)

    async def _unlink(self, keys: Sequence[bytes]) -> int:
        erased = 0
        for at in range(0, len(keys), 500):
            erased += await self._insist(pack((b"UNLINK", *keys[at : at + 500])))
        return erased

    async def heads(self, groups: Sequence[UserGroup] = ANY_USER) -> Heads:
        """Where this partition stands, for workers that serve these."""
        return heads_in(await self.call(arguments.Heads(_names_of(groups))))

    async def hand_on(self, worker: str, groups: Sequence[UserGroup]) -> None:
        """What the worker was told it has no time for."""
        await self.call(arguments.HandOn(worker, _names_of(groups)))

    async def leave(self, worker: str, groups: Sequence[UserGroup]) -> None:
        await self.call(arguments.Leave(worker, _names_of(groups)))

    async def info(self, user_id: str, task_id: str) -> StoredTask:
        reply = await self.call(arguments.Info(encode_user(user_id), task_id))
        fields, body, record, errors, score, dependents, due, needs, children, chunk = reply
        waiting = tuple(sorted(dependent.decode() for dependent in dependents))
        place, due_ms = int(score) if score else None, int(due) if due else None
        depends_on = tuple(sorted((need.decode(), state.decode()) for need, state in needs))
        born = tuple(sorted(child.decode() for child in children))
        chunks = int(chunk.partition(b"-")[2] or 0)
        return StoredTask(fields_in(fields), body, record, errors, place, waiting, due_ms, depends_on, born, chunks)

    async def standings(self, user_id: str, task_ids: Sequence[str]) -> tuple[list[tuple[str, bool]], list[str]]:
        """Per task its state, '' where nothing is known, and whether it waits for a dead letter; some of these."""
        *found, blockers = await self.call(arguments.Standings(encode_user(user_id), task_ids))
        return [(state.decode(), bool(blocked)) for state, blocked in found], [id_.decode() for id_ in blockers]

    async def peek(self, tasks: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes | None] | FairqueError]:
        """Per user and id, from the first one on: the result record, empty while there is none, and the state of a task
        that has not ended, None when it is not known; or what is wrong with it. Large results end it early.
        """
        peeked = [arguments.Peeked(encode_user(user_id), task_id) for user_id, task_id in tasks]
        seen = await self.call(arguments.Peek(peeked))
        return [self._failure(sight[0]) if len(sight) == 1 else tuple(sight) for sight in seen]

    async def stats(self) -> QueueStats:
        with noting_missing() as missing:
            fields, ready, known, workers, now_ms, metrics, paused = await self.call(arguments.Stats(WORKER_TTL_MS))
        state = fields_in(fields)
        totals = {name: int(state.get(name, 0)) for name in _TOTALS}
        return QueueStats(
            **totals,
            users_ready=ready,
            users_known=known,
            clock=float(state.get("clock", 0)),
            workers=tuple(worker_info(name.decode(), fields_in(entry)) for name, entry in workers),
            at=now_ms / 1000,
            metrics=metrics_in(metrics, now_ms),
            paused_tasks=tuple(sorted(record.decode()[1:] for record in paused)),
            missing=missing.numbers,
        )

    async def demand(self, most: int) -> list[Any]:
        """What demand.lua finds, of at most so many running tasks."""
        found: list[Any] = await self.call(arguments.Demand(most, WORKER_TTL_MS))
        return found

    async def users(self, offset: int, limit: int) -> list[UserInfo]:
        return (await self.seen_users(offset, limit)).users

    async def user(self, user_id: str) -> UserInfo:
        [found] = (await self._users(arguments.Users(0, 1, [encode_user(user_id)], strict=True))).users
        return found

    async def active_users(self, most: int) -> list[UserInfo]:
        """Users with something to serve, those with the lowest and the highest tags, then those with running tasks."""
        return await self.named_users(await self.active_names(most))

    async def named_users(self, names: Sequence[str]) -> list[UserInfo]:
        """By their names in Redis, in that order, without those that are damaged."""
        return (await self.seen_named_users(names)).users

    async def seen_users(self, offset: int, limit: int) -> SeenUsers:
        """As `users`, beside what the whole queue used."""
        return await self._users(arguments.Users(offset, limit, ()))

    async def seen_named_users(self, names: Sequence[str]) -> SeenUsers:
        """As `named_users`, beside what the whole queue used."""
        return await self._users(arguments.Users(0, 0, names)) if names else SeenUsers([], Metrics())

    async def _users(self, users: arguments.Users) -> SeenUsers:
        return users_in(await self.call(users), self.settings.priority_step_ms)

    async def tasks(self, user_id: str, place: str, most: int, after: str) -> list[list[Any]] | None:
        """A page of what is in one place, as tasks.lua gives it; None when `after` is not there."""
        found: list[list[Any]] | None = await self.call(arguments.Tasks(encode_user(user_id), place, most, after, ()))
        return found

    async def named_tasks(self, user_id: str, task_ids: Sequence[str]) -> list[list[Any]]:
        found: list[list[Any]] = await self.call(arguments.Tasks(encode_user(user_id), "", 0, "", task_ids))
        return found

    async def deferred_ids(self, user_id: str) -> AsyncIterator[str]:
        """Those that wait for others, in no order, in steps. Some may come twice."""
        user = encode_user(user_id)
        home = await self.home_of(user)
        async for found in home._scan(b"SSCAN", f"{home.keys.prefix}deferred:{user}"):
            for name in found:
                yield name.decode()

    async def ended_ids(self, user_id: str) -> AsyncIterator[str]:
        """Those that have a result, in no order. They are not indexed: this looks at every key, in steps."""
        user = encode_user(user_id)
        home = await self.home_of(user)
        prefix = f"{home.keys.prefix}result:{user}:"
        async for found in home._scan(b"SCAN", pattern=f"{glob(prefix)}*"):
            for key in found:
                yield key.decode().removeprefix(prefix)

    async def health(self, most: int) -> HealthFacts:
        """`most`: users that are named."""
        found, memory = await asyncio.gather(
            self.call(arguments.Health(self.settings.dead_letter_ttl_ms, most)), self._memory()
        )
        letters, blocking, due, fires, recent, alone = found
        due_ms, fires_ms = int(due) if due else None, int(fires) if fires else None
        return HealthFacts(letters, blocking, due_ms, fires_ms, recent, alone, memory)


def renew(
    requester: BlockingRequester,
    keys: Keys,
    worker: str,
    fields: dict[str, Any],
    deliveries: Sequence[Delivery],
    ended: list[arguments.EndedRuns] | None = None,
    ttl_ms: int = WORKER_TTL_MS,
    scheduler: str = "",
) -> Renewed:
    """Heartbeat and renewal, for the thread that does it. `scheduler`: the name of the one in its process, if any."""
    held = [
        arguments.HeldDelivery(of.lane.decode(), of.user.decode(), of.id, of.stream_id.decode(), of.attempt, of.cost)
        for of in deliveries
    ]
    renewal = arguments.Renew(worker, ttl_ms, fields, held, ended or [], scheduler)
    lost, canceled, fires = call_blocking(requester, keys, renewal)
    gone: list[tuple[Delivery, Refusal]] = []
    moved: list[tuple[Delivery, UserElsewhere]] = []
    for at, why in zip(lost[::2], lost[1::2], strict=True):
        if isinstance(why, bytes):
            moved.append((deliveries[at], moved_in(why.decode())))
        else:
            gone.append((deliveries[at], Refusal(why)))
    return Renewed(gone, [deliveries[position] for position in canceled], moved, bool(fires))


def _names_of(groups: Sequence[UserGroup]) -> list[str]:
    return [assignment.name for assignment in assignments_of(groups)]


def _answer(code: int) -> Literal[True] | Refusal:
    return True if code == 1 else Refusal(code)


def report(settings: QueueSettings, worker: str, outcomes: Sequence[Outcome], values: Values) -> arguments.Settle:
    """What tells how deliveries ended; its byte strings are added to `values`."""
    settled = [_settled(outcome, values) for outcome in outcomes]
    suspects = [
        arguments.SettledSuspect(at, of.alone_ms > 0)
        for at, outcome in enumerate(outcomes, 1)
        if (of := outcome.delivery).lost
    ]
    packed = values.put(arguments.encode(settled))
    return arguments.Settle(worker, settings.dead_letter_ttl_ms, settings.priority_step_ms, packed, suspects)


def _one_of_each_server(parts: Sequence[Store]) -> Iterable[Store]:
    return {part.backend.connector.address: part for part in parts}.values()


def _fullness(memory: dict[str, str]) -> tuple[bool, float]:
    """One that may evict tasks is worse than any that is full."""
    limit = int(memory.get("maxmemory", 0))
    used = int(memory.get("used_memory", 0)) / limit if limit else 0.0
    return memory.get("maxmemory_policy", NO_EVICTION) != NO_EVICTION, used


def _added(new: NewTask, values: Values) -> arguments.AddedTask:
    needs = msgspec.Raw(new.needs) if new.needs else None
    return arguments.AddedTask(
        encode_user(new.user_id), new.task_id, new.priority, new.when, values.put(new.body), needs, new.rules
    )


def _with_ends(tasks: Sequence[NewTask], values: Values) -> list[arguments.TaskWithEnd]:
    return [
        arguments.TaskWithEnd(
            at, packed_callbacks(new.callbacks, values), new.batch, new.adder, new.parent, new.with_parent
        )
        for at, new in enumerate(tasks, 1)
        if new.callbacks or new.batch or new.parent
    ]


def _settled(outcome: Outcome, values: Values) -> arguments.SettledDelivery:
    of = outcome.delivery
    return arguments.SettledDelivery(  # by position: this runs for every task
        of.lane.decode(),
        of.user.decode(),
        of.task_id.decode(),
        of.stream_id.decode(),
        of.attempt,
        outcome.kind,
        outcome.ttl_ms,
        outcome.delay_ms,
        values.put(outcome.record),
        values.put(outcome.error),
        values.put(outcome.pushed),
        of.cost,
        outcome.charge,
        outcome.run_ms,
        of.wait_ms,
    )
