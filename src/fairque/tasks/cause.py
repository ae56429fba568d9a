"""`Cause`: how a task ended, as its callbacks are told."""

from __future__ import annotations

from typing import Any

import msgspec

from fairque.codec.codec import Sealer
from fairque.errors import ResultNotKept
from fairque.models import BatchProgress, BatchState, TaskState
from fairque.tasks.failure import Failure
from fairque.tasks.message import NIL, BadMessage, Record, follow_up_in
from fairque.tasks.sealed import open_record

__all__ = ["Cause", "cause_in", "ended_batch_in"]

_OF_A_BATCH = b"B"


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """How the task ended that a callback follows. Times are seconds since the epoch on the server's clock.

    Attributes:
        task_id: Its id.
        name: The registered name of its function.
        state: Finished, failed or canceled.
        attempt: The attempt with which it ended; 0 where it never started.
        failure: Why it failed for good, None where it did not.
        reason: Why it was canceled, as `cancel` was told.
        started_at, ended_at: Of that attempt.
    """

    task_id: str
    name: str
    state: TaskState
    attempt: int
    failure: Failure | None
    reason: str
    started_at: float
    ended_at: float
    value: msgspec.Raw = NIL
    is_kept: bool = True

    @property
    def result(self) -> Any:
        """What it returned, as msgpack has it: a dict for a dataclass. None where it did not finish.

        Raises:
            ResultNotKept: It keeps no result (``result_ttl=0``), or that is too large for a message with it.
        """
        if not self.is_kept:
            raise ResultNotKept(f"the result of task {self.task_id!r} was not kept, or is too large for its callback")
        return msgspec.msgpack.decode(self.value)


def cause_in(body: bytes, sealer: Sealer | None, user_id: str) -> Cause | None:
    """What the message of a callback says; None for that of another task.

    Raises `UnknownKey` and `BrokenSeal` for a result.
    """
    task_id, packed = follow_up_in(body)
    if not packed or packed.startswith(_OF_A_BATCH):
        return None
    try:
        state, record = open_record(sealer, user_id, task_id, packed)
    except BadMessage:
        return None
    return _cause(task_id, state, record)


def ended_batch_in(body: bytes) -> BatchProgress | None:
    """What the message of a callback of a batch says; None for that of another task."""
    batch_id, packed = follow_up_in(body)
    if not packed.startswith(_OF_A_BATCH):
        return None
    _, state, total, finished, failed, canceled, created_ms, complete_ms = msgspec.msgpack.decode(packed[1:])
    return BatchProgress(
        batch_id=batch_id,
        state=BatchState(state),
        total=int(total),
        finished=int(finished),
        failed=int(failed),
        canceled=int(canceled),
        created_at=created_ms / 1000,
        completed_at=complete_ms / 1000,
    )


def _cause(task_id: str, state: TaskState, record: Record) -> Cause:
    is_finished, failure = state is TaskState.FINISHED, None
    if state is TaskState.FAILED and record.kind is not None:
        failure = Failure(record.kind, record.type_name, record.message, record.traceback)
    return Cause(
        task_id=task_id,
        name=record.name,
        state=state,
        attempt=record.attempt,
        failure=failure,
        reason=record.message if state is TaskState.CANCELED else "",
        started_at=record.started_ms / 1000,
        ended_at=(record.started_ms + record.run_ms) / 1000,
        value=msgspec.Raw(bytes(record.value)) if is_finished else NIL,
        is_kept=record.kept or not is_finished,
    )
