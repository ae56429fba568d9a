"""The model of a queue: lanes, states, deliveries, leases and virtual time in pure Python.

The scripts are held against it: tests do the same to both and compare after each step. What the rules leave open, as
how much of what may be done one call does, a `Freedom` decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fairque.everybody import EVERYONE
from fairque.fairness.model_claims import ModelClaims
from fairque.fairness.model_task import Ending, Kind, ModelDelivery, ModelTask, UserCounts
from fairque.models import ANY_USER, UserGroup
from fairque.policy import Policy, Rate

__all__ = ["Ending", "Kind", "ModelDelivery", "ModelQueue", "ModelTask", "UserCounts"]


class ModelQueue(ModelClaims):
    """Everything that may happen to a queue.

    Times given are microseconds on one clock that never goes back; `_ms` are milliseconds on the same clock.
    """

    # Policies and limits

    def set_policy(self, now_us: int, user_id: str, **fields: Any) -> None:
        """Change what governs a user, or ``"*"``: the fields of a `Policy`, None forgets."""
        self.workers.look(now_us)
        before = self._stated_bytes(user_id)
        if user_id == EVERYONE:
            self._set_default(now_us, fields)
            self.bytes.change_limit(user_id, before, self._stated_bytes(user_id))
            return
        reserved = self.policies.of(user_id).min_running or 0
        self.policies.change(user_id, **fields)
        self.bytes.change_limit(user_id, before, self._stated_bytes(user_id))
        own = self.policies.own.get(user_id)
        self.choice.set_group(user_id, own.group if own else None)
        if (self.policies.of(user_id).min_running or 0) < reserved:
            self.choice.forgive(user_id)
        self.choice.set_weight(user_id, own.weight if own else None)
        self.admission.review(now_us, user_id)
        self.forget_reserved()
        self.limits.pass_on(now_us)

    def _stated_bytes(self, user_id: str) -> int | None:
        policy = self.policies.default if user_id == EVERYONE else self.policies.own.get(user_id)
        return policy.max_bytes if policy else None

    def _set_default(self, now_us: int, fields: dict[str, Any]) -> None:
        before = self.policies.default
        self.policies.change(EVERYONE, **fields)
        self.choice.default_weight = self.policies.default.weight or 1.0
        if Policy() != before or Policy() != self.policies.default:
            is_reweighted = self.policies.default.weight != before.weight
            self.admission.change_default(now_us, is_reweighted=is_reweighted)
            self.forget_reserved()

    def set_limit(self, now_us: int, record: str, max_running: int | None = None, rate: Rate | None = None) -> None:
        """Of a key or a template, by its name in Redis (`record_of`); without limits, none is left."""
        self.limits.set(now_us, record, max_running, rate)

    def pause_task(self, now_us: int, record: str, *, is_paused: bool) -> None:
        """Of the name of a task, by its record."""
        self.limits.pause(now_us, record, is_paused=is_paused)

    # What is visible

    def next_event_ms(self, groups: Sequence[UserGroup] = ANY_USER, *, steal: bool = True) -> float | None:
        """When a worker of these groups should look again if nobody calls it: a task is due, or a lease is over."""
        at_ms = self._next_moment_ms()
        if steal:
            leases = (holding.touched_ms + holding.lease_ms for _, holding in self._holdings(groups))
            at_ms = min([at_ms, *leases])
        if self.admission.is_swept:
            return 0
        return at_ms if at_ms < math.inf else None

    def _next_moment_ms(self) -> float:
        return min(
            of.lowest_score() for of in (self.due, self.expiry.users, self.admission.parked, self.limits.lines.held)
        )

    def sleep_until_ms(self, now_us: int, worker: str) -> float:
        """The same, but for leases, when there are others: of those that are idle, two keep the moments of all."""
        at_ms = self.moments.keep(now_us // 1000, worker, self._next_moment_ms())
        return 0 if self.admission.is_swept or self.limits.is_counting() else at_ms
