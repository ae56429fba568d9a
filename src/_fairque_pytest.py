"""The pytest plugin of fairque. It stands outside of the package, so that pytest starts without importing that.

Fixtures that need an event loop exist several times, once for each way to get one; the one that its test runs in is
chosen when the test asks for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from fairque import TaskQueue, Worker

URL_VARIABLE = "FAIRQUE_TEST_REDIS_URL"
URL_OPTION = "fairque_redis_url"
ON_ASYNCIO = "fairque-asyncio"
_NOT_ASYNC = "is for async tests: mark the test with pytest.mark.asyncio (pytest-asyncio) or pytest.mark.anyio"
_MISUSED = "cannot tell who runs the test: pytest-asyncio takes all async tests (auto mode), and this one is for anyio"
LOOP_SCOPES: tuple[Literal["function", "class", "module", "package", "session"], ...] = (
    "function",
    "class",
    "module",
    "package",
    "session",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(URL_OPTION, f"URL of a Redis for the fixtures, unless {URL_VARIABLE} is set", "string", "")


def pytest_configure(config: pytest.Config) -> None:
    _register(config, "fairque-anyio", {"anyio": pytest.fixture})
    if "pytest_asyncio" in sys.modules:
        from pytest_asyncio import fixture

        _register(config, ON_ASYNCIO, {scope: fixture(loop_scope=scope) for scope in LOOP_SCOPES})


@pytest.fixture(scope="session")
def fairque_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """URL of a Redis for tests: `FAIRQUE_TEST_REDIS_URL`, the ini option, or an embedded server for this session."""
    url = os.environ.get(URL_VARIABLE) or pytestconfig.getini(URL_OPTION)
    if url:
        yield url
        return
    from fairque.embedded.server import EmbeddedServer
    from fairque.errors import ConfigError

    try:
        server = EmbeddedServer()
    except ConfigError as exc:
        pytest.fail(f"{exc}; or set {URL_VARIABLE}", pytrace=False)
    with server:
        yield server.url


@pytest.fixture
def fairque_queue_options() -> dict[str, Any]:
    """Options of `TaskQueue` for `fairque_queue`: override it."""
    return {}


@pytest.fixture
def fairque_worker_options() -> dict[str, Any]:
    """Options of `Worker` for `fairque_worker`: override it."""
    return {}


@pytest.fixture
def fairque_queue(request: pytest.FixtureRequest) -> TaskQueue:
    """An open `TaskQueue` of the test's own. Nothing is left of it afterwards."""
    queue: TaskQueue = request.getfixturevalue(_variant(request, "queue"))
    return queue


@pytest.fixture
def fairque_worker(request: pytest.FixtureRequest) -> Worker:
    """A running `Worker` on `fairque_queue`. What it runs at the end of the test is cancelled."""
    worker: Worker = request.getfixturevalue(_variant(request, "worker"))
    return worker


def _variant(request: pytest.FixtureRequest, what: str) -> str:
    """The fixture for the event loop of this test."""
    marker = request.node.get_closest_marker("asyncio")
    on_asyncio = marker is not None and request.config.pluginmanager.has_plugin(ON_ASYNCIO)
    on_anyio = "anyio_backend" in request.fixturenames
    if on_asyncio == on_anyio:
        pytest.fail(f"fairque_{what} {_MISUSED if on_anyio else _NOT_ASYNC}", pytrace=False)
    if marker is not None and on_asyncio:
        default = request.config.getini("asyncio_default_test_loop_scope")
        scope = marker.kwargs.get("loop_scope") or marker.kwargs.get("scope") or default
        return f"_fairque_{what}_{scope}"
    if request.getfixturevalue("anyio_backend_name") != "asyncio":
        pytest.skip("fairque runs on asyncio")
    return f"_fairque_{what}_anyio"


def _queue() -> Any:
    async def opened(fairque_server: str, fairque_queue_options: dict[str, Any]) -> AsyncIterator[TaskQueue]:
        from fairque.testing import temporary_queue

        async with temporary_queue(fairque_server, **fairque_queue_options) as queue:
            yield queue

    return opened


def _worker() -> Any:
    async def running(fairque_queue: TaskQueue, fairque_worker_options: dict[str, Any]) -> AsyncIterator[Worker]:
        from fairque import Worker

        defaults = {"shutdown_timeout": 0, "scheduler": False}  # what fires by itself would come at any moment
        async with Worker(fairque_queue, **{**defaults, **fairque_worker_options}) as worker:
            yield worker

    return running


def _register(config: pytest.Config, name: str, variants: dict[str, Any]) -> None:
    """As fixtures ``_fairque_queue_…`` and ``_fairque_worker_…``, made by the `pytest.fixture` of whoever runs them."""
    holder = ModuleType(name)
    for variant, fixture in variants.items():
        setattr(holder, f"_fairque_queue_{variant}", fixture(_queue()))
        setattr(holder, f"_fairque_worker_{variant}", fixture(_worker()))
    config.pluginmanager.register(holder, name)
