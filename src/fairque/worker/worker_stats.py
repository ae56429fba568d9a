"""`WorkerStats`: how a worker is, as it knows itself."""

from __future__ import annotations

import msgspec

__all__ = ["WorkerStats"]


class WorkerStats(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is. Counts are from its start on.

    Attributes:
        slots: Tasks that it may run at once now: its concurrency; those that still run, once it stops; 0 before it
            serves, and after it has stopped.
        busy: Slots in use.
        claim_errors: Claims that failed, by an outage or by an error of the server.
        claim_errors_by_partition: The same of each partition of the queue, in their order; none before it serves.
        stolen: Deliveries that it was handed of tasks whose worker had fallen silent. One that is put back and comes
            again counts again.
    """

    slots: int
    busy: int
    claim_errors: int
    stolen: int
    claim_errors_by_partition: tuple[int, ...] = ()
