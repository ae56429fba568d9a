"""Every metric that fairque has: its name, its labels, what it tells."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["CATALOGUE", "PROCESS", "QUEUE", "Kind", "Metric", "partition_label"]

Kind = Literal["counter", "gauge", "histogram"]
TASK_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
CALL_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metric(msgspec.Struct, frozen=True):
    """One metric. A counter ends in ``_total``; `buckets` are the upper bounds of those of a histogram."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


def partition_label(number: int, count: int) -> str:
    """Which of so many partitions; empty for the one of a queue without, which to Prometheus is no label at all."""
    return str(number) if count > 1 else ""


PROCESS: tuple[Metric, ...] = (
    Metric(
        "fairque_tasks_total",
        "counter",
        ("queue", "name", "outcome"),
        "Deliveries of tasks that ended in this process: finished, failed, retried, canceled, snoozed (put off by "
        "themselves), released (put back without an attempt being counted) or lost (not its own any more).",
    ),
    Metric(
        "fairque_task_run_seconds",
        "histogram",
        ("queue", "name"),
        "Seconds that attempts ran which finished, failed or are tried again.",
        TASK_SECONDS,
    ),
    Metric(
        "fairque_task_wait_seconds",
        "histogram",
        ("queue", "name"),
        "Seconds that tasks waited for their turn, told when their first run has ended.",
        TASK_SECONDS,
    ),
    Metric(
        "fairque_redis_seconds",
        "histogram",
        ("queue", "script"),
        "Seconds that calls to Redis took, failures and repetitions included.",
        CALL_SECONDS,
    ),
    Metric("fairque_claim_errors_total", "counter", ("queue", "partition"), "Claims that failed."),
    Metric(
        "fairque_leases_stolen_total",
        "counter",
        ("queue",),
        "Deliveries of tasks that were taken over from workers that fell silent.",
    ),
    Metric("fairque_slots", "gauge", ("queue", "state"), "Slots of running workers: busy or free."),
)
"""What a process knows of itself; summed over several."""

QUEUE: tuple[Metric, ...] = (
    Metric("fairque_up", "gauge", ("queue",), "1 where all that follows was read from Redis, 0 where some is missing."),
    Metric(
        "fairque_partition_up",
        "gauge",
        ("queue", "partition"),
        "1 where a partition answered, 0 where it did not. Only of queues that have several.",
    ),
    Metric(
        "fairque_queue_depth",
        "gauge",
        ("queue", "partition", "state"),
        "Tasks that have not ended: queued (they wait for their turn), started, scheduled or deferred.",
    ),
    Metric(
        "fairque_queue_latency_seconds",
        "gauge",
        ("queue",),
        "Seconds that the next task of a user has waited for its turn: the longest, of 100 users.",
    ),
    Metric(
        "fairque_slots_needed",
        "gauge",
        ("queue",),
        "Slots that it takes so that what runs goes on and what waits starts in time.",
    ),
    Metric(
        "fairque_share_jain",
        "gauge",
        ("queue",),
        "Jain's index of what the users who wait got lately of what they are entitled to: 1 is even.",
    ),
    Metric(
        "fairque_users_starved",
        "gauge",
        ("queue",),
        "Users that have waited for a minute, and got less than half of their share lately.",
    ),
    Metric("fairque_workers", "gauge", ("queue", "state"), "Workers: alive, or silent (for 35 seconds, up to 60)."),
    Metric("fairque_tasks_late_seconds", "gauge", ("queue",), "Seconds for which the first scheduled task is due."),
    Metric("fairque_schedules_late_seconds", "gauge", ("queue",), "Seconds for which the first schedule is due."),
    Metric("fairque_dead_letters", "gauge", ("queue",), "Failed tasks that are kept."),
    Metric(
        "fairque_dead_letters_blocking", "gauge", ("queue",), "Failed tasks that others wait for, of the 1,000 oldest."
    ),
    Metric(
        "fairque_user_share",
        "gauge",
        ("queue", "user"),
        "The part of the queue that a user got lately, of those that got the most. Only where asked for.",
    ),
    Metric(
        "fairque_user_entitled_share",
        "gauge",
        ("queue", "user"),
        "The part of the queue that a user is entitled to, of those that got the most. Only where asked for.",
    ),
    Metric(
        "fairque_user_queued",
        "gauge",
        ("queue", "user"),
        "Tasks of a user that wait for their turn, of those that got the most. Only where asked for.",
    ),
)
"""What is read from Redis, for one queue."""

CATALOGUE: dict[str, Metric] = {metric.name: metric for metric in (*PROCESS, *QUEUE)}
