"""Whether a task whose attempt failed is tried again, and when."""

from __future__ import annotations

from fairque.tasks.failure import Raised
from fairque.tasks.retry import RetryPolicy
from fairque.worker.running_task import RunningTask

__all__ = ["retry_delay"]

DEFAULT_POLICY = RetryPolicy()


def retry_delay(run: RunningTask, raised: Raised) -> float | None:
    """Seconds to wait before the next attempt, or None when it was the last one.

    Without `max_retries` and `retry`, an error is final, and ``raise Retry`` is granted as often as the default policy
    says.
    """
    policy = run.overrides.retry or run.defaults.retry
    failures = run.delivery.failures
    if raised.is_final or failures >= _most_retries(run, policy, raised):
        return None
    policy = policy or DEFAULT_POLICY
    if not (raised.retry_asked or policy.covers_any(raised.classes)):
        return None
    return policy.delay(failures + 1) if raised.retry_delay is None else raised.retry_delay


def _most_retries(run: RunningTask, policy: RetryPolicy | None, raised: Raised) -> int:
    for chosen in (run.overrides.max_retries, run.defaults.max_retries):
        if chosen is not None:
            return chosen
    if policy is not None:
        return policy.max
    return DEFAULT_POLICY.max if raised.retry_asked else 0
