"""One method per script: arguments are flattened, replies become values, errors are our own."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Any

from fairque.connection import BlockingWire, Connector, NoScript, Wire, pack
from fairque.delivery import Claim, Delivery, Known, NewTask, Outcome
from fairque.errors import ConfigError, QueueUnavailable, StoreError
from fairque.keys import Keys, encode_user
from fairque.models import QueueStats, UserInfo
from fairque.replies import deliveries_in, fields_in, refusal, user_info, worker_info
from fairque.scripts import Script, load

__all__ = ["Store", "UserGroup", "renew"]

logger = logging.getLogger("fairque.store")
UserGroup = Sequence[str]  # users served with equal right; empty: everyone
EVERYONE: tuple[UserGroup, ...] = ((),)
WORKER_TTL_MS = 60_000
WEEK_MS = 604_800_000
STEP_MS = 300_000
XCOM_PAGE = 1000


_TOTALS = ("critical", "normal", "started", "scheduled", "deferred", "finished", "failed", "canceled", "retried")


class Store:
    """The scripts of one queue over one connection.

    Every script is idempotent by the ids in its arguments, so each call may be repeated after a cut reply.

    Args:
        connector: Where the server is.
        keys: The names of the queue.
        patience: Seconds during which a call is repeated when Redis is not available; 0: tried once.
    """

    def __init__(self, connector: Connector, keys: Keys, *, patience: float = 0.0) -> None:
        self.keys = keys
        self.patience = patience
        self._wire: Wire = connector.wire()

    async def close(self) -> None:
        await self._wire.close()

    async def check_server(self) -> None:
        """Raises `ConfigError` for a server that is too old; warns when it may evict keys."""
        found = await self._insist(pack(("COMMAND", "INFO", "FCALL")))
        if not found or not found[0]:
            raise ConfigError("fairque needs Redis 7.0 or Valkey 7.2, this server is older (it does not know FCALL)")
        memory: bytes = await self._insist(pack(("INFO", "memory")))
        for line in memory.split(b"\r\n"):
            if line.startswith(b"maxmemory_policy:") and line != b"maxmemory_policy:noeviction":
                logger.warning("the server may evict tasks: set maxmemory-policy to noeviction, not %s", line.decode())

    async def enqueue(
        self,
        tasks: Sequence[NewTask],
        priority_step_ms: int,
        canceled_ttl_ms: int = WEEK_MS,
        patience: float | None = None,
    ) -> list[bool]:
        """True for each task that was created, False where one with its id lives.

        Raises `DependencyError` when one waits for what is not known, or for itself; then nothing was written.
        """
        is_linked = any(new.needs for new in tasks)
        args: list[Any] = [priority_step_ms, canceled_ttl_ms] if is_linked else [priority_step_ms]
        order: list[int] = []
        for user, positions in _by_user(tasks).items():
            args += (encode_user(user), len(positions))
            order += positions
            for position in positions:
                args += tasks[position][1:] if is_linked else tasks[position][1:5]
        created: list[bool] = [False] * len(tasks)
        answers = await self._call("enqueue_linked" if is_linked else "enqueue", args, patience)
        if answers and isinstance(answers[0], bytes):
            raise refusal(*(answer.decode("utf-8", "replace") for answer in answers))
        for position, answer in zip(order, answers, strict=True):
            created[position] = bool(answer)
        return created

    async def claim(
        self,
        worker: str,
        want: int,
        *,
        lease_ms: int,
        max_body: int,
        priority_step_ms: int,
        canceled_ttl_ms: int = WEEK_MS,
        groups: Sequence[UserGroup] = EVERYONE,
        wait: bool = True,
        steal: bool = True,
    ) -> Claim:
        args: list[Any] = [worker, want, lease_ms, max_body, priority_step_ms, canceled_ttl_ms, int(wait), int(steal)]
        for group in groups:
            args.append(len(group))
            args += map(encode_user, group)
        reply = await self._call("claim", args)
        return Claim(deliveries_in(reply, priority_step_ms), reply[1] / 1000 if reply[1] >= 0 else None)

    async def settle(
        self, worker: str, outcomes: Sequence[Outcome], dead_letter_ttl_ms: int, priority_step_ms: int = STEP_MS
    ) -> list[bool]:
        """False for each outcome that was refused: another worker has the task by now."""
        args: list[Any] = [worker, dead_letter_ttl_ms, priority_step_ms]
        for outcome in outcomes:
            of = outcome.delivery
            args += (of.lane, of.user, of.task_id, of.stream_id, of.attempt, outcome.kind)
            args += (outcome.ttl_ms, outcome.delay_ms, outcome.record, outcome.error, outcome.pushed)
        return [bool(answer) for answer in await self._call("settle", args)]

    async def cancel(self, user_id: str, task_id: str, reason: str, ttl_ms: int, priority_step_ms: int) -> str | None:
        """``done``, ``canceling``, ``ended`` when it had ended before, or None when it is not known."""
        args = [encode_user(user_id), task_id, reason, ttl_ms, priority_step_ms]
        answer: bytes | None = await self._call("cancel", args)
        return answer.decode() if answer is not None else None

    async def records(self, user_id: str, task_ids: Sequence[str]) -> list[bytes | None]:
        """The result records of tasks of one user."""
        found: list[bytes | None] = await self._call("records", [encode_user(user_id), *task_ids])
        return found

    async def progress(self, delivery: Delivery, fraction: float, message: str) -> None:
        of = delivery
        await self._call("progress", [of.user, of.task_id, of.stream_id, of.attempt, repr(fraction), message])

    async def watch(self, user_id: str, task_id: str) -> bool:
        """Have the start of a task announced. False when it does not live."""
        return bool(await self._call("watch", [encode_user(user_id), task_id]))

    async def dead_letters(
        self, user_id: str | None, limit: int, after_ms: int, after: str, ttl_ms: int
    ) -> list[list[bytes]]:
        """Per letter: user, id, ms, record, body."""
        user = encode_user(user_id) if user_id is not None else ""
        found: list[list[bytes]] = await self._call("dead", [user, limit, after_ms, after, ttl_ms])
        return found

    async def requeue(self, user_id: str, task_ids: Sequence[str], priority_step_ms: int) -> list[bool]:
        answers = await self._call("requeue", [encode_user(user_id), priority_step_ms, *task_ids])
        return [bool(answer) for answer in answers]

    async def discard(self, user_id: str, task_ids: Sequence[str]) -> list[bool]:
        return [bool(answer) for answer in await self._call("discard", [encode_user(user_id), *task_ids])]

    async def purge_step(self, user_id: str, most: int) -> list[int]:
        """Counts of what was erased, and 1 at the end when more is left."""
        counts: list[int] = await self._call("purge", [encode_user(user_id), most])
        return counts

    async def erase_results(self, user_id: str) -> int:
        """Erase the results of a user. They are not indexed, which would cost every task: this looks at every key."""
        pattern = f"{_glob(self.keys.prefix)}result:{_glob(encode_user(user_id))}:*"
        erased, cursor = 0, b"0"
        while True:
            cursor, found = await self._insist(pack((b"SCAN", cursor, b"MATCH", pattern, b"COUNT", 1000)))
            for at in range(0, len(found), 500):
                erased += await self._insist(pack((b"UNLINK", *found[at : at + 500])))
            if cursor == b"0":
                return erased

    async def leave(self, worker: str, groups: Sequence[UserGroup]) -> None:
        await self._call("leave", [worker, *(encode_user(user) for group in groups for user in group)])

    async def set_policy(self, user_id: str, fields: dict[str, float]) -> dict[str, str]:
        """An empty dict clears the policy."""
        args: list[Any] = [encode_user(user_id)]
        for field, value in fields.items():
            args += (field, repr(value))
        return fields_in(await self._call("policy", args))

    async def info(self, user_id: str, task_id: str) -> Known:
        fields, body, record, errors, score, dependents = await self._call("info", [encode_user(user_id), task_id])
        waiting = tuple(sorted(dependent.decode() for dependent in dependents))
        return Known(fields_in(fields), body, record, errors, int(score) if score else None, waiting)

    async def peek(self, user_id: str, task_id: str) -> tuple[bytes, bytes | None]:
        """The result record, empty while there is none, and the state of a task that has not ended; None: unknown."""
        record, state = await self._call("peek", [encode_user(user_id), task_id])
        return record, state

    async def stats(self) -> QueueStats:
        fields, ready, known, workers = await self._call("stats", [WORKER_TTL_MS])
        state = fields_in(fields)
        totals = {name: int(state.get(name, 0)) for name in _TOTALS}
        return QueueStats(
            **totals,
            users_ready=ready,
            users_known=known,
            clock=float(state.get("clock", 0)),
            workers=tuple(worker_info(name.decode(), fields_in(entry)) for name, entry in workers),
        )

    async def users(self, offset: int, limit: int) -> list[UserInfo]:
        return [user_info(*reply) for reply in await self._call("users", [offset, limit])]

    async def user(self, user_id: str) -> UserInfo:
        [reply] = await self._call("users", [0, 1, encode_user(user_id)])
        return user_info(*reply)

    async def xcom_push(self, user_id: str, namespace: str, key: str, value: bytes, ttl_ms: int) -> None:
        await self._call("xcom_push", [encode_user(user_id), encode_user(namespace), key, value, ttl_ms])

    async def xcom_pull(self, user_id: str, namespaces: Sequence[str], keys: Sequence[str]) -> list[bytes | None]:
        """For each key its value from the first namespace that has it."""
        spaces = [encode_user(namespace) for namespace in namespaces]
        found: list[bytes | None] = await self._call(
            "xcom", ["pull", encode_user(user_id), len(spaces), *spaces, *keys]
        )
        return found

    async def xcom_keys(self, user_id: str, namespace: str) -> list[str]:
        """The keys that have a value, sorted; read in pages, so that nobody waits for a user who has many."""
        names: set[bytes] = set()
        at, skip = b"0", 0
        while True:
            args = ["keys", encode_user(user_id), encode_user(namespace), at, skip, XCOM_PAGE]
            page: list[bytes] = await self._call("xcom", args)
            names.update(page[::2])
            if len(page) < 2 * XCOM_PAGE:
                return sorted(name.decode() for name in names)
            skip = page[1::2].count(page[-1]) + (skip if page[1] == page[-1] == at else 0)
            at = page[-1]

    async def xcom_delete(self, user_id: str, namespace: str, key: str) -> None:
        await self._call("xcom", ["delete", encode_user(user_id), encode_user(namespace), key])

    async def xcom_clear(self, user_id: str, namespace: str) -> None:
        await self._call("xcom", ["clear", encode_user(user_id), encode_user(namespace)])

    async def _call(self, name: str, args: list[Any], patience: float | None = None) -> Any:
        script = load(name)
        command = pack((b"EVALSHA", script.sha, b"1", self.keys.state, *args))
        try:
            return await self._insist(command, patience)
        except NoScript:
            await self._insist(pack((b"SCRIPT", b"LOAD", script.source)), patience)
            try:
                return await self._insist(command, patience)
            except NoScript:
                raise StoreError(f"the server forgot script {name!r} right after it was loaded") from None

    async def _insist(self, command: bytes, patience: float | None = None) -> Any:
        """Repeat until it is answered, for as long as the store's own patience lasts if no other is given."""
        began = time.monotonic()
        try:
            return await self._wire.request(command, patience)
        except QueueUnavailable as exc:
            left = (self.patience if patience is None else patience) - (time.monotonic() - began)
            if left <= 0:
                raise
            return await self._repeat(command, left, exc)

    async def _repeat(self, command: bytes, seconds: float, error: QueueUnavailable) -> Any:
        delay = 0.02
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await asyncio.sleep(delay * (0.5 + random.random()))
                    delay = min(1.0, delay * 2)
                    try:
                        return await self._wire.request(command)
                    except QueueUnavailable as exc:
                        error = exc
        except TimeoutError:
            raise error from None


def renew(
    wire: BlockingWire, keys: Keys, worker: str, fields: dict[str, Any], deliveries: Sequence[Delivery]
) -> tuple[list[Delivery], list[Delivery]]:
    """Heartbeat and renewal, for the thread that does it.

    Returns the deliveries that belong to others by now, and those that were canceled.
    """
    args: list[Any] = [worker, WORKER_TTL_MS, len(fields)]
    for field, value in fields.items():
        args += (field, value)
    for of in deliveries:
        args += (of.lane, of.user, of.task_id, of.stream_id, of.attempt)
    script: Script = load("renew")
    command = pack((b"EVALSHA", script.sha, b"1", keys.state, *args))
    try:
        lost, canceled = wire.request(command)
    except NoScript:
        wire.request(pack((b"SCRIPT", b"LOAD", script.source)))
        lost, canceled = wire.request(command)
    return [deliveries[position] for position in lost], [deliveries[position] for position in canceled]


def _glob(text: str) -> str:
    """Literally, in a pattern."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)


def _by_user(tasks: Sequence[NewTask]) -> dict[str, list[int]]:
    positions: dict[str, list[int]] = {}
    for position, new in enumerate(tasks):
        of_user = positions.get(new.user_id)
        if of_user is None:
            positions[new.user_id] = [position]
        else:
            of_user.append(position)
    return positions
