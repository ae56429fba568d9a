"""Names, as the semantic conventions of OpenTelemetry have them for messaging; what they have no name for is
``fairque.…``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["ENQUEUE", "FIRE", "OPERATIONS", "PROCESS", "SCHEMA_URL", "Operation"]

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""Of the version of the conventions that these are of. Those for messaging are not declared stable there."""

SYSTEM = "messaging.system"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
MESSAGE_ID = "messaging.message.id"
MESSAGE_COUNT = "messaging.batch.message_count"
CLIENT_ID = "messaging.client.id"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"

TASK_NAME = "fairque.task.name"
ATTEMPT = "fairque.task.attempt"
SNOOZED = "fairque.task.snoozed"
OUTCOME = "fairque.task.outcome"
USER_ID = "fairque.user.id"
SCHEDULE_ID = "fairque.schedule.id"
CHUNKS = "fairque.stream.chunks"
WAITED = "fairque.waited"
"""An event: the task stood in line."""
AWAITED = "fairque.awaited"
"""An event: the body has waited for another task, or for a batch."""
WAIT_SECONDS = "fairque.wait.duration"
WAIT_FOR = "fairque.wait.for"

DURATION_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Seconds, as the conventions advise for both histograms."""


class Operation(NamedTuple):
    """What is done to a message: the name that the system has for it, and the type that the conventions know."""

    name: str
    type: str
    sends: bool = False

    def attributes(self, queue_name: str) -> dict[str, Any]:
        """Of all spans and metrics."""
        return {SYSTEM: "fairque", OPERATION_NAME: self.name, OPERATION_TYPE: self.type, DESTINATION: queue_name}

    def at(self, server: tuple[str, int | None] | None, queue_name: str) -> dict[str, Any]:
        """Of spans of what was done there: an address, which may change with each failover, would make series of a
        metric."""
        attributes = self.attributes(queue_name)
        if server is not None:
            attributes[SERVER_ADDRESS], port = server
            if port is not None:
                attributes[SERVER_PORT] = port
        return attributes


ENQUEUE = Operation("enqueue", "send", True)
CREATE = Operation("create", "create")
FIRE = Operation("fire", "create")
PROCESS = Operation("process", "process")
OPERATIONS = {
    "task": ENQUEUE,
    "tasks": ENQUEUE,
    "pipeline": ENQUEUE,
    "schedules": Operation("schedule", "create"),
    "batch": Operation("open_batch", "create"),
}
"""By the kind of the call. Tasks of schedules and callbacks of batches are sent later, by others."""
