"""The pages in a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlencode

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from fairque import TaskHandle, TaskQueue, TaskScheduler, TaskState, Worker, task
from fairque.contrib.dashboard import Viewer, dashboard, stream
from fairque.tasks.registry import unregister
from tests.dashboard.browser import CHROMIUM, chromium, served, watched
from tests.dashboard.conftest import OPERATOR
from tests.support.eventually import eventually
from tests.workers import tasks

pytestmark = [
    pytest.mark.leaves_keys,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on PATH"),
]
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
IDS = (
    EVIL,
    "\"' onmouseover=alert(3) x='",
    "../../etc/passwd",
    "50%25%00%0a&user=other#x?y",
    "line\nbreak\ttab\x00\x1b[31m",
    "🦊 \u202egnp.exe \u200b",
    "x" * 512,
)
AXE = {"resultTypes": ["violations"]}


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


@pytest.fixture
async def site(queue: TaskQueue) -> AsyncIterator[str]:
    async with served(dashboard(queue, authorize=lambda _: OPERATOR)) as address:
        yield address


@pytest.fixture
async def letters(queue: TaskQueue) -> AsyncIterator[TaskQueue]:
    """Each user with an odd id has a dead letter with an odd id and an odd error, and a task that waits."""

    @task(name=EVIL, max_retries=0)
    async def fails(text: str) -> None:
        raise ValueError(text)

    made = [
        await queue.enqueue(fails(name), user_id=name, task_id=name[:500], headers={"h": name[:100]}) for name in IDS
    ]
    async with Worker(queue):
        for handle in made:
            await eventually(lambda handle=handle: failed(handle))
    for name in IDS:
        await queue.enqueue(tasks.add(1, 2), user_id=name, task_id="waits")
    await queue.set_limit(EVIL[:100].replace("{", ""), max_running=2, user_id=EVIL)
    yield queue
    unregister(EVIL)


async def failed(handle: TaskHandle[None]) -> bool:
    return await handle.state() is TaskState.FAILED


def paths(user: str) -> Sequence[str]:
    """All pages, of this user."""
    task_id = user[:500]
    return (
        *(
            "/",
            "/users",
            "/users?order=dead",
            "/workers",
            "/limits",
            "/health",
            "/nothing",
            "/schedules",
            "/dead-letters",
        ),
        *(f"/users?{urlencode({'find': user})}", f"/user?{urlencode({'user': user})}"),
        f"/task?{urlencode({'user': user, 'task': task_id})}",
        f"/task?{urlencode({'user': user, 'task': 'waits'})}",
    )


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1041, "light"), (390, "dark")])
async def test_whatever_ids_and_errors_are_every_page_is_whole(site: str, browser: Browser, width: int, scheme: str):
    """Nothing runs, nothing scrolls sideways, nothing comes from elsewhere."""
    viewport = {"width": width, "height": 800}
    async with watched(browser, viewport=viewport, color_scheme=scheme) as (_, page, complaints):
        for user in IDS:
            for path in paths(user)[0 if user == EVIL else 9 :]:
                await page.goto(site + path)
                assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
                assert await page.locator("main img, main script, [onmouseover]").count() == 0, path
        assert [each for each in complaints if "404" not in each] == []


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
async def test_axe_finds_nothing(site: str, browser: Browser, width: int, scheme: str):
    viewport = {"width": width, "height": 800}
    async with watched(browser, viewport=viewport, color_scheme=scheme) as (_, page, _complaints):
        for path in paths(EVIL):
            await page.goto(site + path)
            for details in await page.locator("details:not(.ask)").all():
                await details.evaluate("each => each.open = true")
            found = await Axe().run(page, options=AXE)
            assert found.violations_count == 0, (path, found.generate_report())


async def test_targets_are_large_enough_for_a_thumb(site: str, browser: Browser, letters: TaskQueue):
    assert letters
    async with watched(browser, viewport={"width": 390, "height": 800}) as (_, page, _complaints):
        for path in paths("../../etc/passwd"):
            await page.goto(site + path)
            for each in await page.locator("nav a, button:visible, summary.button, .cards a, input[type=search]").all():
                box = await each.bounding_box()
                assert box is None or box["height"] >= 43.5, (path, await each.text_content(), box)


# What changes while a page is open


async def test_an_open_page_follows_the_queue_and_keeps_what_was_opened(site: str, browser: Browser, queue: TaskQueue):
    async with watched(browser) as (_, page, complaints):
        await page.goto(site)
        await expect(page.locator("#pulse")).to_have_text("Live")
        await expect(page.locator("#holders")).to_contain_text("Nothing runs and nothing waits.")
        await queue.enqueue_many([tasks.add(1, 2)] * 7, user_id="anna")
        await queue.enqueue_many([tasks.add(1, 2)] * 5, user_id="zoe")
        await expect(page.locator("#holders")).to_contain_text("anna")
        await expect(page.locator("#figures")).to_contain_text("12 tasks")
        async with Worker(queue):
            await expect(page.locator("#figures")).to_contain_text("12 finished")
        await page.locator("#waits summary").click()
        await queue.enqueue(tasks.add(1, 2), user_id="anna")
        await expect(page.locator("#figures")).to_contain_text("1 task")
        assert await page.locator("#waits details").evaluate("each => each.open")
        assert complaints == []


async def test_users_and_schedules_follow_the_queue(site: str, browser: Browser, queue: TaskQueue):
    async with watched(browser) as (_, page, complaints):
        await page.goto(f"{site}/users")
        await expect(page.locator("#pulse")).to_have_text("Live")
        await queue.enqueue(tasks.add(1, 2), user_id="<i>anna")
        await expect(page.locator("#users")).to_contain_text("<i>anna")
        await expect(page.locator("#known")).to_have_text("1 user is known.")
        for address in ("users?order=waiting", "users?find=a", "users?after=1:b"):
            await page.goto(f"{site}/{address}")
            await expect(page.locator("#users")).to_be_visible()
            assert await page.locator("#pulse").count() == 0
        await page.goto(f"{site}/schedules")
        await expect(page.locator("#pulse")).to_have_text("Live")
        await TaskScheduler(queue).add_schedule("0 9 * * *", tasks.add(1, 2), user_id="anna", schedule_id="nine")
        await expect(page.locator("#schedules")).to_contain_text("nine")
        assert complaints == []


@pytest.mark.parametrize("with_script", [True, False])
async def test_schedules_are_paused_resumed_and_run_on_their_page(
    site: str, browser: Browser, queue: TaskQueue, with_script: bool
):
    scheduler = TaskScheduler(queue)
    await scheduler.add_schedule("0 9 * * *", tasks.add(1, 2), user_id="anna", schedule_id=EVIL)
    async with watched(browser, java_script_enabled=with_script) as (_, page, complaints):
        for label, told in (("Pause", "fires no more"), ("Resume", "goes on"), ("Run now", "was put in")):
            await page.goto(f"{site}/schedules")
            await do(page, label)
            await expect(page.locator(".notice").first).to_contain_text(told)
        assert (await queue.user("anna")).queued == 1
        assert complaints == []
    await scheduler.remove_schedule(EVIL)


async def test_a_page_can_be_held_and_goes_on(site: str, browser: Browser, queue: TaskQueue):
    async with watched(browser) as (_, page, _complaints):
        await page.goto(f"{site}/user?user=anna")
        await expect(page.locator("#pulse")).to_have_text("Live")
        await page.locator("#pulse").click()
        await expect(page.locator("#pulse")).to_have_text("Held: go on")
        await queue.enqueue(tasks.add(1, 2), user_id="anna", task_id="new")
        await page.locator("#pulse").click()
        await expect(page.locator("#tasks")).to_contain_text("new")


async def test_who_may_look_no_longer_is_shown_no_more(
    browser: Browser, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stream, "ASKED_AGAIN_SECONDS", 0.5)
    viewers = [OPERATOR]
    async with (
        served(dashboard(queue, authorize=lambda _: viewers[0])) as site,
        watched(browser) as (_, page, _complaints),
    ):
        await page.goto(site)
        await expect(page.locator("#pulse")).to_have_text("Live")
        viewers[0] = Viewer("ops", users=["zoe"])
        await expect(page.locator("#pulse")).to_have_text("Not live: reload")
        await queue.enqueue(tasks.add(1, 2), user_id="secret-user")
        assert "secret-user" not in await page.content()


async def test_an_outage_is_told_in_words_and_over_when_it_is(browser: Browser, own_server):
    server = own_server()
    async with (
        TaskQueue(server.url, timeout=1) as queue,
        watched(browser) as (_, page, _complaints),
        served(dashboard(queue, authorize=lambda _: OPERATOR)) as site,
    ):
        await page.goto(site)
        await expect(page.locator("#pulse")).to_have_text("Live")
        server.kill()
        await expect(page.locator("#trouble")).to_contain_text("The queue does not answer.", timeout=10_000)
        assert (await page.context.request.get(f"{site}/users")).status == 503
        server.start()
        await expect(page.locator("#trouble")).to_be_hidden(timeout=20_000)


# What can be done


async def do(page: Page, label: str) -> None:
    """Press a button; where it is asked for twice, twice."""
    asked = page.locator("summary", has_text=label)
    if await asked.count():
        await asked.click()
    await page.get_by_role("button", name=label, exact=True).click()


@pytest.mark.parametrize("with_script", [True, False])
@pytest.mark.parametrize("user", [IDS[4], EVIL])
async def test_every_act_is_done_and_told(
    site: str, browser: Browser, letters: TaskQueue, user: str, with_script: bool
):
    queue = letters
    await queue.enqueue(tasks.add(1, 2), user_id=user, task_id="cancel me")
    await queue.enqueue(tasks.add(1, 2), user_id=user, task_id="later", delay=3600)
    await queue.pause_task(user)
    async with watched(browser, java_script_enabled=with_script) as (_, page, complaints):

        async def act(path: str, label: str, told: str) -> None:
            await page.goto(f"{site}/{path}")
            await do(page, label)
            await expect(page.locator(".notice").first).to_contain_text(told)

        page_of_user = f"user?{urlencode({'user': user})}"
        await act(page_of_user, "Pause", "The user is paused")
        assert (await queue.get_policy(user)).paused is True
        await act(page_of_user, "Resume", "The user goes on")
        assert not (await queue.get_policy(user)).paused
        await act(f"task?{urlencode({'user': user, 'task': 'cancel me'})}", "Cancel", "canceled")
        assert await queue.handle(user, "cancel me").state() is TaskState.CANCELED
        await act(f"task?{urlencode({'user': user, 'task': 'later'})}", "Start now", "may start now")
        assert await queue.handle(user, "later").state() is TaskState.QUEUED
        letter = f"task?{urlencode({'user': IDS[1], 'task': IDS[1]})}"
        await act(letter, "Run again", "waits for its turn again")
        assert await queue.handle(IDS[1], IDS[1]).state() is TaskState.QUEUED
        await act(f"task?{urlencode({'user': IDS[2], 'task': IDS[2]})}", "Discard", "is gone")
        assert IDS[2] not in [each.task_id for each in await queue.dead_letters()]
        await act("limits", "Resume", "go on")
        assert not (await queue.stats()).paused_tasks
        await act("health", "Check now", "The check has begun")
        await eventually(lambda: _says(page, "#doctor", "Nothing is wrong"))
        assert complaints == []


async def _says(page: Page, part: str, text: str) -> bool:
    await page.reload()
    return text in (await page.locator(part).text_content() or "")


async def test_what_cannot_be_done_any_more_is_said_and_changes_nothing(site: str, browser: Browser, queue: TaskQueue):
    handle = await queue.enqueue(tasks.add(1, 2), user_id="anna", task_id="a")
    async with watched(browser) as (_, page, _complaints):
        await page.goto(f"{site}/task?user=anna&task=a")
        await handle.cancel("by somebody else")
        await do(page, "Cancel")
        await expect(page.locator("main")).to_contain_text("The task had ended before")


# Without a script, by keyboard, elsewhere


async def test_without_a_script_pages_are_read_and_led_through(site: str, browser: Browser, queue: TaskQueue):
    for n in range(60):
        await queue.enqueue(tasks.add(1, 2), user_id=f"user-{n:02}")
    async with watched(browser, java_script_enabled=False, timezone_id="Asia/Tokyo") as (_, page, _complaints):
        await page.goto(site)
        assert await page.locator("#pulse").is_hidden()
        await page.get_by_role("link", name="Reload").click()
        await page.get_by_role("link", name="Users", exact=True).first.click()
        await expect(page.locator("tbody tr")).to_have_count(50)
        await page.get_by_role("link", name="Less recent").click()
        await expect(page.locator("tbody tr")).to_have_count(10)
        await page.get_by_label("Id of a user").fill("user-07")
        await page.get_by_role("button", name="Find").click()
        await page.get_by_role("link", name="user-07").click()
        await expect(page.locator("h1")).to_have_text("User user-07")
        assert "UTC" in await page.locator("#state time").inner_text()


async def test_times_are_those_of_the_viewer(site: str, browser: Browser, queue: TaskQueue):
    await queue.enqueue(tasks.add(1, 2), user_id="anna")
    at = (await queue.user("anna")).seen_at
    assert at is not None
    shown = []
    for zone in ("UTC", "Asia/Kathmandu"):
        async with watched(browser, timezone_id=zone, locale="en-GB") as (_, page, _complaints):
            await page.goto(f"{site}/user?user=anna")
            shown.append(await page.locator("#state time").inner_text())
    minutes = [int(text.split()[-1].split(":")[0]) * 60 + int(text.split()[-1].split(":")[1]) for text in shown]
    assert (minutes[1] - minutes[0]) % (24 * 60) == 5 * 60 + 45


async def test_a_page_is_gone_through_by_keyboard(site: str, browser: Browser, queue: TaskQueue):
    await queue.enqueue(tasks.add(1, 2), user_id="anna", task_id="a")
    async with watched(browser) as (_, page, _complaints):
        await page.goto(f"{site}/task?user=anna&task=a")
        await page.keyboard.press("Tab")
        await expect(page.locator(":focus")).to_have_text("Skip to the content")
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await expect(page.locator(":focus")).to_have_text("anna")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.locator(".notice").first).to_contain_text("canceled")


async def test_a_customer_in_a_browser_sees_its_page_alone(browser: Browser, letters: TaskQueue):
    anna = Viewer("anna", users=[IDS[2]], acts=True)
    async with (
        served(dashboard(letters, authorize=lambda _: anna)) as site,
        watched(browser) as (_, page, complaints),
    ):
        await page.goto(site)
        await expect(page.locator("h1")).to_have_text(f"User {IDS[2]}")
        await expect(page.locator("#pulse")).to_have_text("Live")
        assert await page.locator("nav").count() == 0
        content = await page.content()
        assert not any(other in content for other in ("50%25", "x" * 40, letters.name))
        assert complaints == []


async def test_a_page_of_a_stranger_can_send_no_form_and_spoils_none(site: str, browser: Browser, queue: TaskQueue):
    page_of_stranger = (
        f'<a href="{site}/limits">look</a><form method="post" action="{site}/act/pause-name?name=theirs">'
        '<input name="csrf" value="x"><button>Win</button></form>'
    )

    async def stranger(scope: Scope, receive: Receive, send: Send) -> None:
        await HTMLResponse(page_of_stranger)(scope, receive, send)

    async with served(stranger) as other, watched(browser) as (context, page, _):
        await page.goto(f"{site}/limits")
        elsewhere = await context.new_page()
        for _ in range(2):
            await elsewhere.goto(other.replace("127.0.0.1", "localhost"))
            await elsewhere.click("a")
            await expect(elsewhere.locator("h1")).to_have_text("Limits")
        await elsewhere.goto(other.replace("127.0.0.1", "localhost"))
        await elsewhere.click("button")
        await expect(elsewhere.locator("body")).to_have_text("This was not sent by a page of this dashboard.")
        await page.fill("#name", "mine")
        await page.click("form.line button")
        await expect(page.locator(".notice").first).to_contain_text("Nothing more of this name is started.")
        assert (await queue.stats()).paused_tasks == ("mine",)
