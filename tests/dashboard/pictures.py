"""Pictures of all pages for the documentation: ``python -m tests.dashboard.pictures docs/guides/dashboard``.

They are taken of a queue that works, on the embedded server, at 1280 and at 390 pixels.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, expect

from fairque import EVERYBODY, TaskQueue, TaskScheduler, Worker, current_task, task
from fairque.contrib.dashboard import Viewer, dashboard
from tests.dashboard.browser import chromium, served, watched

WIDTHS = {"wide": 1280, "phone": 390}
HEIGHTS = {("dead-letters", "wide"): 620}
"""Where it is another one than 900, or 800 on a phone: each picture has 150 KB at the most."""
LOOKING_SECONDS = 20.0
USERS = {"acme": 60, "globex": 30, "hooli": 12, "initech": 6, "stark": 9, "umbrella": 5, "wayne": 3}
"""Tasks that each puts in, every two seconds: more than there are slots for."""
PAGES = {
    "overview": "/",
    "users": "/users",
    "user": "/user?user=acme",
    "task": "/task?user=acme&task=report-2026-11",
    "dead-letters": "/dead-letters",
    "schedules": "/schedules",
    "workers": "/workers",
    "limits": "/limits",
    "health": "/health",
}


@task(name="mail.send", max_retries=2)
async def send(to: str) -> str:
    await asyncio.sleep(random.uniform(0.1, 0.9))
    return f"sent to {to}"


@task(name="report.part", max_retries=0)
async def part(month: str) -> int:
    if month == "2026-07":
        raise ConnectionError("the archive of 2026-07 did not answer within 30 s")
    return len(month)


@task(name="mail.check", max_retries=0)
async def refuse(n: int) -> None:
    raise ValueError(f"{n}@example.invalid is no address") if n % 3 else PermissionError("the relay refused it")


@task(name="report.join")
async def join(year: int) -> int:
    current_task().progress(0.4, "joining")
    return year


@asynccontextmanager
async def busy_queue() -> AsyncIterator[TaskQueue]:
    """Seven users share twenty slots; one puts in more than its part, another one is paused."""
    async with TaskQueue("embedded://", name="mail") as queue:
        await queue.set_policy("globex", weight=2)
        await queue.set_policy("initech", max_running=2, rate="120/m burst 20")
        await queue.set_policy("acme", max_running=12, max_queued=100_000, breaker="20/60s/30s")
        await queue.set_limit("smtp:{domain}", max_running=4, rate="200/m burst 20")
        await queue.set_limit("archive", max_running=2)
        await queue.set_limit("mail.send", max_running=16)
        await queue.set_limit("report.part", max_running=3, user_id="acme")
        await queue.pause_task("report.monthly")
        scheduler = TaskScheduler(queue)
        await scheduler.add_schedule("0 6 * * *", part("2026-11"), user_id="acme", schedule_id="morning report")
        await scheduler.add_schedule(every=900, task=send("digest"), user_id="acme", schedule_id="digest")
        months = [
            await queue.enqueue(part(f"2026-{n:02}"), user_id="acme", task_id=f"part-{n:02}") for n in range(6, 11)
        ]
        await queue.enqueue(join(2026), user_id="acme", task_id="report-2026-11", depends_on=months)
        await queue.enqueue(send("all"), user_id="acme", task_id="newsletter", depends_on=["report-2026-11"])
        await queue.enqueue(send("later"), user_id="acme", task_id="reminder", delay=7200)
        await queue.enqueue_many([refuse(n) for n in range(23)], user_id="stark")
        await queue.enqueue_many([refuse(n) for n in range(4)], user_id="wayne")
        await scheduler.run_now("digest")
        async with Worker(queue, worker_id="mail-1", concurrency=12), Worker(queue, worker_id="mail-2", concurrency=8):
            producing = asyncio.create_task(_produce(queue))
            try:
                yield queue
            finally:
                producing.cancel()
                await asyncio.wait([producing])


async def _produce(queue: TaskQueue) -> None:
    while True:
        for user, count in USERS.items():
            await queue.enqueue_many([send(f"{n}@example.com") for n in range(count)], user_id=user)
        await asyncio.sleep(2)


async def take(browser: Browser, site: str, folder: Path) -> None:
    """Each page, in each width, the overview in the dark as well."""
    for size, width in WIDTHS.items():
        for name, path in PAGES.items():
            height = HEIGHTS.get((name, size), 900 if width > 800 else 800)
            await _take_one(browser, site + path, folder / f"{name}-{size}.png", (width, height), "light")
    await _take_one(browser, site, folder / "overview-dark.png", (WIDTHS["wide"], 900), "dark")


async def _take_one(browser: Browser, address: str, file: Path, size: tuple[int, int], scheme: str) -> None:
    viewport = {"width": size[0], "height": size[1]}
    async with watched(browser, viewport=viewport, color_scheme=scheme, reduced_motion="reduce", timezone_id="UTC") as (
        _,
        page,
        _complaints,
    ):
        await page.goto(address)
        if await page.locator("#pulse").count():
            await expect(page.locator("#pulse")).to_have_text("Live")
        await page.wait_for_timeout(1500)  # until bars have come to rest
        await page.screenshot(path=file)


async def main(folder: Path) -> None:
    operator = Viewer("ops@example.com", users=EVERYBODY, acts=True, payloads=True)
    async with (
        busy_queue() as queue,
        served(dashboard(queue, authorize=lambda _: operator)) as site,
        chromium() as browser,
        watched(browser) as (_, page, _complaints),
    ):
        await page.goto(site)  # so that there is something to be seen of the last seconds
        await page.wait_for_timeout(LOOKING_SECONDS * 1000)
        await take(browser, site, folder)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
