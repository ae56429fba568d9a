"""`Outcomes`: what the end of a body means, as an outcome for Redis."""

from __future__ import annotations

import math
import struct
import time
from typing import Any

import msgspec

from fairque.codec.codec import Sealer
from fairque.errors import UnknownKey
from fairque.models import Attempt, FailureKind, TaskState
from fairque.queue.xcom import sealed_xcom, ttl_to_ms
from fairque.redis.delivery import Delivery, Outcome
from fairque.redis.keys import encode_user
from fairque.settings import QueueSettings
from fairque.tasks.failure import TIMEOUT_CLASSES, Failure, Raised, encode_result, raised_by
from fairque.tasks.message import Record, encode_record
from fairque.tasks.sealed import encode_attempt, seal_record
from fairque.tasks.xcom import xcom_of
from fairque.worker.retries import retry_delay
from fairque.worker.running_task import RunningTask

__all__ = ["Outcomes"]

TOMBSTONE_MS = 15_000  # a task that keeps nothing is remembered this long, for an enqueue that is repeated


class Outcomes:
    """Finished with a result that can be kept, another try, or failed.

    Args:
        worker_id: Kept with every outcome.
        settings: Of the queue.
        sealer: Of the queue's contents, if there is one.
    """

    def __init__(self, worker_id: str, settings: QueueSettings, sealer: Sealer | None = None) -> None:
        self._sealer = sealer
        self._worker_id = worker_id
        self._settings = settings

    def finished(self, run: RunningTask, value: Any) -> Outcome | Failure:
        """The outcome of a value, or the failure that it cannot be kept."""
        encoded = encode_result(value)
        if isinstance(encoded, Failure):
            return encoded
        if len(encoded) > self._settings.max_message_bytes:
            text = f"the result has {len(encoded)} bytes, the limit is {self._settings.max_message_bytes}"
            return Failure(FailureKind.ERROR, "ResultTooLarge", text)
        ttl_ms = self._ttl_ms(run)
        value_fields: dict[str, Any] = {"value": msgspec.Raw(encoded)} if ttl_ms else {"kept": False}
        record = self._record(run.delivery, run.name, run.began, **value_fields)
        try:
            packed = self._encode(run.delivery, TaskState.FINISHED, record)
            pushed = self._pushed(run, encoded)
        except UnknownKey as exc:
            return Failure(FailureKind.ERROR, "UnknownKey", f"the result cannot be sealed: {exc}")
        return Outcome(run.delivery, "finished", ttl_ms or TOMBSTONE_MS, 0, packed, b"", pushed)

    def failed(self, delivery: Delivery, name: str, failure: Failure, began: float) -> Outcome:
        """The task is given up."""
        record = self._record(
            delivery,
            name,
            began,
            kind=failure.kind,
            type_name=failure.type_name,
            message=failure.message,
            traceback=failure.traceback,
        )
        encoded = self._encode(delivery, TaskState.FAILED, record)
        ttl_ms, error = self._settings.dead_letter_ttl_ms, self._error(delivery, failure, began)
        return Outcome(delivery, "failed", ttl_ms, 0, encoded, error)

    def raised(self, run: RunningTask, error: BaseException) -> tuple[Outcome, Failure | None]:
        """What an exception of the body means: another run, another try, or the end."""
        raised = raised_by(error)
        if raised.snooze is not None:
            return Outcome(run.delivery, "snoozed", 0, max(1, math.ceil(raised.snooze * 1000))), None
        return self._again_or_failed(run, raised)

    def timed_out(self, run: RunningTask, seconds: float) -> tuple[Outcome, Failure]:
        failure = Failure(FailureKind.TIMEOUT, "TimeoutError", f"ran longer than {seconds:g} s")
        return self._again_or_failed(run, Raised(failure, TIMEOUT_CLASSES))

    def _again_or_failed(self, run: RunningTask, raised: Raised) -> tuple[Outcome, Failure]:
        delay = retry_delay(run, raised)
        if delay is None:
            return self.failed(run.delivery, run.name, raised.failure, run.began), raised.failure
        record = self._error(run.delivery, raised.failure, run.began)
        return Outcome(run.delivery, "retry", 0, round(delay * 1000), b"", record), raised.failure

    def _ttl_ms(self, run: RunningTask) -> int:
        seconds = run.overrides.result_ttl if run.overrides.result_ttl is not None else run.defaults.result_ttl
        return self._settings.result_ttl_ms if seconds is None else round(seconds * 1000)

    def _record(self, delivery: Delivery, name: str, began: float, **fields: Any) -> Record:
        return Record(
            name,
            delivery.attempt,
            delivery.queued_ms,
            delivery.started_ms,
            round((time.monotonic() - began) * 1000, 3),
            self._worker_id,
            **fields,
        )

    def _encode(self, delivery: Delivery, state: TaskState, record: Record) -> bytes:
        if self._sealer is None:
            return encode_record(delivery.body, state, record)
        return seal_record(self._sealer, delivery.user_id, delivery.id, delivery.body, state, record)

    def _pushed(self, run: RunningTask, encoded: bytes) -> bytes:
        """The result as an XCom value, to be written with the outcome."""
        options = xcom_of(run.function)
        if options.push_key is None:
            return b""
        value = sealed_xcom(self._sealer, run.user_id, options.namespace, options.push_key, encoded)
        space, key = encode_user(options.namespace).encode(), options.push_key.encode()
        return struct.pack(">IId", len(space), len(key), ttl_to_ms(options.ttl_seconds)) + space + key + value

    def _error(self, delivery: Delivery, failure: Failure, began: float) -> bytes:
        at = delivery.started_ms / 1000 + time.monotonic() - began
        attempt = Attempt(
            delivery.attempt,
            at,
            failure.kind,
            failure.type_name,
            failure.message,
            failure.traceback,
            self._worker_id,
        )
        return encode_attempt(self._sealer, delivery.user_id, delivery.id, attempt)
