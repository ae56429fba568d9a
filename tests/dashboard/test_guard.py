"""What stands before the pages: who is let in, from where, and with which forms."""

from __future__ import annotations

import asyncio
import logging
import re
from urllib.parse import unquote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount

from fairque import EVERYBODY, InvalidInput, TaskQueue, TaskState, WrongType
from fairque.contrib.dashboard import Token, Viewer, dashboard
from tests.dashboard.conftest import OPERATOR, Ask, texts
from tests.workers import tasks

SHOWN = (
    "/",
    "/users",
    "/user?user=anna",
    "/task?user=anna&task=a",
    "/dead-letters",
    "/schedules",
    "/workers",
    "/limits",
    "/health",
)
PAGES = (*SHOWN, "/live?page=overview", "/nothing")


# Who is let in


@pytest.mark.parametrize("path", PAGES)
async def test_nobody_sees_anything_unless_authorize_says_who_it_is(browse: Ask, path: str):
    browser = await browse(None)
    answer = await browser.get(path)
    assert (answer.status_code, answer.text) == (403, "This dashboard is not open to you.\n")
    answer = await browser.post(path)
    assert answer.status_code == 403


async def test_a_dashboard_is_not_made_without_authorize(queue: TaskQueue):
    with pytest.raises(TypeError, match="authorize"):
        dashboard(queue)  # type: ignore[call-arg]
    with pytest.raises(WrongType, match="authorize must be a function that says who asks, not None"):
        dashboard(queue, authorize=None)  # type: ignore[arg-type]


async def test_what_is_no_viewer_is_not_let_in(browse: Ask):
    browser = await browse(authorize=lambda _: True)
    assert (await browser.get("/")).status_code == 500


async def test_authorize_may_be_async_and_may_answer_itself(browse: Ask):
    async def to_login(_: Request) -> RedirectResponse:
        return RedirectResponse("/login")

    answer = await (await browse(authorize=to_login)).get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/login")


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_viewer_has_a_name(name: object):
    with pytest.raises(InvalidInput, match="name of a viewer"):
        Viewer(name, users=EVERYBODY)  # type: ignore[arg-type]


@pytest.mark.parametrize("users", ["anna", None, [""], ["*"], [3]])
def test_whose_data_a_viewer_sees_is_said_as_a_list(users: object):
    with pytest.raises(InvalidInput):
        Viewer("anna", users=users)  # type: ignore[arg-type]


def test_a_viewer_may_nothing_that_is_not_said():
    assert Viewer("anna", users=[]).rights == ("anna", frozenset(), False, False)
    assert Viewer("anna", users=["a", "b"]).rights == Viewer("anna", users=["b", "a"]).rights


# Under which names


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example", "[::1", "a b"],
)
async def test_a_name_that_is_not_of_this_host_gets_nothing(browse: Ask, host: str):
    """A page of a stranger may have its name resolve to 127.0.0.1."""
    browser = await browse()
    for path in (*PAGES, "/static/dashboard.css"):
        answer = await browser.client.get(path, headers={"host": host})
        assert answer.status_code == 400, path
        assert "fairque" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8321", "127.0.0.1:1", "[::1]:80", "[::1]"])
async def test_the_names_of_this_machine_are_known_by_default(browse: Ask, host: str):
    browser = await browse()
    assert (await browser.client.get("/health", headers={"host": host})).status_code == 200


async def test_the_names_of_a_service_are_said(browse: Ask):
    browser = await browse(hosts=["ops.example.com"])
    assert (await browser.client.get("/", headers={"host": "ops.example.com:8443"})).status_code == 200
    assert (await browser.client.get("/", headers={"host": "localhost"})).status_code == 400


@pytest.mark.parametrize(
    "host",
    ["https://ops.example.com", "ops.example.com:80", "a b", "", "x/y", "*", "*.example.com", "öps.example.com", 3],
)
async def test_hosts_are_plain_names(queue: TaskQueue, host: object):
    with pytest.raises(InvalidInput, match="hosts are names"):
        dashboard(queue, authorize=lambda _: OPERATOR, hosts=[host])  # type: ignore[list-item]


async def test_a_question_whether_a_page_can_be_followed_is_answered_and_holds_no_place(browse: Ask):
    browser = await browse(most_open=1)
    for _ in range(2):
        answer = await browser.client.head("/live?page=overview")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


# What a browser may do with a page


@pytest.mark.parametrize("path", [*SHOWN, "/nothing", "/static/dashboard.js"])
async def test_every_answer_denies_foreign_scripts_frames_and_caches(browse: Ask, path: str):
    answer = await (await browse()).get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"


async def test_style_and_script_are_kept_by_browsers_under_their_version(browse: Ask):
    browser = await browse()
    page = (await browser.get("/")).text
    [address] = [part.split('"')[0] for part in page.split('src="') if part.startswith("/static/")]
    assert "immutable" in (await browser.client.get(address)).headers["cache-control"]
    assert (await browser.get("/static/nothing.js")).status_code == 404


@pytest.mark.leaves_keys
async def test_pages_have_no_script_and_no_style_of_their_own(browse: Ask, queue: TaskQueue):
    await queue.enqueue(tasks.add(1, 2), user_id="anna", task_id="a")
    browser = await browse()
    for path in SHOWN:
        page = (await browser.get(path)).text
        assert page.count("<script") == page.count('<script src="/static/') == 1
        assert "style=" not in page.replace("data-style=", "")
        assert " onclick" not in page


# Forms


async def test_an_act_needs_the_token_of_a_form_and_the_origin_of_a_page(browse: Ask, queue: TaskQueue):
    handle = await queue.enqueue(tasks.add(1, 2), user_id="anna", task_id="a")
    browser = await browse()
    csrf, form = await browser.csrf(), {"user": "anna", "task": "a"}
    other = "x" * 43
    assert (await browser.post("/act/cancel", **form)).status_code == 403
    assert (await browser.post("/act/cancel", csrf="", **form)).status_code == 403
    assert (await browser.post("/act/cancel", csrf=other, **form)).status_code == 403
    for origin in (
        None,
        "null",
        "http://evil.example",
        "http://localhost.evil.example",
        "http://localhost:1",
        "file://",
    ):
        assert (await browser.post("/act/cancel", csrf=csrf, origin=origin, **form)).status_code == 403, origin
    assert await handle.state() is TaskState.QUEUED
    assert (await browser.post("/act/cancel", csrf=csrf, **form)).status_code == 303
    assert await handle.state() is TaskState.CANCELED


async def test_a_form_that_another_site_sent_is_refused_whatever_it_says_of_its_origin(browse: Ask):
    browser = await browse()
    csrf = await browser.csrf()
    answer = await browser.client.post(
        "/act/pause",
        data={"csrf": csrf, "user": "anna"},
        headers={"origin": "http://localhost", "sec-fetch-site": "cross-site"},
    )
    assert answer.status_code == 403


async def test_a_form_without_a_cookie_is_refused(browse: Ask):
    browser = await browse()
    assert (await browser.post("/act/pause", csrf="", user="anna")).status_code == 403


async def test_a_form_is_not_read_without_an_end(browse: Ask):
    browser = await browse()
    csrf = await browser.csrf()
    assert (await browser.post("/act/pause", csrf=csrf, user="a" * 70_000)).status_code == 413
    answer = await browser.client.post("/act/pause", content=b"\xff=1", headers={"origin": "http://localhost"})
    assert answer.status_code == 400


async def test_a_cookie_that_somebody_else_wrote_is_replaced(browse: Ask):
    browser = await browse()
    answer = await browser.client.get("/health", headers={"cookie": "fairque_csrf=known-to-a-stranger"})
    cookie = answer.headers["set-cookie"]
    assert "known" not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


async def test_an_act_is_not_done_by_a_link(browse: Ask):
    assert (await (await browse()).get("/act/pause", user="anna")).status_code == 405


@pytest.mark.leaves_keys
async def test_who_only_reads_cannot_act_and_sees_no_forms(browse: Ask, queue: TaskQueue):
    handle = await queue.enqueue(tasks.add(1, 2), user_id="anna", task_id="a")
    browser = await browse(Viewer("reader", users=EVERYBODY))
    for name in ("pause", "resume", "cancel", "start-now", "requeue", "discard", "check", "pause-name", "resume-name"):
        assert (await browser.act(name, user="anna", task="a", name="n")).status_code == 404
    assert await handle.state() is TaskState.QUEUED
    for path in SHOWN:
        assert 'method="post"' not in (await browser.get(path)).text


async def test_every_act_is_in_the_audit_log_and_so_is_what_was_refused(
    browse: Ask, queue: TaskQueue, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "fairque.dashboard.audit")
    await queue.enqueue(tasks.add(1, 2), user_id="an\nna", task_id="a")
    await (await browse()).act("cancel", user="an\nna", task="a")
    await (await browse()).act("cancel", user="an\nna", task="a")
    await (await browse(Viewer("reader", users=EVERYBODY))).act("cancel", user="anna", task="a")
    await (await browse()).post("/act/cancel", csrf="forged", user="anna", task="a")
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("audit")]
    assert lines[0] == r"'ops' did cancel('an\nna', 'a')"
    assert lines[1].startswith(r"'ops' failed to cancel('an\nna', 'a'): ")
    assert lines[2] == "'reader' may not cancel('anna', 'a')"
    assert lines[3].startswith("'ops' was refused at '/act/cancel': ")


async def test_nobody_fills_the_audit_log_with_long_texts(browse: Ask, caplog: pytest.LogCaptureFixture):
    browser = await browse(Viewer("anna", users=["anna"], acts=True))
    long, longest = "\x00" * 10_000, "\U000e0001" * 128
    await browser.act("cancel", user=long, task=long)
    await browser.act("cancel", user="anna", task=long)
    await browser.post(f"/act/{'x' * 10_000}")
    await browser.act("x" * 10_000)
    await browser.act("cancel", user="anna", task=longest)
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("audit")]
    assert len(lines) == 5
    assert max(map(len, lines)) < 12_000
    assert repr(longest) in lines[-1]


async def test_an_act_that_is_broken_off_is_in_the_audit_log(
    browse: Ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """It may have been done."""
    begun = asyncio.Event()

    async def pause_for_long(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(TaskQueue, "pause", pause_for_long)
    acting = asyncio.create_task((await browse()).act("pause", user="anna"))
    await begun.wait()
    acting.cancel()
    await asyncio.wait([acting])
    assert "'ops' failed to pause('anna',): CancelledError" in caplog.text


# The token in the URL


async def test_the_token_of_the_url_becomes_a_cookie_at_once(browse: Ask):
    token = Token(acts=True)
    browser = await browse(authorize=token, under="/queues")
    assert (await browser.get("/")).status_code == 403
    assert (await browser.get("/", token="x" * 43)).status_code == 403
    answer = await browser.get("/users", token=token.secret, order="wait")
    assert (answer.status_code, answer.headers["location"]) == (303, "/queues/users?order=wait")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "Path=/queues" in cookie
    assert token.secret not in (await browser.get("/users")).text
    assert (await browser.get("/users")).status_code == 200
    assert token.secret not in repr(token)


# Under a prefix


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("/%5Cevil.example", "/%5Cevil.example/queues"),
        ("//evil.example", "/evil.example/queues"),
        ("/x;%20Domain=evil.example", "/x%3B%20Domain=evil.example/queues"),
        ("/x%0D%0Aset-cookie:%20a=b", "/x%0D%0Aset-cookie:%20a=b/queues"),
        ("/%22%3E%3Cscript%3E", "/%22%3E%3Cscript%3E/queues"),
        ("/a%20b/%C3%A9", "/a%20b/%C3%A9/queues"),
    ],
)
async def test_a_prefix_that_who_asks_has_chosen_leads_nowhere_else(queue: TaskQueue, path: str, base: str):
    """Where it is a parameter of the app, such as the name of a tenant, a link of a stranger may say what it is."""
    token = Token()
    pages = dashboard(queue, authorize=token)
    transport = httpx.ASGITransport(pages, root_path=f"{unquote(path)}/queues")
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        asked = f"http://localhost{path}/queues/health"
        exchanged = await client.get(f"{asked}?token={token.secret}")
        assert exchanged.headers["location"] == f"{base}/health"
        cookie = {"cookie": exchanged.headers["set-cookie"].partition(";")[0]}
        page = await client.get(asked, headers=cookie)
        assert page.status_code == 200
        for answer in (exchanged, page):
            parts = answer.headers["set-cookie"].split("; ")
            assert [part for part in parts if "=" in part and not part.startswith("fairque_")] in (
                [f"Path={base}", "SameSite=Lax"],
                [f"Path={base}", "SameSite=lax"],
            )
        for part in re.findall(r' (?:href|src|action|data-live)="([^"]*)"', page.text):
            assert part.startswith((f"{base}/", "#")), part


@pytest.mark.leaves_keys
async def test_it_works_mounted_under_any_path(queue: TaskQueue):
    inner = Starlette(routes=[Mount("/queues", dashboard(queue, authorize=lambda _: OPERATOR))])
    outer = Starlette(routes=[Mount("/ops", inner)])
    await queue.enqueue(tasks.add(1, 2), user_id="anna", task_id="a")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://localhost") as client:
        for path in SHOWN:
            answer = await client.get(f"/ops/queues{path}")
            assert answer.status_code == 200, path
            for part in answer.text.split('href="')[1:]:
                address = part.split('"')[0].replace("&amp;", "&")
                assert address.startswith(("/ops/queues/", "#")), address
                if address.startswith("/"):
                    assert (await client.get(address)).status_code == 200, address
        assert (await client.get("/ops/queues", follow_redirects=True)).status_code == 200


# Junk


JUNK = ("", "*", "x" * 600, "\x00", "\ud7ff", "1e9", "-1", "0:", "a:b", "%", "error ", "1:2:3", "99999999999999999999")


@pytest.mark.leaves_keys
async def test_junk_in_an_address_is_answered_in_words(browse: Ask):
    """Whatever it is: nothing of it is an error of the server."""
    browser = await browse()
    names = {
        "/users": ("find", "order", "after"),
        "/user": ("user",),
        "/task": ("user", "task"),
        "/dead-letters": ("group", "at", "user", "task"),
        "/schedules": ("after",),
        "/limits": ("after", "user", "own"),
        "/live": ("page",),
    }
    for path, arguments in names.items():
        for junk in JUNK:
            for params in (*({name: junk} for name in arguments), dict.fromkeys(arguments, junk)):
                answer = await browser.get(path, **params, did=junk)
                assert answer.status_code in (200, 404, 422), (path, params, texts(answer.text))
    for act in ("cancel", "requeue", "pause", "pause-name", "requeue-group", "run-schedule", "no-such-act", "%00"):
        for junk in JUNK[1:]:
            given = dict.fromkeys(("user", "task", "name", "group", "schedule"), junk)
            answer = await browser.act(act, **given)
            assert answer.status_code in (303, 404, 422), (act, junk, texts(answer.text))
