"""An importer that is killed at each of its calls: nobody is served what is half there, and the same records go on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fairque import InvalidInput, LimitInfo, TaskQueue, Worker
from fairque.tasks.registry import registry
from fairque.transfer.file import MARK, framed
from tests.support.calls import call_of
from tests.support.everything import USER, everything
from tests.test_transfer import contents, kept

if TYPE_CHECKING:
    from tests.support.proxy import CuttingProxy, Hold
    from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()
CALLS = [("freeze", 1), ("import", 1), ("import", 2), ("limits", 1), ("policy", 1), ("thaw", 1)]


async def kill_at(hold: Hold, proxy: CuttingProxy, file: Path, queue_name: str) -> None:
    command = (sys.executable, "-m", "fairque", "import-user", str(file), f"--url={proxy.url}", f"--queue={queue_name}")
    victim = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL)
    async with asyncio.timeout(30):
        await hold.reached.wait()
    victim.kill()
    await victim.wait()
    await proxy.refuse()  # a command that was kept back must not arrive after all
    hold.released.set()


async def is_complete(queue: TaskQueue) -> bool:
    return USER not in (await queue.health()).damaged_users


async def limits_of(queue: TaskQueue) -> list[LimitInfo]:
    """Workers declare others."""
    return [limit for limit in await queue.limits() if limit.user_id == USER]


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("script", "nth"), CALLS)
async def test_an_import_whose_process_is_killed_goes_on_with_the_same_records(
    server: Server, proxy: CuttingProxy, queue_name: str, tmp_path: Path, script: str, nth: int, is_after: bool
) -> None:
    file = tmp_path / "user.fairque"
    async with (
        everything(server.url, queue_name) as here,
        TaskQueue(server.url, name=f"{queue_name}/killed") as there,
        TaskQueue(server.url, name=f"{queue_name}/whole") as whole,
    ):
        await here.enqueue_many([registry["plain"]().options(delay=7200)] * 150, user_id=USER)
        await here.set_policy(USER, weight=2)
        await here.set_limit("crm", max_running=2, user_id=USER, shared=False)
        records = await kept(here.export_user(USER))
        file.write_bytes(MARK + b"".join(map(framed, records)))
        await whole.import_user(records)
        hold = proxy.hold(call_of(script), nth, of_reply=is_after)
        await kill_at(hold, proxy, file, there.name)
        assert (await there.check()).findings == ()
        if script == "thaw" and is_after:
            assert await is_complete(there)
            with pytest.raises(InvalidInput, match="is known here"):
                await there.import_user(records)
        else:
            if contents(there, USER):
                assert not await is_complete(there)
            await Worker(there, scheduler=False).run_until_idle()
            assert (await there.stats()).finished == 0, "nobody is served what is half there"
            await there.import_user(records)
        assert await is_complete(there)
        assert contents(there, USER) == contents(whole, USER)
        assert await there.get_policy(USER) == await whole.get_policy(USER)
        assert await limits_of(there) == await limits_of(whole) != []
        assert (await there.check()).findings == ()


@pytest.mark.parametrize("nth", [1, 2])
async def test_an_import_that_was_broken_off_is_given_up_by_a_purge(
    server: Server, proxy: CuttingProxy, queue_name: str, tmp_path: Path, nth: int
) -> None:
    file = tmp_path / "user.fairque"
    async with everything(server.url, queue_name) as here, TaskQueue(server.url, name=f"{queue_name}/2") as there:
        await here.enqueue_many([registry["plain"]().options(delay=7200)] * 150, user_id=USER)
        records = await kept(here.export_user(USER))
        file.write_bytes(MARK + b"".join(map(framed, records)))
        await kill_at(proxy.hold(call_of("import"), nth, of_reply=True), proxy, file, there.name)
        assert (await there.purge(USER)).complete
        assert contents(there, USER) == {}
        assert (await there.check()).findings == ()
        stats = await there.stats()
        assert (stats.queued, stats.scheduled, stats.deferred) == (0, 0, 0)
        await there.import_user(records)
        assert (await there.check()).findings == ()
