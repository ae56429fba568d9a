"""Helpers for tests of code that enqueues tasks. The fixtures beside them come with pytest by themselves."""

from fairque.testing.clock import advance
from fairque.testing.running import run_all
from fairque.testing.temporary import temporary_queue
from fairque.testing.waiting import EnqueuedTask, assert_enqueued, enqueued

__all__ = ["EnqueuedTask", "advance", "assert_enqueued", "enqueued", "run_all", "temporary_queue"]
