"""Whatever somebody named something, and whatever an error or a result says: pages show it, and obey none of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fairque import RetryPolicy, TaskHandle, TaskQueue, TaskScheduler, Worker, current_task, task
from fairque.contrib.dashboard.words import GAP
from fairque.tasks.registry import unregister
from tests.dashboard.conftest import Ask
from tests.dashboard.test_guard import SHOWN
from tests.support.eventually import eventually
from tests.workers import tasks

pytestmark = pytest.mark.leaves_keys
EVIL = "\u202e\u2066\x1b[2J\r\x00</pre><script>alert(1)</script>\"'"
"""Turns the order of letters, clears a terminal, and ends whatever it stands in."""


@pytest.fixture
async def haunted(queue: TaskQueue) -> AsyncIterator[TaskQueue]:
    """Where everything that somebody may name has such a name."""

    @task(name=f"fails{EVIL}", max_retries=0)
    async def fails() -> None:
        current_task().progress(0.5, EVIL)
        raise type("Bad\u202e", (LookupError,), {})(f"one\ntwo {EVIL}")

    @task(name=f"returns{EVIL}", max_running=3)
    async def returns() -> dict[str, str]:
        return {EVIL: EVIL}

    ended = [await queue.enqueue(fails(), user_id=EVIL, task_id=EVIL, headers={EVIL: EVIL})]
    ended.append(await queue.enqueue(returns(), user_id=EVIL, task_id=f"returned{EVIL}"))
    async with Worker(queue, worker_id=EVIL):
        for each in ended:
            await eventually(lambda each=each: has_ended(each))
    await queue.enqueue(tasks.add(1, 2), user_id=EVIL, task_id=f"waits{EVIL}", delay=60)
    await queue.set_policy(EVIL, paused=True, group=f"group{EVIL}")
    await queue.pause_task(EVIL)
    await TaskScheduler(queue).add_schedule("0 9 * * *", tasks.add(1, 2), user_id=EVIL, schedule_id=EVIL)
    yield queue
    unregister(f"fails{EVIL}")
    unregister(f"returns{EVIL}")


async def has_ended(handle: TaskHandle[object]) -> bool:
    return (await handle.state()).ended


@pytest.mark.usefixtures("haunted")
async def test_no_text_turns_the_order_of_letters_hides_others_or_ends_what_it_stands_in(browse: Ask):
    browser = await browse()
    pages = {path: (await browser.get(path)).text for path in SHOWN if "?" not in path}
    pages["user"] = (await browser.get("/user", user=EVIL)).text
    for name in (EVIL, f"returned{EVIL}", f"waits{EVIL}"):
        pages[f"task {name}"] = (await browser.get("/task", user=EVIL, task=name)).text
    for which, page in pages.items():
        assert {char for char in page if not (char.isprintable() or char in f"\n{GAP}")} == set(), which
        assert page.count("<script") == 1, which
    assert "one\ntwo" in pages[f"task {EVIL}"], "lines of a traceback stay lines"


@pytest.fixture
async def verbose(queue: TaskQueue) -> AsyncIterator[TaskHandle[None]]:
    """A task that failed twenty times, each time with as long a text as is kept."""

    @task(name="verbose", retry=RetryPolicy(max=19, base=0))
    async def fails() -> None:
        raise LookupError("\u202e" * 20_000)

    handle = await queue.enqueue(fails(), user_id="anna", task_id="verbose")
    async with Worker(queue):
        await eventually(lambda: has_ended(handle))
    yield handle
    unregister("verbose")


@pytest.mark.usefixtures("verbose")
async def test_a_page_stays_small_whatever_its_task_says(browse: Ask):
    """Each is drawn once a second for as long as it is open, in the event loop of the app."""
    browser = await browse()
    for path in ("/task?user=anna&task=verbose", "/user?user=anna", "/dead-letters"):
        assert len((await browser.get(path)).text) < 200_000, path
    page = (await browser.get("/task?user=anna&task=verbose")).text
    assert page.count("<summary>Traceback") == 5
    assert page.count("LookupError</b>") == 20
