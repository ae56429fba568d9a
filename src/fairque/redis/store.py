"""One method per script: arguments are flattened, replies become values, errors are our own."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fairque.errors import ConfigError
from fairque.metrics import metrics_in
from fairque.models import ANY_USER, QueueStats, UserGroup, UserInfo
from fairque.redis.connector import NoScript
from fairque.redis.delivery import Claim, Delivery, NewTask, Outcome, StoredTask
from fairque.redis.keys import Keys, encode_user
from fairque.redis.replies import deliveries_in, fields_in, refusal, users_in, worker_info
from fairque.redis.requester import BlockingRequester, pack
from fairque.redis.scripts import Script, load
from fairque.redis.store_tenants import TenantScripts
from fairque.redis.store_xcom import XComScripts
from fairque.settings import QueueSettings
from fairque.tasks.message import new_nonce

__all__ = ["Store", "renew"]

logger = logging.getLogger("fairque.store")
WORKER_TTL_MS = 60_000
NO_EVICTION = "noeviction"
MOST_ADVANCED = 10_000
_TOTALS = ("critical", "normal", "started", "scheduled", "deferred", "finished", "failed", "canceled", "retried")


class Store(TenantScripts, XComScripts):
    """A method for each script of a queue; see `ScriptCaller`."""

    async def check_server(self) -> None:
        """Raises `ConfigError` for a server that is too old; warns when it may evict keys."""
        found = await self._insist(pack(("COMMAND", "INFO", "FCALL")))
        if not found or not found[0]:
            raise ConfigError("fairque needs Redis 7.0 or Valkey 7.2, this server is older (it does not know FCALL)")
        policy = (await self._memory()).get("maxmemory_policy", NO_EVICTION)
        if policy != NO_EVICTION:
            logger.warning("the server may evict tasks: set maxmemory-policy to %s, not %s", NO_EVICTION, policy)

    async def _memory(self) -> dict[str, str]:
        memory: bytes = await self._insist(pack(("INFO", "memory")))
        lines = memory.decode("utf-8", "replace").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def enqueue(
        self,
        tasks: Sequence[NewTask],
        patience: float | None = None,
    ) -> list[bool]:
        """True for each task that was created, False where one with its id lives.

        Raises `DependencyError` when one waits for what is not known, or for itself, and `QueueFull`; then nothing was
        written.
        """
        is_linked = any(new.needs for new in tasks)
        answers, order = await self._enqueue(tasks, patience, is_linked)
        if answers and answers[0] == b"linked":
            answers, order = await self._enqueue(tasks, patience, True)
        if answers and isinstance(answers[0], bytes):
            raise refusal(answers)
        created: list[bool] = [False] * len(tasks)
        for position, answer in zip(order, answers, strict=True):
            created[position] = bool(answer)
        return created

    async def _enqueue(
        self,
        tasks: Sequence[NewTask],
        patience: float | None,
        is_linked: bool,
    ) -> tuple[list[Any], list[int]]:
        settings = self.settings
        args: list[Any] = [settings.priority_step_ms]
        if is_linked:
            args.append(settings.dead_letter_ttl_ms)
        order: list[int] = []
        for user, positions in _by_user(tasks).items():
            args += (encode_user(user), len(positions))
            order += positions
            for position in positions:
                args += tasks[position][1:] if is_linked else tasks[position][1:5]
        return await self._call("enqueue_linked" if is_linked else "enqueue", args, patience), order

    async def claim(
        self,
        worker: str,
        want: int,
        *,
        groups: Sequence[UserGroup] = ANY_USER,
        wait: bool = True,
        steal: bool = True,
        settings: QueueSettings | None = None,
    ) -> Claim:
        """`settings`: other ones than those of the queue."""
        it = settings or self.settings
        args: list[Any] = [worker, want, it.lease_ms, it.max_message_bytes, it.priority_step_ms, it.dead_letter_ttl_ms]
        args += (int(wait), int(steal), it.fairness)
        for group in groups:
            args.append(len(group))
            args += map(encode_user, group)
        reply = await self._call("claim", args)
        return Claim(deliveries_in(reply, it.priority_step_ms), reply[1] / 1000 if reply[1] >= 0 else None)

    async def settle(self, worker: str, outcomes: Sequence[Outcome]) -> list[bool]:
        """False for each outcome that was refused: another worker has the task by now."""
        settings = self.settings
        args: list[Any] = [worker, settings.dead_letter_ttl_ms, settings.priority_step_ms]
        for outcome in outcomes:
            of = outcome.delivery
            args += (of.lane, of.user, of.task_id, of.stream_id, of.attempt, outcome.kind)
            args += (outcome.ttl_ms, outcome.delay_ms, outcome.record, outcome.error, outcome.pushed)
            wait_ms = of.wait_ms
            args += (of.cost, outcome.charge, outcome.run_ms, "" if wait_ms is None else wait_ms)
        return [bool(answer) for answer in await self._call("settle", args)]

    async def cancel(self, user_id: str, task_id: str, reason: str) -> str | None:
        """``done``, ``canceling``, ``ended`` when it had ended before, or None when it is not known."""
        settings = self.settings
        kept = (settings.dead_letter_ttl_ms, settings.priority_step_ms)
        args = [encode_user(user_id), task_id, reason, *kept, new_nonce().hex()]
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

    async def dead_letters(self, user_id: str | None, limit: int, after_ms: int, after: str) -> list[list[bytes]]:
        """Per letter: user, id, ms, record, body."""
        user = encode_user(user_id) if user_id is not None else ""
        args = [user, limit, after_ms, after, self.settings.dead_letter_ttl_ms]
        found: list[list[bytes]] = await self._call("dead", args)
        return found

    async def requeue(self, user_id: str, task_ids: Sequence[str]) -> list[bool]:
        args = [new_nonce().hex(), encode_user(user_id), self.settings.priority_step_ms, *task_ids]
        answers = await self._call("requeue", args)
        return [bool(answer) for answer in answers]

    async def discard(self, user_id: str, task_ids: Sequence[str]) -> list[bool]:
        return [
            bool(answer) for answer in await self._call("discard", [new_nonce().hex(), encode_user(user_id), *task_ids])
        ]

    async def purge_step(self, user_id: str, most: int) -> list[int]:
        """Counts of what was erased, and 1 at the end when more is left."""
        counts: list[int] = await self._call("purge", [encode_user(user_id), most])
        return counts

    async def erase_results(self, user_id: str) -> int:
        """Erase the results of a user. They are not indexed, which would cost every task: this looks at every key."""
        return await self._erase(f"{_glob(self.keys.prefix)}result:{_glob(encode_user(user_id))}:*")

    async def erase(self) -> int:
        """Erase the queue, looking at every key. For tests: nobody may be using it."""
        return await self._erase(f"{_glob(self.keys.prefix)}*")

    async def _erase(self, pattern: str) -> int:
        erased = 0
        async for found in self._scan(b"SCAN", pattern=pattern):
            for at in range(0, len(found), 500):
                erased += await self._insist(pack((b"UNLINK", *found[at : at + 500])))
        return erased

    async def _scan(self, *command: bytes | str, pattern: str = "*") -> AsyncIterator[list[bytes]]:
        cursor = b"0"
        while True:
            cursor, found = await self._insist(pack((*command, cursor, b"MATCH", pattern, b"COUNT", 1000)))
            yield found
            if cursor == b"0":
                return

    async def waiting(
        self, user_id: str, place: str, offset: int, most: int
    ) -> tuple[int, list[tuple[str, bytes, float]]]:
        """The server's ms, and a page of what waits in one place: id, body, empty when it is gone, and score."""
        now, *found = await self._call("waiting", [encode_user(user_id), place, offset, most])
        each = iter(found)
        return now, [(name.decode(), body, float(score)) for name, body, score in zip(each, each, each, strict=True)]

    async def advance(self, ms: int, nonce: str) -> tuple[int, int] | None:
        """Move what is scheduled. Returns how many tasks are due, and the ms of all calls; None: too many to move."""
        answer = await self._call("advance", [ms, nonce, MOST_ADVANCED])
        return (answer[0], answer[1]) if answer else None

    async def leave(self, worker: str, groups: Sequence[UserGroup]) -> None:
        await self._call("leave", [worker, *(encode_user(user) for group in groups for user in group)])

    async def info(self, user_id: str, task_id: str) -> StoredTask:
        reply = await self._call("info", [encode_user(user_id), task_id])
        fields, body, record, errors, score, dependents, due = reply
        waiting = tuple(sorted(dependent.decode() for dependent in dependents))
        place = int(score) if score else None
        return StoredTask(fields_in(fields), body, record, errors, place, waiting, int(due) if due else None)

    async def peek(self, user_id: str, task_id: str) -> tuple[bytes, bytes | None]:
        """The result record, empty while there is none, and the state of a task that has not ended; None: unknown."""
        record, state = await self._call("peek", [encode_user(user_id), task_id])
        return record, state

    async def stats(self) -> QueueStats:
        fields, ready, known, workers, now_ms, metrics = await self._call("stats", [WORKER_TTL_MS])
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
        )

    async def users(self, offset: int, limit: int) -> list[UserInfo]:
        return users_in(await self._call("users", [offset, limit]), self.settings.priority_step_ms)

    async def user(self, user_id: str) -> UserInfo:
        [found] = users_in(await self._call("users", [0, 1, encode_user(user_id)]), self.settings.priority_step_ms)
        return found

    async def active_users(self, most: int) -> list[UserInfo]:
        """Users with something to serve, those with the lowest and the highest tags, then those with running tasks."""
        names = await self._call("active", [most])
        if not names:
            return []
        return users_in(await self._call("users", [0, 0, *names]), self.settings.priority_step_ms)

    async def tasks(self, user_id: str, place: str, most: int, after: str) -> list[list[Any]] | None:
        """A page of what is in one place, as tasks.lua gives it; None when `after` is not there."""
        found: list[list[Any]] | None = await self._call("tasks", [encode_user(user_id), place, most, after])
        return found

    async def named_tasks(self, user_id: str, task_ids: Sequence[str]) -> list[list[Any]]:
        found: list[list[Any]] = await self._call("tasks", [encode_user(user_id), "", *task_ids])
        return found

    async def deferred_ids(self, user_id: str) -> AsyncIterator[str]:
        """Those that wait for others, in no order, in steps. Some may come twice."""
        key = f"{self.keys.prefix}deferred:{encode_user(user_id)}"
        async for found in self._scan(b"SSCAN", key):
            for name in found:
                yield name.decode()

    async def ended_ids(self, user_id: str) -> AsyncIterator[str]:
        """Those that have a result, in no order. They are not indexed: this looks at every key, in steps."""
        prefix = f"{self.keys.prefix}result:{encode_user(user_id)}:"
        async for found in self._scan(b"SCAN", pattern=f"{_glob(prefix)}*"):
            for key in found:
                yield key.decode().removeprefix(prefix)

    async def health(self) -> tuple[int, int | None, int | None, dict[str, str]]:
        """Dead letters, ms of the first scheduled task and of the first schedule, and the server's memory."""
        letters, due, fires = await self._call("health", [self.settings.dead_letter_ttl_ms])
        return letters, int(due) if due else None, int(fires) if fires else None, await self._memory()


def renew(
    requester: BlockingRequester, keys: Keys, worker: str, fields: dict[str, Any], deliveries: Sequence[Delivery]
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
        lost, canceled = requester.request(command)
    except NoScript:
        requester.request(pack((b"SCRIPT", b"LOAD", script.source)))
        lost, canceled = requester.request(command)
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
