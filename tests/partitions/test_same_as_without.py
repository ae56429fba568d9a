"""Every script on a queue with partitions: it tells what it tells on one without and does the same, also where replies
are cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fairque import TaskQueue
from tests.support.calls import call_of
from tests.support.render_scripts import scripts
from tests.test_cut_calls import CALLS, LEASE, prepare, source_of, starts

if TYPE_CHECKING:
    from tests.support.proxy import Cut, CuttingProxy
    from tests.support.servers import Server

COUNT = 4


BETWEEN = {"accept", "exchange", "follow", "forfeit", "lend", "rulebook"}
"""What partitions say to each other. One queue alone has nobody to say it to: there are tests of their own."""


def test_every_script_is_called_on_partitions() -> None:
    assert CALLS.keys() == {script.name for script in scripts()}


@pytest.mark.leaves_keys
@pytest.mark.parametrize("script", sorted(CALLS.keys() - BETWEEN))
async def test_a_queue_with_partitions_tells_and_does_what_one_without_does(
    server: Server, proxy: CuttingProxy, queue_name: str, script: str
) -> None:
    """The first and the last reply are cut: what all partitions are told, and what one of them tells, comes once."""
    without, _ = await told(server.url, proxy, f"{queue_name}/without", script, 1, 10**9)
    spread, counted = await told(proxy.url, proxy, f"{queue_name}/with", script, COUNT, 10**9)
    assert counted.seen, "it was not called"
    assert spread == without
    for k in {1, counted.seen}:
        cut, done = await told(proxy.url, proxy, f"{queue_name}/cut-{k}", script, COUNT, k)
        assert cut == without or done.seen < k, f"reply {k} of {counted.seen} was cut"


async def told(url: str, proxy: CuttingProxy, name: str, script: str, partitions: int, nth: int) -> tuple[Any, Cut]:
    starts.clear()
    async with TaskQueue(url, name=name, lease=LEASE, partitions=partitions) as queue:
        await prepare(queue)
        starts.clear()
        cut = proxy.cut_reply(call_of(source_of(script)), nth)
        answer = await CALLS[script](queue)
        cut.done.set()
        stats = await queue.stats()
        assert (await queue.check()).findings == ()
    totals = [stats.queued, stats.started, stats.scheduled, stats.deferred, stats.finished, stats.failed]
    return (answer, [*totals, stats.canceled, stats.retried, stats.users_known, stats.users_ready]), cut
