"""Every call of a queue, made on one with partitions: it is told what a queue without any tells, and does the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fairque import TaskQueue
from tests.test_cut_calls import CALLS, LEASE, prepare, starts

if TYPE_CHECKING:
    from tests.support.servers import Server

REFUSED = {"policy", "policies", "governed", "limits"}
"""Their calls put users in groups, and limit what all users do together: there is none of that."""
OF_ONE = {"accuse", "expire", "hand_on", "heads", "receive"}
"""Their calls claim by hand from the whole queue: workers do so from one partition at a time."""
DAMAGING = {"repair"}
"""Its call deletes keys of the queue by their names."""
SAME = sorted(CALLS.keys() - REFUSED - OF_ONE - DAMAGING)


@pytest.mark.leaves_keys
@pytest.mark.parametrize("script", SAME)
async def test_a_queue_with_partitions_tells_and_does_what_one_without_does(
    server: Server, queue_name: str, script: str
) -> None:
    without = await told(server, f"{queue_name}/without", script, 1)
    assert await told(server, f"{queue_name}/with", script, 4) == without


async def told(server: Server, name: str, script: str, partitions: int) -> Any:
    starts.clear()
    async with TaskQueue(server.url, name=name, lease=LEASE, partitions=partitions) as queue:
        await prepare(queue)
        starts.clear()
        answer = await CALLS[script](queue)
        stats = await queue.stats()
        assert (await queue.check()).findings == ()
    totals = [stats.queued, stats.started, stats.scheduled, stats.deferred, stats.finished, stats.failed]
    return answer, [*totals, stats.canceled, stats.retried, stats.users_known, stats.users_ready]
