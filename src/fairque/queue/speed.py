"""`Speed`: how fast a queue serves."""

from __future__ import annotations

import msgspec

from fairque.metrics import Metrics
from fairque.queue.explanation import Certainty

__all__ = ["Speed", "speed_of"]

ENOUGH_SERVICES = 20  # measured lately, before a speed is believed
LEAST_USE = 0.5  # of the slots: below that, they were not short of time but of work
SHORT_TASKS = 1000  # a second: the way takes longer than the work


class Speed(msgspec.Struct, frozen=True):
    """`slots` are those that take up what comes, `use` is the part of their time in which they run something."""

    slots: float
    use: float
    certainty: Certainty

    def seconds(self, work_seconds: float) -> float:
        """In which so much is done."""
        return work_seconds / (self.slots * self.use)


def speed_of(measured: Metrics, all_slots: int, slots: float, run_seconds: float) -> Speed | None:
    """By what was measured of the queue lately, where its slots have something to do. None: there is nothing to go by.

    Args:
        all_slots: Those in which it was measured.
        slots: Those that are open to whom it is asked for.
        run_seconds: What a service takes.
    """
    if slots <= 0 or not run_seconds:
        return None
    is_known = measured.recent_services >= ENOUGH_SERVICES
    use = measured.recent_rate * run_seconds / all_slots if is_known else 1.0
    is_way = all_slots / run_seconds > SHORT_TASKS and measured.recent_rate > SHORT_TASKS / 10
    if not is_way:
        use = use if LEAST_USE < use < 1 else 1.0
    return Speed(slots, use, Certainty.GOOD if is_known else Certainty.ROUGH)
