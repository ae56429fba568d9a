"""Every script on a queue with partitions: it tells what it tells on one without and does the same, also where replies
are cut.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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


async def limit_users(far: TaskQueue) -> Any:
    """As in a queue without partitions, but for limits that all users share."""
    await far.set_limit("crm", max_running=3, user_id="acme")
    await far.set_limit("other", max_running=1, shared=False)
    await far.clear_limit("other", shared=False)
    await far.pause_task("plain")
    await far.pause_task("fail")
    await far.resume_task("fail")
    return sorted((each.key, each.max_running, each.paused) for each in await far.limits())


APART = {"limits": limit_users}
"""Calls for what is not in a queue with partitions."""


def calls() -> dict[str, Callable[[TaskQueue], Awaitable[Any]]]:
    return {**CALLS, **APART}


def test_every_script_is_called_on_partitions() -> None:
    assert calls().keys() == {script.name for script in scripts()}


@pytest.mark.leaves_keys
@pytest.mark.parametrize("script", sorted(CALLS))
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
        answer = await calls()[script](queue)
        cut.done.set()
        stats = await queue.stats()
        assert (await queue.check()).findings == ()
    totals = [stats.queued, stats.started, stats.scheduled, stats.deferred, stats.finished, stats.failed]
    return (answer, [*totals, stats.canceled, stats.retried, stats.users_known, stats.users_ready]), cut
