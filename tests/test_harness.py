"""The harness itself: a harness that notices nothing makes every other test worthless."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.eventually import eventually
from tests.support.process import ROOT
from tests.support.resp import RedisError, RespClient, encode, reply_end
from tests.support.servers import new_queue_name, own_keys, program

if TYPE_CHECKING:
    from fairque import TaskQueue
    from fairque.embedded.server import EmbeddedServer
    from tests.support.process import WorkerProcess
    from tests.support.proxy import CuttingProxy
    from tests.support.servers import Server

    Connect = Callable[[], Awaitable["Requester"]]

# Leaks

LEAKING = """
import asyncio, socket, threading

kept = []
end = threading.Event()

def test_a_thread():
    threading.Thread(target=end.wait, name="forgotten", daemon=True).start()

def test_a_socket():
    kept.extend(socket.socketpair())

async def test_a_task():
    kept.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))

async def test_a_connection(server):
    kept.append(await asyncio.open_unix_connection(server.url.removeprefix("unix://")))

def test_a_key(server, queue_name):
    server.execute("SET", "fairque:{%s}:backlog:acme" % queue_name, "1")

def test_a_key_of_a_partition(server, queue_name):
    server.execute("SET", "fairque:{%s/3~0}:backlog:acme" % queue_name, "1")
"""

TIDY = """
import asyncio, threading
import pytest

def test_a_thread_that_ends():
    threading.Thread(target=threading.Event().wait, args=(0.05,)).start()

async def test_a_task_that_ends():
    asyncio.create_task(asyncio.sleep(0.05))

async def test_the_threads_of_a_loop():
    await asyncio.to_thread(int)

@pytest.mark.damages
def test_keys_that_expire_and_keys_that_stay_by_design(server, queue_name):
    server.execute("SET", "fairque:{%s}:result:1" % queue_name, "1", "EX", "60")
    server.execute("HSET", "fairque:{%s}:state" % queue_name, "clock", "1")

@pytest.mark.damages
@pytest.mark.leaves_keys("backlog:*")
def test_a_key_that_was_announced(server, queue_name):
    server.execute("SET", "fairque:{%s}:backlog:acme" % queue_name, "1")

@pytest.mark.damages
@pytest.mark.leaves_keys
def test_any_key(server, queue_name):
    server.execute("SET", "fairque:{%s}:backlog:acme" % queue_name, "1")

def test_another_queue_is_none_of_its_business(server, queue_name):
    server.execute("SET", "fairque:{%s-x}:backlog:acme" % queue_name, "1", "EX", "60")
"""

FAILING = """
import threading

def test_a_failing_test_is_reported_for_its_failure_only():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    raise AssertionError("the reason")
"""

Suite = Callable[..., pytest.RunResult]


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Suite:
    """Run a test file in a process of its own, with the fixtures of this suite."""
    pytester.makeconftest(f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        pytest_plugins = ["tests.support.plugin"]
        from tests.support import leaks
        leaks.GRACE_SECONDS = 0.3
    """)
    pytester.makepyprojecttoml('[tool.pytest]\nasyncio_mode = "auto"\n')

    def run(source: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:valkey", *options)

    return run


def test_a_leaking_test_fails(suite: Suite) -> None:
    result = suite(LEAKING)
    result.assert_outcomes(passed=6, errors=6)
    left = "*the test left behind: "
    result.stdout.fnmatch_lines_random(
        [
            f"{left}thread 'forgotten'",
            f"{left}socket to *",
            f"{left}asyncio task 'forgotten' in *",
            f"{left}socket to '*valkey.sock'",
            f"{left}key 'backlog:acme', unknown-key at 'backlog:acme' *",
        ]
    )


def test_a_tidy_test_passes(suite: Suite) -> None:
    suite(TIDY).assert_outcomes(passed=7)


def test_a_test_that_failed_is_not_blamed_for_leaks(suite: Suite) -> None:
    result = suite(FAILING)
    result.assert_outcomes(failed=1)


# Servers


@pytest.mark.every_server
def test_every_server_is_of_the_kind_it_says(server: Server) -> None:
    info = server.execute("INFO", "server").decode()
    if server.name in {"valkey", "cluster"}:
        assert "valkey_version" in info
    if server.name in {"redis", "redis8", "container"}:
        assert f"redis_version:{'8.' if server.name == 'redis8' else ''}" in info
    assert ("redis_mode:cluster" in info or "server_mode:cluster" in info) == (server.name == "cluster")


ON_A_CLUSTER = """
import pytest
def test_once(server): assert server.name == "cluster"
@pytest.mark.every_server
def test_marked(server): assert server.name == "cluster"
def test_a_key_of_another_slot_fails(server):
    with pytest.raises(Exception, match="CROSSSLOT"):
        server.execute("MSET", "a", "1", "b", "2")
"""


def test_the_option_server_chooses_one_for_the_whole_suite(suite: Suite) -> None:
    suite(ON_A_CLUSTER, "--server=cluster").assert_outcomes(passed=3)


ON_REDIS_8 = """
import pytest
from tests.support.resp import RespClient
def test_shared(server): assert b"redis_version:8." in server.execute("INFO", "server")
def test_own(own_server):
    with RespClient(own_server().url) as client:
        assert b"redis_version:8." in client.execute("INFO", "server")
"""


@pytest.mark.skipif(program("redis8") is None, reason="there is no wheel of Redis 8 for this Python here")
def test_servers_of_a_tests_own_are_of_the_chosen_kind_as_well(suite: Suite) -> None:
    suite(ON_REDIS_8, "--server=redis8").assert_outcomes(passed=2)


def test_keys_are_listed_with_all_partitions_and_removed(server: Server, queue_name: str) -> None:
    keys = [f"fairque:{{{queue_name}}}:state", f"fairque:{{{queue_name}/1~0}}:state"]
    for key in keys:
        server.execute("SET", key, "1")
    assert server.keys(queue_name) == sorted(keys)
    assert [own_keys(queue_name, key) for key in keys] == ["state", "state"]
    server.forget(queue_name)
    assert server.keys(queue_name) == []


def test_queue_names_hold_nothing_that_is_special_in_a_glob() -> None:
    name = new_queue_name("test_something[*?-valkey]" + "x" * 200)
    assert len(name) < 80
    assert not set(name) & set("[]*?{}\\")
    assert name != new_queue_name("test_something[*?-valkey]" + "x" * 200)


def test_an_own_server_takes_options(own_server: Callable[..., EmbeddedServer]) -> None:
    server = own_server(maxmemory="7mb")
    with RespClient(server.url) as client:
        assert client.execute("CONFIG", "GET", "maxmemory")[1] == b"7340032"
        with pytest.raises(RedisError, match="unknown command"):
            client.execute("NONSENSE")


# Waiting


async def test_eventually_returns_what_became_true() -> None:
    answers = iter([0, None, "yes"])
    assert await eventually(lambda: next(answers)) == "yes"


async def test_eventually_awaits_coroutines() -> None:
    async def answer() -> int:
        return 7

    assert await eventually(answer) == 7


async def test_eventually_names_the_condition_that_stayed_false() -> None:
    hopes: list[int] = []
    with pytest.raises(AssertionError, match=r"not true within 0.02 s: .*len\(hopes\) > 3.*last value False"):
        await eventually(lambda: len(hopes) > 3, deadline=0.02)


# The protocol


@pytest.mark.parametrize(
    "reply",
    [
        b"+OK\r\n",
        b":12\r\n",
        b"-ERR no\r\n",
        b"_\r\n",
        b",1.5\r\n",
        b"#t\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"$0\r\n\r\n",
        b"$6\r\nab\r\ncd\r\n",
        b"=7\r\ntxt:abc\r\n",
        b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
        b"%1\r\n+a\r\n~1\r\n:1\r\n",
        b">2\r\n+message\r\n+x\r\n",
        b"|1\r\n+ttl\r\n:3\r\n*1\r\n:1\r\n",
        encode("SET", "key", b"\r\n", 7),
    ],
)
def test_the_end_of_a_reply_is_found_and_not_before_it_arrived(reply: bytes) -> None:
    assert reply_end(reply + b"+next\r\n") == len(reply)
    assert all(reply_end(reply[:size]) is None for size in range(len(reply)))


# The proxy


class Requester:
    """An asyncio connection that says what it sends and gets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *arguments: str | int) -> None:
        self._writer.write(encode(*arguments))
        await self._writer.drain()

    async def ask(self, *arguments: str | int) -> None:
        await self.send(*arguments)
        assert await self.read(5) == b"+OK\r\n"

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(10):
            return await self._reader.readexactly(size)

    async def rest(self) -> bytes:
        """Everything until the connection ends, in whichever way."""
        data = b""
        try:
            async with asyncio.timeout(10):
                while chunk := await self._reader.read(1024):
                    data += chunk
        except ConnectionError:
            pass
        return data

    async def close(self) -> None:
        self._writer.close()


@pytest.fixture
async def connect(proxy: CuttingProxy) -> AsyncIterator[Connect]:
    wires: list[Requester] = []

    async def open_one() -> Requester:
        parts = urlsplit(proxy.url)
        wire = Requester(*await asyncio.open_connection(parts.hostname, parts.port))
        wires.append(wire)
        if parts.password:
            await wire.ask("AUTH", unquote(parts.password))
        if parts.path.strip("/"):
            await wire.ask("SELECT", parts.path.strip("/"))
        return wire

    yield open_one
    for wire in wires:
        await wire.close()


async def test_the_proxy_passes_everything_on(proxy: CuttingProxy, connect: Connect) -> None:
    wire = await connect()
    await wire.send("ECHO", "x" * 200_000)
    assert (await wire.read(200_011)).endswith(b"xx\r\n")
    assert proxy.connections == 1
    await wire.close()
    await eventually(lambda: proxy.connections == 0)


@pytest.mark.damages
async def test_the_proxy_cuts_the_nth_reply_to_a_command_in_its_middle(
    proxy: CuttingProxy, connect: Connect, server: Server, queue_name: str
) -> None:
    key = f"fairque:{{{queue_name}}}:state"
    cut = proxy.cut_reply("APPEND", nth=2)
    wire = await connect()
    for _ in range(3):
        await wire.send("PING")
        await wire.send("APPEND", key, "0123456789")
    assert await wire.rest() == b"+PONG\r\n:10\r\n+PONG\r\n" + b":20\r\n"[:2]
    assert cut.done.is_set()
    assert len(server.execute("GET", key)) >= 20, "the server did what it was told"


async def test_a_cut_happens_once_and_spares_other_commands(proxy: CuttingProxy, connect: Connect) -> None:
    cut = proxy.cut_reply(b"needle")
    first, second = await connect(), await connect()
    await first.send("ECHO", "hay")
    assert await first.read(9) == b"$3\r\nhay\r\n"
    await first.send("ECHO", "needle")
    assert await first.rest() == b"$6\r\nne"
    await cut.done.wait()
    await second.send("ECHO", "needle")
    assert await second.read(12) == b"$6\r\nneedle\r\n"


async def test_messages_pushed_in_between_answer_no_command(
    proxy: CuttingProxy, connect: Connect, server: Server
) -> None:
    proxy.cut_reply("ECHO")
    wire = await connect()
    await wire.send("HELLO", 3)
    await wire.send("SUBSCRIBE", "channel")
    await eventually(lambda: server.execute("PUBLISH", "channel", "text"))
    await wire.send("ECHO", "abcdef")
    data = await wire.rest()
    assert b"text" in data
    assert data.endswith(b"$6\r\nab")


async def test_the_proxy_refuses_and_accepts_on_the_same_port(proxy: CuttingProxy, connect: Connect) -> None:
    wire = await connect()
    await wire.send("PING")
    await wire.read(7)
    await proxy.refuse()
    assert await wire.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        await connect()
    await proxy.accept()
    again = await connect()
    await again.send("PING")
    assert await again.read(7) == b"+PONG\r\n"


async def test_a_paused_proxy_keeps_the_connection_and_delivers_later(proxy: CuttingProxy, connect: Connect) -> None:
    wire = await connect()
    proxy.pause()
    await wire.send("PING")
    answer = asyncio.create_task(wire.read(7))
    await asyncio.wait({answer}, timeout=0.1)
    assert not answer.done()
    proxy.resume()
    assert await answer == b"+PONG\r\n"


# Processes

SPEAKER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("ready", *sys.argv[1:], repr(sys.stdin.read()), flush=True)
print("oops", file=sys.stderr, flush=True)
signal.pause()
"""
Start = Callable[..., Awaitable["WorkerProcess"]]


@pytest.fixture
def speaker(tmp_path: Path) -> Path:
    script = tmp_path / "speaker.py"
    script.write_text(SPEAKER)
    return script


async def test_a_process_gives_its_lines_and_takes_signals(worker_process: Start, speaker: Path) -> None:
    process = await worker_process(speaker, "one", "two")
    assert await process.line("ready") == "ready one two ''"
    assert await process.line("oops") == "oops"
    process.send(signal.SIGTERM)
    assert await process.wait() == 3
    assert process.lines == ["ready one two ''", "oops"]


async def test_a_module_can_be_a_process_and_gets_the_environment(worker_process: Start) -> None:
    process = await worker_process("json.tool", "--help", env={"COLUMNS": "60"})
    assert await process.wait() == 0
    assert "usage:" in process.output


async def test_the_missing_line_of_an_ended_process_is_reported_with_its_output(
    worker_process: Start, tmp_path: Path
) -> None:
    script = tmp_path / "short.py"
    script.write_text("print('all there was')")
    process = await worker_process(script)
    with pytest.raises(AssertionError, match="all there was"):
        await process.line("never printed")


async def test_a_process_that_still_runs_ends_with_the_test(worker_process: Start, speaker: Path) -> None:
    process = await worker_process(speaker)
    await process.line("oops")
    process.send(signal.SIGSTOP)
    await process.end()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.partitions(1, 3)
async def test_a_test_of_several_counts_of_partitions_runs_with_each(
    request: pytest.FixtureRequest, queue: TaskQueue
) -> None:
    assert f"{queue.settings.partitions} partitions" in request.node.name
