"""What is done to many at once, and to schedules."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fairque import InvalidInput, ScheduleState, TaskQueue, TaskScheduler, Worker, task
from fairque.contrib.dashboard.bulk import MOST_AT_ONCE, Bulks
from fairque.tasks.registry import unregister
from tests.dashboard.conftest import Ask, texts
from tests.support.calls import call_of
from tests.support.eventually import eventually
from tests.support.proxy import CuttingProxy
from tests.workers import tasks

pytestmark = pytest.mark.leaves_keys


@pytest.fixture
async def letters(queue: TaskQueue) -> AsyncIterator[TaskQueue]:
    """Of two kinds: 130 of one and 3 of another, of two users."""

    @task(name="fails", max_retries=0)
    async def fails(kind: str) -> None:
        raise LookupError(kind) if kind == "lookup" else ZeroDivisionError(kind)

    await queue.enqueue_many([fails("lookup")] * 120, user_id="anna")
    await queue.enqueue_many([fails("lookup")] * 10 + [fails("zero")] * 3, user_id="zoe")
    async with Worker(queue, concurrency=50):
        await eventually(lambda: _dead(queue, 133))
    yield queue
    unregister("fails")


async def _dead(queue: TaskQueue, count: int) -> bool:
    return (await queue.dead_groups()).total == count


async def test_letters_are_grouped_by_their_errors_and_requeued_together(browse: Ask, letters: TaskQueue):
    browser = await browse()
    page = texts((await browser.get("/dead-letters")).text)
    assert "133 tasks have failed for good." in page
    keys = {group.type_name: group.key for group in (await letters.dead_groups()).groups}
    of_kind = await browser.get("/dead-letters", group=keys["ZeroDivisionError"])
    assert of_kind.text.count("/task?user=zoe") == 3
    assert (await browser.act("requeue-group", group=keys["LookupError"])).status_code == 303
    await eventually(lambda: _dead(letters, 3))
    shown = await eventually(lambda: _says(browser, "130 done, nothing is left"))
    assert shown
    assert (await letters.stats()).queued == 130


async def test_letters_of_a_kind_are_discarded_together_page_by_page(browse: Ask, letters: TaskQueue):
    browser = await browse()
    keys = {group.type_name: group.key for group in (await letters.dead_groups()).groups}
    first = (await browser.get("/dead-letters", group=keys["LookupError"])).text
    [more] = [part.split('"')[0] for part in first.split('rel="next" href="')[1:]]
    assert "/task?user=" in (await browser.get(more.replace("&amp;", "&"))).text
    await browser.act("discard-group", group=keys["LookupError"])
    await eventually(lambda: _dead(letters, 3))
    assert (await letters.stats()).queued == 0


async def _says(browser: object, text: str) -> bool:
    return text in texts((await browser.get("/dead-letters")).text)  # type: ignore[attr-defined]


async def test_what_goes_on_is_not_begun_twice_and_can_be_stopped(letters: TaskQueue, proxy: CuttingProxy):
    bulks, group = Bulks(), await _lookup_errors(letters)
    hold = proxy.hold(call_of("requeue"), nth=3)  # within the second step, whoever's letters are in the first
    async with TaskQueue(proxy.url, name=letters.name, timeout=60) as queue:
        await bulks.requeue(queue, group)
        [bulk] = bulks.shown()
        await hold.reached.wait()
        assert (bulk.done, bulk.kept, bulk.left, round(bulk.part, 2)) == (100, 0, 30, 0.77)
        with pytest.raises(InvalidInput, match="already"):
            await bulks.requeue(queue, group)
        for n in range(MOST_AT_ONCE - 1):
            await bulks.requeue(queue, f"error {n}")
        with pytest.raises(InvalidInput, match="wait for one of them"):
            await bulks.requeue(queue, "error of one more")
        for each in bulks.shown():
            await bulks.stop(queue, each.group)
            assert (each.has_ended, each.trouble) == (True, "it was stopped")
        with pytest.raises(InvalidInput, match="Nothing is done"):
            await bulks.stop(queue, group)
        hold.released.set()
        await bulks.requeue(queue, group)
        await eventually(lambda: _dead(letters, 3))


async def test_letters_for_which_there_is_no_room_are_kept_and_counted(letters: TaskQueue):
    bulks, group = Bulks(), await _lookup_errors(letters)
    await letters.set_policy("zoe", max_queued=4)
    await bulks.requeue(letters, group)
    [bulk] = bulks.shown()
    await eventually(lambda: bulk.has_ended)
    assert (bulk.trouble, bulk.done + bulk.kept) == ("", 130)
    assert bulk.kept >= 6
    assert (await letters.user("anna")).queued == 120


async def test_an_outage_ends_it_in_words_and_it_can_be_begun_again(letters: TaskQueue, proxy: CuttingProxy):
    bulks, group = Bulks(), await _lookup_errors(letters)
    async with TaskQueue(proxy.url, name=letters.name, timeout=0.5) as queue:
        await proxy.refuse()
        for _ in range(2):
            await bulks.discard(queue, group)
            [bulk] = bulks.shown()
            await eventually(lambda bulk=bulk: bulk.has_ended)
            assert "is not available" in bulk.trouble
        await proxy.accept()
        await bulks.discard(queue, group)
        await eventually(lambda: _dead(letters, 3))
    assert bulks.shown()[0].trouble == ""


async def _lookup_errors(queue: TaskQueue) -> str:
    return next(group.key for group in (await queue.dead_groups()).groups if group.type_name == "LookupError")


async def test_a_schedule_is_paused_resumed_and_run_now(browse: Ask, queue: TaskQueue):
    scheduler, odd = TaskScheduler(queue), '<b>nine & "ten"\n'
    await scheduler.add_schedule("0 9 * * *", tasks.add(1, 2), user_id="anna", schedule_id=odd)
    browser = await browse()
    assert "0 9 * * *" in texts((await browser.get("/schedules")).text)
    for act, state in (("pause-schedule", ScheduleState.PAUSED), ("resume-schedule", ScheduleState.ACTIVE)):
        assert (await browser.act(act, schedule=odd)).status_code == 303
        assert (await scheduler.get_schedule(odd)).state is state
    assert (await browser.act("run-schedule", schedule=odd)).status_code == 303
    assert (await queue.user("anna")).queued == 1
    page = texts((await browser.get("/schedules")).text)
    assert "by-hand" in page
    assert "queued" in page
    assert (await browser.act("run-schedule", schedule="nothing")).status_code == 404


async def test_a_user_and_a_name_are_paused_where_they_are_shown(browse: Ask, queue: TaskQueue):
    browser = await browse()
    assert (await browser.act("pause-name", name="mail.send")).status_code == 303
    assert "mail.send" in texts((await browser.get("/limits")).text)
    assert (await browser.act("resume-name", name="mail.send")).status_code == 303
    assert (await queue.stats()).paused_tasks == ()
    assert (await browser.act("pause-name", name="x" * 600)).status_code == 422
