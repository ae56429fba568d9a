"""Ways in which a server is there and cannot work, or is not there, and how it recovers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from fairque.embedded.locks import until
from tests.support.resp import RedisError, RespClient

if TYPE_CHECKING:
    from fairque.embedded.server import EmbeddedServer


def execute(server: EmbeddedServer, *arguments: str | int) -> Any:
    with RespClient(server.url) as client:
        return client.execute(*arguments)


@contextlib.contextmanager
def killed(server: EmbeddedServer) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextlib.contextmanager
def read_only(server: EmbeddedServer) -> Iterator[None]:
    """A replica whose primary is gone, until it is promoted."""
    execute(server, "REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        execute(server, "REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def out_of_memory(server: EmbeddedServer) -> Iterator[None]:
    execute(server, "CONFIG", "SET", "maxmemory", "1")
    try:
        yield
    finally:
        execute(server, "CONFIG", "SET", "maxmemory", "0")


@contextlib.contextmanager
def disk_full(server: EmbeddedServer) -> Iterator[None]:
    """Snapshots fail: a directory has the name that theirs needs."""
    in_the_way = server.directory / "dump.rdb"
    in_the_way.mkdir()
    execute(server, "CONFIG", "SET", "save", "3600 1")
    _save(server, b"rdb_last_bgsave_status:err")
    try:
        yield
    finally:
        in_the_way.rmdir()
        _save(server, b"rdb_last_bgsave_status:ok")


def _save(server: EmbeddedServer, status: bytes) -> None:
    execute(server, "BGSAVE")
    assert until(lambda: b"rdb_bgsave_in_progress:0" in execute(server, "INFO", "persistence"), time.monotonic() + 10)
    assert status in execute(server, "INFO", "persistence")


@contextlib.contextmanager
def without_replicas(server: EmbeddedServer) -> Iterator[None]:
    execute(server, "CONFIG", "SET", "min-replicas-to-write", "1")
    try:
        yield
    finally:
        execute(server, "CONFIG", "SET", "min-replicas-to-write", "0")


@contextlib.contextmanager
def busy(server: EmbeddedServer) -> Iterator[None]:
    """Somebody runs a script that never ends."""
    execute(server, "CONFIG", "SET", "busy-reply-threshold", "20")

    def run_for_ever() -> None:
        with contextlib.suppress(RedisError):
            execute(server, "EVAL", "while true do end", 0)

    thread = threading.Thread(target=run_for_ever)
    thread.start()
    assert until(lambda: _is_busy(server), time.monotonic() + 10)
    try:
        yield
    finally:
        execute(server, "SCRIPT", "KILL")
        thread.join()


def _is_busy(server: EmbeddedServer) -> bool:
    try:
        execute(server, "GET", "x")
    except RedisError as error:
        return str(error).startswith("BUSY")
    return False


OUTAGES: dict[str, tuple[Callable[[EmbeddedServer], AbstractContextManager[None]], str]] = {
    "killed": (killed, "is not available"),
    "read-only": (read_only, "read only"),
    "out of memory": (out_of_memory, "maxmemory"),
    "disk full": (disk_full, "MISCONF"),
    "without replicas": (without_replicas, "NOREPLICAS"),
    "busy": (busy, "BUSY"),
}
"""By name, with what the error says."""
