"""The fixtures and options of this test suite, as a pytest plugin, so that tests of the harness can load it, too."""

from __future__ import annotations

import asyncio
import fnmatch
import os
import signal
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from pytest_asyncio import is_async_test

from fairque.embedded.server import EmbeddedServer
from tests.support.calls import make_known
from tests.support.leaks import Possessions, end_of_tasks, still_there
from tests.support.process import WorkerProcess
from tests.support.proxy import CuttingProxy
from tests.support.render_scripts import scripts
from tests.support.servers import STARTERS, Server, Servers, available, new_queue_name, own_keys, program
from tests.support.soundness import contradictions

if TYPE_CHECKING:
    from fairque import TaskQueue
    from fairque.redis.backend import Backend

_LASTING_KEYS = ("settings", "state", "users")
_OF_LINKED_LETTERS = ("lapsing", "lapsing:*", "uses:*", "feeds:*", "task:*", "result:*")
"""What a dead letter keeps that others depend on, or that depends on others, until a worker gives it up."""
"""What a queue keeps for ever, by design."""
_failed = pytest.StashKey[bool]()
_COUNT = "partition_count"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", choices=sorted(STARTERS), help="run the whole suite on this kind of server only")
    parser.addoption("--partitions", type=int, help="give each queue so many, unless a test does; default: none")


def pytest_configure(config: pytest.Config) -> None:
    # What a shell starts in its background ignores Ctrl-C, and so does all that this starts in turn.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # What `nohup` starts ignores the end of its terminal. So does this, but what it starts in turn hears the signal.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    config.addinivalue_line(
        "markers", "every_server: run on every kind of server there is, not only on the embedded one"
    )
    config.addinivalue_line("markers", "smoke: the main road, for other Pythons; on the embedded server and on Redis 8")
    config.addinivalue_line(
        "markers", "damages: the test breaks a queue on purpose, and leaves it so: it is not checked at the end"
    )
    config.addinivalue_line(
        "markers", "partitions(*counts): give each queue of the test so many; of several, each in turn"
    )
    config.addinivalue_line(
        "markers", "leaves_keys(*globs): lasting keys that the test may leave, without their prefix; no globs: any"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """More than there are processors, for ``-n auto``: most tests wait, for a lease, a pause or another process."""
    return 2 + (os.cpu_count() or 1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        metafunc.parametrize("server", _server_names(metafunc), indirect=True, scope="session")
    if len(counts := _counts(metafunc.definition)) > 1:
        metafunc.fixturenames.append(_COUNT)
        chosen = metafunc.config.getoption("--partitions")
        metafunc.parametrize(_COUNT, [chosen] if chosen else counts, ids=lambda count: f"{count} partitions")


def _counts(item: pytest.Item) -> tuple[int, ...]:
    marker = item.get_closest_marker("partitions")
    return marker.args if marker is not None else ()


def _server_names(metafunc: pytest.Metafunc) -> list[str]:
    if chosen := metafunc.config.getoption("--server"):
        return [chosen]
    if metafunc.definition.get_closest_marker("every_server"):
        return available()
    smoke = metafunc.definition.get_closest_marker("smoke") and program("redis8")
    return ["valkey", "redis8"] if smoke else ["valkey"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tasks checked last of all that runs in the loop, and threads and sockets after the loop is closed."""
    for item in items:
        names: list[str] = getattr(item, "fixturenames", [])
        if is_async_test(item) and "_no_tasks_left" not in names:
            names.insert(names.index("_nothing_left") + 1, "_no_tasks_left")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


# Servers


@pytest.fixture(scope="session")
def _servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, _servers: Servers) -> Server:
    """A running server, shared by all tests: stay within `queue_name`."""
    return _servers.get(request.param)


@pytest.fixture(scope="session")
def server_program(request: pytest.FixtureRequest) -> str | None:
    """The program of the server that was chosen for the whole suite; None for the embedded one."""
    return program(request.config.getoption("--server") or "")


@pytest.fixture
def own_server(server_program: str | None) -> Iterator[Callable[..., EmbeddedServer]]:
    """Start a server of the test's own, to be killed or filled: ``own_server(maxmemory="5mb")``."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(EmbeddedServer(**{"binary": server_program, **options}))


@pytest.fixture
def queue_name(request: pytest.FixtureRequest) -> str:
    """A queue name that no other test uses."""
    return new_queue_name(request.node.name)


@pytest.fixture(autouse=True)
def _spread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes take over what those of the test have said."""
    if (count := partitions_of(request)) == 1:
        return
    import fairque.queue.queue

    monkeypatch.setattr(fairque.queue.queue, "Backend", with_partitions(count))


def with_partitions(count: int) -> Callable[..., Backend]:
    """What makes the backend of a queue that has so many, unless it is said how many."""
    from fairque.redis.backend import Backend

    def spread(*args: Any, given: Mapping[str, Any], **options: Any) -> Backend:
        return Backend(*args, given={"partitions": count, **given}, **options)

    return spread


def partitions_of(request: pytest.FixtureRequest) -> int:
    """How many the queues of a test have that does not say so itself."""
    chosen = getattr(request.node, "callspec", None)
    if chosen is not None and _COUNT in chosen.params:
        return int(chosen.params[_COUNT])
    return next(iter(_counts(request.node)), request.config.getoption("--partitions") or 1)


@pytest.fixture
async def queue(server: Server, queue_name: str) -> AsyncIterator[TaskQueue]:
    """An open queue of the test's own."""
    from fairque import TaskQueue

    async with TaskQueue(server.url, name=queue_name) as queue:
        yield queue


@pytest.fixture
async def begun(queue: TaskQueue) -> TaskQueue:
    """One that somebody has written into: commands refuse those that nobody has."""
    await queue.change_settings(lease=10)
    return queue


def load_scripts(server: Server) -> None:
    make_known(server.execute, scripts())


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[CuttingProxy]:
    """A proxy in front of the server that can cut replies. The server knows all scripts: else the first call of one is
    answered that it does not, and that answer would be cut.
    """
    load_scripts(server)
    async with CuttingProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
async def worker_process() -> AsyncIterator[Callable[..., Any]]:
    """Start processes that end with the test: ``await worker_process("tests/workers/x.py", url)``."""
    async with AsyncExitStack() as stack:

        async def start(*arguments: Any, **options: Any) -> WorkerProcess:
            return await stack.enter_async_context(WorkerProcess(*arguments, **options))

        yield start


# Leaks


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest, _spread: None) -> Iterator[None]:
    """Fail a test that leaves threads, sockets, lasting keys or a queue that contradicts itself.

    One that failed already is left alone. What says where users live (`_spread`) still does by then.
    """
    on_server = "server" in request.fixturenames
    server: Server | None = request.getfixturevalue("server") if on_server else None
    name: str = request.getfixturevalue("queue_name") if on_server else ""
    before = Possessions.now()
    yield
    found = [] if request.node.stash.get(_failed, False) else still_there(before.gained)
    if server is not None:
        found += _lasting_keys(request.node, server, name) + _contradictions(request.node, server, name)
        server.forget(name)
    if found:
        pytest.fail("the test left behind: " + ", ".join(found), pytrace=False)


@pytest.fixture
async def _no_tasks_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fail a test that leaves asyncio tasks behind."""
    yield
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    found = await end_of_tasks(tasks)
    if found and not request.node.stash.get(_failed, False):
        pytest.fail("the test left behind: " + ", ".join(found), pytrace=False)


def _contradictions(item: pytest.Item, server: Server, queue_name: str) -> list[str]:
    if item.stash.get(_failed, False) or item.get_closest_marker("damages"):
        return []
    return contradictions(server, queue_name)


def _lasting_keys(item: pytest.Item, server: Server, queue_name: str) -> list[str]:
    marker = item.get_closest_marker("leaves_keys")
    if item.stash.get(_failed, False) or (marker is not None and not marker.args):
        return []
    allowed = _LASTING_KEYS + (marker.args if marker is not None else ())
    keys = [own_keys(queue_name, key) for key in server.lasting_keys(queue_name)]
    if "lapsing" in keys:
        allowed += _OF_LINKED_LETTERS
    return [f"key {key!r}" for key in keys if not any(fnmatch.fnmatchcase(key, pattern) for pattern in allowed)]
