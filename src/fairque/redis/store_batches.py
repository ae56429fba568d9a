"""The scripts that know batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

from fairque.models import BatchProgress, BatchState
from fairque.redis import arguments
from fairque.redis.arguments import Values
from fairque.redis.delivery import NewCallback
from fairque.redis.keys import encode_user
from fairque.redis.replies import refusal
from fairque.redis.script_caller import ScriptCaller
from fairque.tasks.message import new_nonce

__all__ = ["BatchScripts", "NewBatch", "packed_callbacks"]

STEP = 200
KEPT_MS = 15_000  # at the least, for a call that is repeated


class NewBatch(NamedTuple):
    """A batch to be opened: `ttl_ms` after the last task that was added it is abandoned."""

    user_id: str
    batch_id: str
    ttl_ms: int
    on_complete: tuple[NewCallback, ...]
    on_success: tuple[NewCallback, ...]


class BatchScripts(ScriptCaller):
    """The part of a `Store` that counts tasks together."""

    async def open_batch(self, new: NewBatch) -> Literal["new", "joined", "over"]:
        """``joined``: it is open already; ``over``: it takes no more tasks. Raises `QuotaExceeded`."""
        values, settings = Values(), self.settings
        answer = await self.call(
            arguments.BatchOpen(
                new_nonce().hex(),
                encode_user(new.user_id),
                new.batch_id,
                new.ttl_ms,
                max(KEPT_MS, settings.result_ttl_ms),
                settings.dead_letter_ttl_ms,
                packed_callbacks(new.on_complete, values),
                packed_callbacks(new.on_success, values),
            ),
            values,
        )
        if isinstance(answer, list):
            raise refusal(answer)
        return cast("Literal['new', 'joined', 'over']", answer.decode())

    async def close_batch(self, user_id: str, batch_id: str) -> bool:
        """False: it is not known."""
        return bool(
            await self.call(arguments.BatchClose(encode_user(user_id), batch_id, self.settings.priority_step_ms))
        )

    async def cancel_batch(self, user_id: str, batch_id: str, reason: str) -> tuple[int, int] | None:
        """How many of its tasks were canceled, and how many run and were told; None: it is not known."""
        canceled, told, cursor, settings = 0, 0, "0", self.settings
        ttl_ms, step_ms = settings.dead_letter_ttl_ms, settings.priority_step_ms
        while True:
            nonce, user = new_nonce().hex(), encode_user(user_id)
            step = arguments.BatchCancel(nonce, user, batch_id, reason, cursor, STEP, ttl_ms, step_ms)
            if (answer := await self.call(step)) is None:
                return None
            cursor, canceled, told = answer[0].decode(), canceled + answer[1], told + answer[2]
            if cursor == "0":
                return canceled, told

    async def batch(self, user_id: str, batch_id: str) -> BatchProgress | None:
        """None: it is not known."""
        state, *counts, created, complete = await self.call(arguments.Batch(encode_user(user_id), batch_id))
        if state is None:
            return None
        total, finished, failed, canceled = (int(count or 0) for count in counts)
        return BatchProgress(
            batch_id=batch_id,
            state=BatchState(state.decode()),
            total=total,
            finished=finished,
            failed=failed,
            canceled=canceled,
            created_at=int(created) / 1000,
            completed_at=int(complete) / 1000 if complete else None,
        )


def packed_callbacks(callbacks: Sequence[NewCallback], values: Values) -> list[arguments.Callback]:
    return [
        arguments.Callback(of.kind, of.priority, of.when, values.put(of.body), packed_callbacks(of.after, values))
        for of in callbacks
    ]
