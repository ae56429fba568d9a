"""Limits over all users against what they promise, whatever happens to partitions, places, users and rules."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.limits_play import LimitsMachine
from tests.support.unsteady import UnsteadyQueue

if TYPE_CHECKING:
    from tests.support.servers import Server

GAMES = int(os.environ.get("FAIRQUE_GAMES", "100")) // 12
phases = (Phase.explicit, Phase.generate, *([Phase.shrink] if os.environ.get("FAIRQUE_SHRINK") else []))


@pytest.mark.timeout(600)
@pytest.mark.leaves_keys
@pytest.mark.parametrize("count", [1, 4])
def test_no_limit_is_exceeded_and_nobody_is_held_for_ever(server: Server, queue_name: str, count: int) -> None:
    numbers = itertools.count()
    run_state_machine_as_test(
        lambda: LimitsMachine(lambda: UnsteadyQueue(server.url, f"{queue_name}/{next(numbers)}", count)),  # type: ignore[arg-type]
        settings=settings(
            derandomize=True,
            phases=phases,
            deadline=None,
            max_examples=GAMES if count > 1 else GAMES // 2,
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
        ),
    )
