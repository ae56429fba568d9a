"""What a producer that did not know the code left unsaid of a task, filled in by a worker that knows it."""

from __future__ import annotations

from typing import Any

import msgspec

from fairque.codec.codec import Sealer
from fairque.errors import BadArguments, InvalidInput
from fairque.models import Priority
from fairque.redis.delivery import Delivery
from fairque.tasks.function import TaskFunction
from fairque.tasks.message import NIL, Message, Overrides, encode_body, head_of, joined_follow_up, parted_follow_up
from fairque.tasks.sealed import seal_task
from fairque.tasks.task import Task

__all__ = ["Restated", "restate"]


class Restated(Exception):
    """A task is to be put back with this body, as it costs something else than was thought, or waits for limits."""

    def __init__(self, body: bytes) -> None:
        super().__init__("its code says more of it than its producer did")
        self.body = body


def restate(
    delivery: Delivery, message: Message, function: TaskFunction[Any, Any], limit: int, sealer: Sealer | None
) -> None:
    """Raises `Restated` where the code says something else, and `BadArguments` where it cannot say it of these."""
    said = message.overrides
    if said is None or not said.unsaid:
        return
    body, stand_in = delivery.body, sealer.stand_in(delivery.user_id) if sealer is not None else None
    nonce, cost, priority = head_of(body)
    try:
        made = _made(message, function)
        options = made.task_options
        if "cost" in said.unsaid:
            cost = options.cost if options.cost is not None else 1.0
        if "priority" in said.unsaid:
            priority = int(options.priority or Priority.NORMAL)
        heading = made.message(stand_in=stand_in).heading if "limits" in said.unsaid else message.heading
        if (cost, priority) == head_of(body)[1:] and heading == message.heading:
            return
        left = msgspec.structs.replace(said, unsaid=[])
        full = Message(heading, message.args, message.kwargs, left if left != Overrides() else None)
        _, added = parted_follow_up(body)
        new_body = joined_follow_up(encode_body(full, nonce, cost, priority, limit - len(added)), added)
        new_body = seal_task(sealer, delivery.user_id, delivery.id, new_body, limit)
    except BadArguments:
        raise
    except InvalidInput as exc:
        raise BadArguments(str(exc)) from None
    raise Restated(new_body)


def _made(message: Message, function: TaskFunction[Any, Any]) -> Task[Any]:
    """The task as a producer would have made it that knows the code; with outputs of others, which are not known yet,
    without what is told from its arguments.
    """
    overrides = message.overrides
    if overrides is not None and overrides.inputs:
        kwargs = bytes(message.kwargs) if message.kwargs != NIL else None
        return Task(function.name, bytes(message.args), kwargs, function.signature, function.defaults)
    args, named = function.signature.decode(message.args, message.kwargs)
    function.signature.check_call(args, named)
    return function(*args, **named)
