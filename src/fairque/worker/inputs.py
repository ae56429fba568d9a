"""`Inputs`: what a task is given by others before it runs: outputs, results of dependencies, XCom values."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import msgspec

from fairque.backoff import Backoff
from fairque.errors import BadArguments, QueueUnavailable
from fairque.models import TaskState
from fairque.queue.xcom import XCom
from fairque.redis.delivery import Delivery
from fairque.redis.store import Store
from fairque.tasks.function import TaskFunction
from fairque.tasks.message import NIL, Message, Overrides, Record
from fairque.tasks.sealed import open_record
from fairque.tasks.signature import resolve
from fairque.tasks.xcom import xcom_of
from fairque.worker.task_log import log_about

__all__ = ["Inputs"]

T = TypeVar("T")
_of_a_run = re.compile(r"[0-9a-f]{16}\.(.+)", re.DOTALL)


class Inputs:
    """Fetches them over a connection of its own.

    Args:
        store: Where results and values are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def arguments(self, delivery: Delivery, message: Message) -> Message:
        """The message with the outputs of other tasks in place. Raises `BadArguments` when one is not kept any more."""
        overrides = message.overrides or Overrides()
        records = await self._records(delivery, overrides.inputs)
        values = [
            self._value(delivery.user_id, task_id, record)
            for task_id, record in zip(overrides.inputs, records, strict=True)
        ]
        args, kwargs = resolve(message.args, message.kwargs, values)
        return Message(message.heading, msgspec.Raw(args), msgspec.Raw(kwargs) if kwargs else NIL, message.overrides)

    async def results(self, delivery: Delivery, overrides: Overrides) -> dict[str, Any]:
        """The results of finished dependencies by task name; those of one name, as a list.

        Raises `BadArguments` when one is gone, for a task that runs only if all have finished.
        """
        found: dict[str, list[Any]] = {}
        task_ids = overrides.depends_on
        for task_id, record in zip(task_ids, await self._records(delivery, task_ids), strict=True):
            if not record and not overrides.runs_anyway:
                raise BadArguments(f"the result of task {task_id!r} is taken by name, and it is gone")
            state, ended = self._opened(delivery.user_id, task_id, record) if record else (None, None)
            if ended is not None and state is TaskState.FINISHED and ended.kept:
                found.setdefault(short_name(task_id, ended.name), []).append(msgspec.msgpack.decode(ended.value))
        return {name: values[0] if len(values) == 1 else values for name, values in found.items()}

    async def pulled(self, delivery: Delivery, function: TaskFunction[Any, Any]) -> dict[str, Any]:
        """XCom values by parameter. Raises `BadArguments` for one that is missing and has no default."""
        options = xcom_of(function)
        xcom = self.xcom(delivery.user_id, options.namespace)
        found = await _insist(delivery, partial(xcom.pull_many, list(options.pull_keys.values())))
        values = {}
        for parameter, key in options.pull_keys.items():
            if key in found:
                values[parameter] = found[key]
            elif parameter in options.pull_defaults:
                values[parameter] = options.pull_defaults[parameter]
            else:
                raise BadArguments(
                    f"task {function.name!r} pulls XCom {key!r} from {options.namespace!r}, where it is not"
                )
        return values

    @property
    def max_message_bytes(self) -> int:
        return self._store.settings.max_message_bytes

    def xcom(self, user_id: str, namespace: str) -> XCom:
        return XCom(self._store, user_id, namespace, self.max_message_bytes)

    def _opened(self, user_id: str, task_id: str, record: bytes) -> tuple[TaskState, Record]:
        return open_record(self._store.sealer, user_id, task_id, record)

    def _value(self, user_id: str, task_id: str, record: bytes | None) -> bytes:
        if not record:
            raise BadArguments(f"the output of task {task_id!r} is an argument, and its result is not kept any more")
        state, ended = self._opened(user_id, task_id, record)
        if state is not TaskState.FINISHED or not ended.kept:
            raise BadArguments(f"the output of task {task_id!r} is an argument, and it has none: {state.value}")
        return bytes(ended.value)

    async def _records(self, delivery: Delivery, task_ids: list[str]) -> list[bytes | None]:
        return await _insist(delivery, partial(self._store.records, delivery.user_id, task_ids))


async def _insist(delivery: Delivery, ask: Callable[[], Awaitable[T]]) -> T:
    """An outage is waited out: it is not the task's fault. The task's timeout goes on."""
    backoff = Backoff()
    while True:
        try:
            return await ask()
        except QueueUnavailable as exc:
            log_about(logging.WARNING, delivery, "needs what others give it, which cannot be fetched: %s", exc)
            await anyio.sleep(backoff.next())


def short_name(task_id: str, name: str) -> str:
    """How those who use its result call a dependency: the readable part of its id in a run, else its function."""
    static = _of_a_run.fullmatch(task_id)
    return static[1] if static and static[1].isidentifier() else name.rpartition(".")[2]
