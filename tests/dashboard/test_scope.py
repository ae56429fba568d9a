"""A customer's view, tried from outside: its own page and nothing else, also through ids, counts, events and errors."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fairque import (
    EVERYBODY,
    BrokenSeal,
    ConfigError,
    FairqueError,
    QueueUnavailable,
    SettingsMismatch,
    StoreError,
    TaskHandle,
    TaskQueue,
    TaskState,
    Worker,
    WrongType,
    task,
)
from fairque.contrib.dashboard import Viewer, pace
from fairque.tasks.registry import unregister
from tests.dashboard.conftest import Ask, texts
from tests.support.eventually import eventually
from tests.workers import tasks

pytestmark = pytest.mark.leaves_keys
ANNA = Viewer("anna@example.com", users=["anna"], acts=True)
SECRET = "hunter2"
OTHERS = "zebra"
"""Part of every id that anna may not learn."""


@pytest.fixture
async def crowd(queue: TaskQueue) -> AsyncIterator[TaskQueue]:
    """Others have 1,234 tasks in line, some that failed, and run all there is."""

    @task(name="fails", max_retries=0)
    async def fails(secret: str) -> None:
        raise LookupError(secret)

    letters = [await queue.enqueue(fails(SECRET), user_id=f"{OTHERS}-1", task_id=f"{OTHERS}-dead")]
    letters.append(await queue.enqueue(fails(SECRET), user_id="anna", task_id="dead"))
    async with Worker(queue, worker_id=f"{OTHERS}-worker"):
        for letter in letters:
            await eventually(lambda letter=letter: is_dead(letter))
    await queue.enqueue_many([tasks.add(1, 2)] * 1234, user_id=f"{OTHERS}-1")
    await queue.enqueue(tasks.add(1, 2), user_id="anna", task_id="own", headers={"trace": SECRET})
    yield queue
    unregister("fails")


async def is_dead(handle: TaskHandle[None]) -> bool:
    return await handle.state() is TaskState.FAILED


FORBIDDEN = (
    *(
        "/users",
        "/users?find=anna",
        "/health",
        "/workers",
        "/limits",
        "/dead-letters",
        "/schedules",
        "/live?page=dead",
        "/user",
        "/task",
        "/task?user=anna",
        "/nothing",
    ),
    *(f"/user?user={OTHERS}-1", f"/task?user={OTHERS}-1&task={OTHERS}-dead", "/user?user=nobody", "/user?user=*"),
    *("/user?user=anna%00", "/user?user=ANNA", "/live", "/live?page=overview", "/live?page=users", "/live?page=health"),
    *(f"/live?page=user&user={OTHERS}-1", "/live?page=user", f"/live?page=task&user={OTHERS}-1&task={OTHERS}-dead"),
    f"/user?user=anna&user={OTHERS}-1",
)


@pytest.mark.usefixtures("crowd")
async def test_what_is_not_its_own_is_not_there_and_answers_are_the_same(browse: Ask):
    """Whether it exists or not: the answer is the one of a page that does not."""
    browser = await browse(ANNA)
    answers = {path: await browser.get(path) for path in ("/nothing", *FORBIDDEN)}
    assert {answer.status_code for answer in answers.values()} == {404}
    assert {texts(answer.text) for answer in answers.values()} == {texts(answers["/nothing"].text)}


async def test_its_pages_tell_nothing_of_others(browse: Ask, crowd: TaskQueue):
    browser = await browse(ANNA)
    for path in ("/user?user=anna", "/task?user=anna&task=own", "/task?user=anna&task=dead"):
        page = (await browser.get(path)).text
        for told in (OTHERS, "1,234", "1234", "of others", "Jain", "its part", "entitled", crowd.name):
            assert told not in page, (path, told)


@pytest.mark.usefixtures("crowd")
async def test_what_tasks_carry_is_hidden_where_it_was_not_allowed(browse: Ask):
    for viewer in (ANNA, Viewer("ops", users=EVERYBODY)):
        browser = await browse(viewer)
        for path in ("/user?user=anna", "/task?user=anna&task=own", "/task?user=anna&task=dead"):
            assert SECRET not in (await browser.get(path)).text
    browser = await browse(Viewer("anna", users=["anna"], payloads=True))
    assert SECRET in (await browser.get("/task?user=anna&task=own")).text
    assert SECRET in (await browser.get("/task?user=anna&task=dead")).text


async def test_acts_reach_its_own_tasks_only(browse: Ask, crowd: TaskQueue):
    browser, user, letter = await browse(ANNA), f"{OTHERS}-1", f"{OTHERS}-dead"
    before = await crowd.stats()
    for name in ("cancel", "start-now", "requeue", "discard"):
        refused = await browser.act(name, user=user, task=letter)
        assert (refused.status_code, OTHERS in refused.text) == (404, False)
    for name in (
        "pause",
        "resume",
        "check",
        "pause-name",
        "resume-name",
    ):  # these are the operator's, also where they are about itself
        assert (await browser.act(name, user="anna", name="n")).status_code == 404
    assert (await crowd.stats()).queued == before.queued
    assert await crowd.handle(user, letter).state() is TaskState.FAILED
    assert not (await crowd.get_policy("anna")).paused
    assert (await browser.act("requeue", user="anna", task="dead")).status_code == 303
    assert (await browser.act("cancel", user="anna", task="own")).status_code == 303
    assert await crowd.handle("anna", "own").state() is TaskState.CANCELED


@pytest.mark.usefixtures("crowd")
async def test_errors_tell_a_customer_nothing_of_the_server(browse: Ask):
    browser = await browse(ANNA)
    for path in ("/task?user=anna&task=never", "/user?user=anna&did=check", "/user?user=anna&did=%3Cb%3E"):
        page = (await browser.get(path)).text
        assert OTHERS not in page
        assert "<main" in page
        assert "looks at every key" not in page
    refused = await browser.act("requeue", user="anna", task="own")
    assert refused.status_code == 404
    assert OTHERS not in refused.text


async def test_a_customer_is_led_to_its_page(browse: Ask):
    answer = await (await browse(ANNA, under="/queues")).get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/queues/user?user=anna")
    page = (await (await browse(Viewer("both", users=["anna", "<b>"]))).get("/")).text
    assert "/user?user=anna" in page
    assert "&lt;b&gt;" in page
    nobody = await (await browse(Viewer("nobody", users=[]))).get("/")
    assert "nothing for you to see" in nobody.text
    assert (await (await browse(Viewer("nobody", users=[]))).get("/user?user=")).status_code == 404


@pytest.mark.usefixtures("crowd")
async def test_a_customers_page_is_read_from_what_is_its_own(browse: Ask, monkeypatch: pytest.MonkeyPatch):
    def nobody(*_: object, **__: object) -> None:
        raise AssertionError("this is about others")

    for look in ("shares", "stats", "overview", "users", "active_users", "health", "demand", "running", "limits"):
        monkeypatch.setattr(TaskQueue, look, nobody)
    browser = await browse(ANNA)
    for path in ("/user?user=anna", "/task?user=anna&task=own", "/task?user=anna&task=dead"):
        assert (await browser.get(path)).status_code == 200


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("redis://inner-host:6379 is a replica"),
        SettingsMismatch("queue 'inner-name' has other settings"),
        WrongType("inner-type"),
        StoreError("inner-command"),
        BrokenSeal("inner-key"),
        QueueUnavailable("redis://inner-host:6379 is not there"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_is_wrong_with_the_server_is_told_to_operators_alone(
    browse: Ask, monkeypatch: pytest.MonkeyPatch, error: FairqueError
):
    async def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(TaskQueue, "user", fails)
    monkeypatch.setattr(TaskQueue, "requeue", fails)
    browser = await browse(ANNA)
    for answer in (await browser.get("/user?user=anna"), await browser.act("requeue", user="anna", task="dead")):
        assert answer.status_code >= 500
        assert "inner" not in answer.text
    if not isinstance(error, QueueUnavailable | BrokenSeal):
        assert "inner" in (await (await browse()).get("/user?user=anna")).text


async def test_a_result_that_cannot_be_read_tells_nothing_of_the_server_and_is_asked_for_again(
    browse: Ask, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
):
    handle = await queue.enqueue(tasks.add(1, 2), user_id="anna", task_id="own")
    async with Worker(queue):
        assert await handle.result(10) == 3
    errors: list[FairqueError] = [StoreError("inner-host"), BrokenSeal("inner-key")]

    async def result(*_: object) -> None:
        raise errors.pop(0)

    browser = await browse(Viewer("anna", users=["anna"], payloads=True))
    with monkeypatch.context() as patch:
        patch.setattr(TaskHandle, "result", result)
        answers = [await browser.get("/task?user=anna&task=own") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [500, 200]
    assert "it is sealed, and cannot be read here" in answers[1].text
    assert "inner" not in "".join(answer.text for answer in answers)


async def test_a_customer_that_asks_without_an_end_is_told_to_wait_and_nobody_else_is(
    browse: Ask, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
):
    """Each page is a look at the server, for which whoever claims tasks waits."""
    now, who = 1000.0, [ANNA]
    monkeypatch.setattr(pace, "monotonic", lambda: now)
    await queue.enqueue(tasks.add(1, 2), user_id="anna", task_id="own", delay=60)
    browser = await browse(authorize=lambda _: who[0])
    csrf = await browser.csrf()

    async def asks() -> list[int]:
        return [
            (await browser.get("/user?user=anna")).status_code,
            (await browser.get("/task?user=anna&task=own")).status_code,
            (await browser.post("/act/start-now?user=anna&task=none", csrf=csrf)).status_code,
        ]

    answers = [await asks() for _ in range(20)]
    assert sum(each.count(429) for each in answers) == 10
    assert answers[0] == [200, 200, 404]
    assert answers[-1] == [429, 429, 429]
    assert (await browser.get("/live?page=user&user=anna")).status_code == 429
    for other in (Viewer("ops", users=EVERYBODY), Viewer("zoe", users=["anna"])):
        who[0] = other
        assert (await browser.get("/user?user=anna")).status_code == 200
    who[0], now = ANNA, now + 0.3
    assert await asks() == [200, 200, 404]
    assert (await browser.get("/user?user=anna")).status_code == 429


def test_who_asked_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    now, kept = 1000.0, pace.Pace()
    monkeypatch.setattr(pace, "monotonic", lambda: now)
    for n in range(3 * pace.MOST_REMEMBERED):
        now += 1.0
        assert kept.allows(Viewer(f"{n}", users=["anna"]))
    assert len(kept._even_at) <= pace.MOST_REMEMBERED
