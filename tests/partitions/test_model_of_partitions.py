"""A queue with partitions against the model: each partition is to its users what a queue without any is to all."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.spread import SpreadMachine, SpreadQueue

if TYPE_CHECKING:
    from tests.support.servers import Server

GAMES = int(os.environ.get("FAIRQUE_GAMES", "100")) // 10
phases = (Phase.explicit, Phase.generate, *([Phase.shrink] if os.environ.get("FAIRQUE_SHRINK") else []))


@pytest.mark.timeout(600)
@pytest.mark.leaves_keys
def test_scripts_and_model_agree_in_each_partition_whatever_happens_in_the_others(
    server: Server, queue_name: str
) -> None:
    numbers = itertools.count()
    run_state_machine_as_test(
        lambda: SpreadMachine(lambda: SpreadQueue(server.url, f"{queue_name}/{next(numbers)}")),  # type: ignore[arg-type]
        settings=settings(
            derandomize=True,
            phases=phases,
            deadline=None,
            max_examples=GAMES,
            stateful_step_count=60,
            suppress_health_check=list(HealthCheck),
        ),
    )
