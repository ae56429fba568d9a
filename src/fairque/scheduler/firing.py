"""From a task that is to be repeated to the message of each run."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec

from fairque.codec.codec import Kind, Sealer
from fairque.errors import InvalidInput, MessageTooLarge, WrongType
from fairque.models import Priority
from fairque.queue.callbacks import plain_callbacks, seal_callbacks
from fairque.queue.firing_door import Decided, FiringDoor
from fairque.queue.producer import user_of
from fairque.redis.delivery import NewCallback
from fairque.redis.store_schedules import Due
from fairque.schedule.spec import Spec
from fairque.settings import MOST_MESSAGE_BYTES
from fairque.tasks.message import BadMessage, Firing, Overrides, decode_body, encode_body, head_of
from fairque.tasks.options import TaskOptions, expiry_of, start_of
from fairque.tasks.sealed import open_body, open_value, seal_body, seal_value
from fairque.tasks.task import Task

__all__ = ["Template", "check_task", "run_of", "task_id_for"]

_NO_NONCE = bytes(8)
_ROOM = 1024  # for what each run adds to the message
_LONGEST_SLOT = len("@2000-01-01T00:00:00.000Z")  # what the id of a run has more than that of its schedule
_UNUSABLE = {
    "task_id": "each run has an id of its own",
    "depends_on": "each run stands for itself",
    "execute_after": "the schedule says when",
    "condition": "unique, debounce and throttle are of single calls; overlap says what becomes of runs that meet",
    "on_conflict": "each run has an id of its own, and overlap says what becomes of those before it",
    "batch": "a batch ends once, and a schedule fires on; let the task open one of its own, and add to that",
}
_encode = msgspec.msgpack.Encoder().encode
_callbacks_decoder = msgspec.msgpack.Decoder(tuple[NewCallback, ...])


class Template(msgspec.Struct, frozen=True):
    """What a schedule keeps of its task."""

    user_id: str
    fields: dict[str, Any]

    def __repr__(self) -> str:  # without the arguments
        return f"<Template of {self.user_id!r}>"

    @classmethod
    def of(
        cls,
        schedule_id: str,
        given: Task[Any] | None,
        user_id: str | None,
        max_bytes: int,
        owner: str | None = None,
        sealer: Sealer | None = None,
    ) -> Template:
        """For `user_id`, else the task's own user, else the owner. Raises `InvalidInput` for one not to be repeated."""
        task = check_task(given)
        options = task.task_options
        for name, reason in _UNUSABLE.items():
            if getattr(options, name):
                raise InvalidInput(f"a scheduled task cannot have {name}: {reason}")
        if task.upstream:
            raise InvalidInput(f"{task!r} has outputs of others as arguments, and {_UNUSABLE['depends_on']}")
        priority = options.priority or Priority.NORMAL
        cost = options.cost if options.cost is not None else 1.0
        user = user_of(task, user_id if user_id is not None or options.user_id is not None else owner)
        stand_in = sealer.stand_in(user) if sealer is not None else None
        body = encode_body(task.message(stand_in=stand_in), _NO_NONCE, cost, priority, max_bytes - _ROOM)
        body = seal_body(sealer, Kind.SCHEDULE, user, schedule_id, body, max_bytes - _ROOM)
        if isinstance(options.expires, datetime):
            raise InvalidInput("a scheduled task cannot expire at a moment: say in seconds how long each run may wait")
        fields = {
            "name": task.name,
            "body": body,
            "priority": int(priority),
            "delay": start_of(options),
            "expires": expiry_of(options),
            "callbacks": _kept_callbacks(options, user, schedule_id, max_bytes, sealer),
        }
        return cls(user, fields)


def check_task(task: object) -> Task[Any]:
    if not isinstance(task, Task):
        raise WrongType(f"only a task can be scheduled, as in task=report(), not {task!r}")
    return task


def run_of(
    sealer: Sealer | None, door: FiringDoor | None, due: Due, spec: Spec, task_id: str, planned_ms: int
) -> tuple[bytes, tuple[NewCallback, ...]]:
    """The message of one run, and its callbacks. Whoever makes them, they are the same, but for their headers and how
    they are sealed.

    Raises `BadMessage`, `UnknownKey` and `BrokenSeal`.
    """
    message = open_body(sealer, Kind.SCHEDULE, due.user_id, due.schedule_id, due.body)
    overrides, firing = message.overrides or Overrides(), Firing(due.schedule_id, spec.cron, planned_ms)
    decided = Decided(overrides.headers)
    if door is not None:
        decided = door.decide(due.user_id, task_id, message.name, firing, overrides.headers)
    overrides = msgspec.structs.replace(overrides, schedule=firing, headers=decided.headers)
    made = msgspec.structs.replace(message, overrides=overrides)
    _, cost, priority = head_of(due.body)
    nonce = hashlib.sha256(f"{due.user_id} {task_id}".encode()).digest()[:8]
    body = encode_body(made, nonce, cost, priority, MOST_MESSAGE_BYTES)
    sealed = seal_body(sealer, Kind.ARGUMENTS, due.user_id, task_id, body, MOST_MESSAGE_BYTES)
    return sealed, _callbacks_of_run(sealer, due, task_id, decided)


def _kept_callbacks(
    options: TaskOptions, user_id: str, schedule_id: str, max_bytes: int, sealer: Sealer | None
) -> bytes:
    """All of them in one, as each look at the schedule brings them along."""
    given = options.callbacks()
    if not given:
        return b""
    packed = _encode(plain_callbacks(given, user_id, schedule_id, _NO_NONCE, max_bytes, sealer, _LONGEST_SLOT))
    if len(packed) > max_bytes - _ROOM:
        raise MessageTooLarge(
            f"the callbacks of schedule {schedule_id!r} have {len(packed)} bytes, the limit is {max_bytes - _ROOM}"
        )
    return seal_value(sealer, Kind.SCHEDULED_CALLBACKS, user_id, schedule_id, packed)


def _callbacks_of_run(sealer: Sealer | None, due: Due, task_id: str, decided: Decided) -> tuple[NewCallback, ...]:
    if not due.callbacks:
        return ()
    packed = open_value(sealer, Kind.SCHEDULED_CALLBACKS, due.user_id, due.schedule_id, due.callbacks)
    try:
        kept = _callbacks_decoder.decode(packed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"its callbacks in Redis cannot be decoded: {exc}") from None
    if decided.taken or decided.given:
        kept = tuple(_with_headers(each, decided) for each in kept)
    return seal_callbacks(sealer, due.user_id, task_id, kept, MOST_MESSAGE_BYTES)


def _with_headers(callback: NewCallback, decided: Decided) -> NewCallback:
    message = decode_body(callback.body)
    overrides = message.overrides or Overrides()
    headers = dict(decided.changed(overrides.headers))
    changed = msgspec.structs.replace(message, overrides=msgspec.structs.replace(overrides, headers=headers))
    body = encode_body(changed, *head_of(callback.body), MOST_MESSAGE_BYTES)
    return callback._replace(body=body, after=tuple(_with_headers(each, decided) for each in callback.after))


def task_id_for(schedule_id: str, slot_ms: int) -> str:
    planned = datetime.fromtimestamp(slot_ms / 1000, UTC)
    return f"{schedule_id}@{planned.isoformat(timespec='milliseconds' if slot_ms % 1000 else 'seconds')[:-6]}Z"
