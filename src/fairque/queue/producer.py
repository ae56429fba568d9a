"""`Producer`: makes tasks into messages, and has them sent."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec

from fairque.errors import InvalidInput
from fairque.everybody import check_user
from fairque.models import Priority
from fairque.queue.callbacks import callbacks_of
from fairque.queue.sender import BATCH, Sender
from fairque.redis.arguments import Rules
from fairque.redis.delivery import Needs, NewTask, Put
from fairque.redis.keys import encode_user
from fairque.redis.store import Store
from fairque.tasks.conditions import condition_of
from fairque.tasks.limit_keys import StandIn
from fairque.tasks.message import Message, Overrides, encode_body, new_nonce
from fairque.tasks.options import BatchRef, expiry_of, start_of
from fairque.tasks.sealed import seal_task
from fairque.tasks.task import Task

__all__ = ["BATCH", "Producer"]

_needs_encoder = msgspec.msgpack.Encoder()


class Producer:
    """Sends new tasks; see `Sender`.

    Args:
        store: The connection of the queue's own calls.
        bulk: Another one, for what is large.
        timeout: Seconds within which a task is sent, or its caller told that it was not.
    """

    def __init__(self, store: Store, bulk: Store, timeout: float) -> None:
        self._store = store
        self._bulk = bulk
        self._timeout = timeout
        self._sender = Sender(store, bulk, timeout)
        self._senders: dict[int, Sender] = {}

    def make(
        self,
        task: Task[Any],
        user_id: str | None,
        nonce: bytes,
        *,
        task_id: str | None = None,
        depends_on: Sequence[str] = (),
        inputs: Sequence[str] = (),
        parent: str = "",
    ) -> NewTask:
        """Everything that can be checked is checked here, before anything is sent."""
        options = task.task_options
        user = user_of(task, user_id)
        priority = options.priority or Priority.NORMAL
        cost = options.cost if options.cost is not None else 1.0
        name = task_id or options.task_id or os.urandom(10).hex()
        sealer, limit = self._store.sealer, self._store.settings.max_message_bytes
        stand_in = sealer.stand_in(user) if sealer is not None else None
        message, rules = task.message(depends_on, inputs, parent, stand_in), _rules_of(task, stand_in)
        if sealer is not None and rules is not None and rules.kind == "debounce":
            message = _as_debounced(message, rules)
        body = encode_body(message, nonce, cost, priority, limit)
        if sealer is not None:
            body = seal_task(sealer, user, name, body, limit)
        needs = b""
        if depends_on:
            needs = _needs_encoder.encode(
                Needs(options.on_dependency_failure or "wait", bool(options.allow_unknown), list(depends_on))
            )
        callbacks = callbacks_of(options.callbacks(), user, name, nonce, limit, sealer)
        batch, adder = _batch_of(options.batch, user)
        start = start_of(options)
        if not (start or depends_on or rules) and task.signature is not None:
            start = task.signature.collect
        return NewTask(user, name, int(priority), start, body, needs, rules, callbacks, batch, adder)

    def submit(self, new: Sequence[NewTask]) -> Coroutine[Any, Any, list[Put]]:
        """Send what one user puts in together; see `Sender.submit`."""
        sender = self._sender if self._store.backend.is_plain else self._sender_of(new[0].user_id)
        return sender.submit(new)

    def send_all(self, tasks: Sequence[NewTask]) -> Coroutine[Any, Any, list[Put]]:
        """In as many round trips as it takes."""
        return self._sender.send_all(tasks)

    async def drain(self) -> None:
        """Wait for what is being sent."""
        for sender in (self._sender, *self._senders.values()):
            await sender.drain()

    def _sender_of(self, user_id: str) -> Sender:
        """That of a partition. Until it is known that there are any, what is sent is divided where it is sent."""
        backend = self._store.backend
        if not backend.is_partitioned:
            return self._sender
        at = backend.places.of(encode_user(user_id))
        if at not in self._senders:
            self._senders[at] = Sender(self._store, self._bulk, self._timeout)
        return self._senders[at]


def _rules_of(task: Task[Any], stand_in: StandIn | None) -> Rules | None:
    options = task.task_options
    conflict, rule = options.on_conflict or "keep", options.condition
    if options.expires is None and conflict == "keep" and rule is None:
        return None
    expires = expiry_of(options)
    if conflict == "keep" and rule is None:
        return Rules(expires)
    nonce = new_nonce().hex()
    if rule is None:
        return Rules(expires, nonce, conflict)
    return Rules(
        expires, nonce, conflict, *condition_of(rule, task.name, task.signature, task.args, task.kwargs, stand_in)
    )


def _as_debounced(message: Message, rules: Rules) -> Message:
    """It may be put in under the id of an earlier call, which is not known here."""
    overrides = msgspec.structs.replace(message.overrides or Overrides(), debounced=rules.pointer)
    return msgspec.structs.replace(message, overrides=overrides)


def _batch_of(batch: BatchRef | None, user_id: str) -> tuple[str, str]:
    if batch is None:
        return "", ""
    if batch.user_id not in (None, user_id):
        raise InvalidInput(f"batch {batch.batch_id!r} belongs to user {batch.user_id!r}, not to {user_id!r}")
    return batch.batch_id, batch.adder


def user_of(task: Task[Any], user_id: str | None) -> str:
    user = user_id if user_id is not None else task.task_options.user_id
    if user is None:
        raise InvalidInput(f"task {task.name!r} has no user_id: give one to enqueue(), .options() or @task")
    return check_user("user_id", user)
