"""Workers killed before and after a call, a sample: ``nox -s storm`` has the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.kill_points import POINTS, kill_at_a_call

if TYPE_CHECKING:
    from tests.support.process import WorkerProcess
    from tests.support.proxy import CuttingProxy
    from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys("*")


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(("script", "nth", "partitions"), [("claim", 1, 1), ("turn", 4, 1), ("claim", 1, 4)])
async def test_a_worker_killed_at_a_call_loses_nothing_and_has_only_what_it_held_run_again(
    server: Server,
    proxy: CuttingProxy,
    queue_name: str,
    worker_process: Callable[..., Awaitable[WorkerProcess]],
    tmp_path: Path,
    script: str,
    nth: int,
    point: str,
    partitions: int,
) -> None:
    await kill_at_a_call(worker_process, server, proxy, queue_name, tmp_path, script, nth, point, partitions)
