"""The settings of a queue: all its processes share them, and who asks for others is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from fairque import InvalidInput, QueueSettings, SettingsMismatch, TaskFailed, TaskQueue, Worker, task
from fairque.worker.renewal import RENEWAL
from tests.support.command import call_command
from tests.support.servers import Server

pytestmark = pytest.mark.leaves_keys()


@task
async def say(word: str) -> str:
    return word


@task
async def repeat(word: str, times: int) -> str:
    return word * times


def opened(server: Server, name: str, **settings: object) -> TaskQueue:
    return TaskQueue(server.url, name=name, **settings)  # type: ignore[arg-type]


async def test_who_asks_for_nothing_is_given_what_the_first_one_stored(server: Server, queue_name: str):
    async with opened(server, queue_name, lease=3, fairness="time") as first:
        await first.enqueue(say("a"), user_id="anna")
    async with opened(server, queue_name) as second:
        assert second.settings == QueueSettings(lease_ms=3000, fairness="time")


async def test_looking_at_a_queue_that_nobody_uses_leaves_nothing_behind(server: Server, queue_name: str):
    async with opened(server, queue_name, lease=3) as queue:
        await queue.stats()
        await queue.users()
    assert server.keys(queue_name) == []


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"lease": 4}, "lease_ms 3000, not 4000"),
        ({"priority_step": 0}, "priority_step_ms 300000, not 0"),
        ({"fairness": "time"}, "fairness cost, not time"),
        ({"max_message_bytes": 1}, "max_message_bytes 262144, not 1"),
    ],
)
async def test_other_settings_are_refused_by_name(server: Server, queue_name: str, asked: dict, text: str):
    async with opened(server, queue_name, lease=3) as first:
        await first.enqueue(say("a"), user_id="anna")
    before = server.keys(queue_name)
    with pytest.raises(SettingsMismatch, match=text):
        await opened(server, queue_name, **asked).open()
    assert server.keys(queue_name) == before


async def test_a_queue_that_is_never_opened_by_hand_is_told_as_well(server: Server, queue_name: str):
    async with opened(server, queue_name, lease=3) as first:
        await first.enqueue(say("a"), user_id="anna")
        other = opened(server, queue_name, lease=4)
        try:
            for call in (other.stats, lambda: other.enqueue(say("b"), user_id="anna")):
                with pytest.raises(SettingsMismatch):
                    await call()
        finally:
            await other.close()
        assert (await first.user("anna")).queued == 1


async def test_a_worker_with_other_settings_does_not_serve(server: Server, queue_name: str):
    async with opened(server, queue_name) as queue:
        late = opened(server, queue_name, lease=4)
        handle = await queue.enqueue(say("a"), user_id="anna")
        with pytest.raises(SettingsMismatch):
            await Worker(late).run()
        await late.close()
        assert (await handle.info()).state == "queued"


async def test_a_worker_keeps_to_the_settings_of_a_queue_that_was_never_opened_by_hand(server: Server, queue_name: str):
    async with opened(server, queue_name, lease=2, result_ttl=30, max_message_bytes=1000, dead_letter_ttl=60) as first:
        kept, too_long = [await first.enqueue(repeat("a", times), user_id="anna") for times in (1, 2000)]
        other = opened(server, queue_name)
        async with Worker(other) as worker:
            assert await kept.result(20) == "a"
            with pytest.raises(TaskFailed, match="the limit is 1000"):
                await too_long.result(20)
            assert worker._parts is not None
            assert worker._parts.renewal._interval == pytest.approx(2 * RENEWAL)
        await other.close()
    ttls = [server.execute("PTTL", key) for key in server.keys(queue_name) if ":result:" in key]
    assert 0 < min(ttls) <= 30_000 < max(ttls) <= 60_000


async def test_what_a_user_used_is_kept_for_as_long_as_the_queue_says(server: Server, queue_name: str):
    async with opened(server, queue_name, usage_ttl=7200) as queue:
        await queue.enqueue(say("a"), user_id="anna")
        await Worker(queue, scheduler=False).run_until_idle()
        assert (await queue.usage("anna"))[-1].tasks == 1
    ttls = [server.execute("PTTL", key) for key in server.keys(queue_name) if ":metrics:" in key]
    assert len(ttls) == 2
    assert 0 < min(ttls) <= max(ttls) <= 7_200_000


async def test_what_two_ask_for_at_the_same_time_one_of_them_gets(server: Server, queue_name: str):
    queues = [opened(server, queue_name, lease=lease) for lease in (3, 4)]
    calls = [queue.enqueue(say("a"), user_id="anna") for queue in queues]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    for queue in queues:
        await queue.close()
    assert [type(end) for end in ends].count(SettingsMismatch) == 1


@pytest.mark.damages
async def test_data_of_another_layout_is_left_alone(server: Server, queue_name: str):
    async with opened(server, queue_name) as queue:
        await queue.enqueue(say("a"), user_id="anna")
        key = queue.keys.settings
    server.execute("HSET", key, "layout", 999)
    before = server.execute("HGETALL", key)
    with pytest.raises(SettingsMismatch, match="data of layout 999, this version of fairque reads and writes layout"):
        await opened(server, queue_name).open()
    assert server.execute("HGETALL", key) == before


async def test_settings_are_changed_for_those_who_open_the_queue_next(server: Server, queue_name: str):
    async with opened(server, queue_name, lease=3) as queue:
        await queue.enqueue(say("a"), user_id="anna")
        await queue.change_settings(lease=4, result_ttl=0)
        assert queue.settings.lease_ms == 3000  # until it starts again
    async with opened(server, queue_name, lease=4) as again:
        assert (again.settings.lease_ms, again.settings.result_ttl_ms) == (4000, 0)


async def test_a_change_that_breaks_a_rule_changes_nothing(server: Server, queue_name: str):
    async with opened(server, queue_name) as queue:
        for changes in ({}, {"lease": -1}, {"lease": 1, "fairness": "fair"}):
            with pytest.raises(InvalidInput):
                await queue.change_settings(**changes)
    assert server.keys(queue_name) == []


async def test_a_terminal_shows_and_changes_them(server: Server, queue_name: str, tmp_path: Path):
    async with opened(server, queue_name, lease=3) as queue:
        await queue.enqueue(say("a"), user_id="anna")
    file = tmp_path / "other.toml"
    file.write_text(f'redis.url = "{server.url}"\nqueue = {{name = "{queue_name}", lease = 9}}\n')
    shown = await call_command("settings", f"--config={file}")
    assert (shown.code, dict(line.split() for line in shown.out.splitlines())["lease"]) == (0, "3s")
    changed = await call_command("settings", "lease=9s", "max_message_bytes=1000", f"--config={file}", "--json")
    assert json.loads(changed.out)["lease_ms"] == 9000
    async with opened(server, queue_name, lease=9) as again:
        assert again.settings.max_message_bytes == 1000


@pytest.mark.parametrize("change", ["lease", "leas=3s", "lease=soon", "max_message_bytes=many", "fairness=fair"])
async def test_what_is_no_setting_is_refused_at_the_terminal(server: Server, queue_name: str, change: str):
    ended = await call_command("settings", change, f"--url={server.url}", f"--queue={queue_name}")
    assert ended.code == 2
    assert server.keys(queue_name) == []
