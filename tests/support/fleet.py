"""Several servers that belong together: a master, its replica and their sentinels; the nodes of a cluster."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from fairque.embedded.binary import server_binary
from fairque.embedded.locks import until
from fairque.embedded.server import EmbeddedServer, free_port
from fairque.errors import QueueUnavailable
from tests.support.resp import RedisError, RespClient

SERVICE = "mymaster"
SLOTS = 16384
_READY_SECONDS = 30.0
_MOST_PORTS = 5
_DOWN_AFTER_MS = 500
_NODE_TIMEOUT_MS = 2000
_KEYS_AT_ONCE = 5
_STEP_SECONDS = 0.02


def execute(server: EmbeddedServer, *arguments: str | bytes | int) -> Any:
    with RespClient(server.url) as client:
        return client.execute(*arguments)


def wait_for(condition: Callable[[], object]) -> None:
    last: object = None

    def holds() -> bool:
        nonlocal last
        try:
            last = condition()
        except (OSError, RedisError) as error:
            last = error
            return False
        return bool(last)

    assert until(holds, time.monotonic() + _READY_SECONDS), f"the servers are not ready: {last!r}"


def cut_off_replicas(master: EmbeddedServer) -> None:
    """What it takes from now on is its own: a gap in the replication, should a replica take over."""
    execute(master, "ACL", "SETUSER", "default", "-psync", "-sync")
    execute(master, "CLIENT", "KILL", "TYPE", "replica")


def wait_until_copied(replica: EmbeddedServer) -> None:
    wait_for(lambda: b"master_link_status:up" in execute(replica, "INFO", "replication"))


def owns(node: EmbeddedServer, slot: int) -> bool:
    """Whether this is, by all that it knows, the node of the slot."""
    me = execute(node, "CLUSTER", "MYID")
    ranges = execute(node, "CLUSTER", "SLOTS")
    return any(start <= slot <= end and master[2] == me for start, end, master, *_ in ranges)


def move_slot(slot: int, source: EmbeddedServer, target: EmbeddedServer) -> None:
    """As a whole, by what Valkey calls atomic slot migration."""
    heir = execute(target, "CLUSTER", "MYID").decode()
    execute(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", heir)
    wait_for(lambda: owns(target, slot))


def move_key_by_key(slot: int, source: EmbeddedServer, target: EmbeddedServer) -> None:
    """As clusters before Valkey 9 do, slowly: for a while half of the keys are here and half are there."""
    ours, heir = (execute(node, "CLUSTER", "MYID").decode() for node in (source, target))
    execute(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ours)
    execute(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", heir)
    while keys := execute(source, "CLUSTER", "GETKEYSINSLOT", slot, _KEYS_AT_ONCE):
        execute(source, "MIGRATE", "127.0.0.1", target.port or 0, "", 0, 5000, "KEYS", *keys)
        time.sleep(_STEP_SECONDS)
    for node in (target, source):
        execute(node, "CLUSTER", "SETSLOT", slot, "NODE", heir)
    wait_for(lambda: owns(target, slot))


class Sentinel:
    """A sentinel: the same binary in another role, with a file that it rewrites."""

    def __init__(self, directory: Path, lines: Sequence[str], binary: str | None = None) -> None:
        self._binary = binary or str(server_binary())
        self._directory, self._lines = directory, lines
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """A port that is free may be another's when the sentinel begins to listen, which then ends."""
        for _ in range(_MOST_PORTS):
            self.port = free_port()
            self._process = self._launch()
            wait_for(self._has_begun)
            if self._process.poll() is None:
                return
        raise AssertionError(f"no sentinel can listen: {self._log.read_text()}")

    @property
    def _log(self) -> Path:
        return self._directory / f"sentinel-{self.port}.log"

    def _launch(self) -> subprocess.Popen[bytes]:
        file = self._directory / f"sentinel-{self.port}.conf"
        file.write_text("\n".join([f"port {self.port}", "bind 127.0.0.1", f"dir {self._directory}", *self._lines]))
        return subprocess.Popen([self._binary, str(file), "--sentinel", "--logfile", str(self._log)])

    def _has_begun(self) -> bool:
        """Whether it listens, which it does before it says its id, or has ended."""
        assert self._process is not None
        return self._process.poll() is not None or "Sentinel ID is" in self._log.read_text()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def execute(self, *arguments: str, password: str = "") -> Any:
        with RespClient(f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}") as client:
            return client.execute(*arguments)


class Watched:
    """A master and its replica under the eyes of three sentinels, two of which have to agree."""

    def __init__(self, directory: Path, binary: str | None = None, *, sentinel_password: str = "") -> None:
        self._directory = directory
        self._binary = binary
        self._sentinel_password = sentinel_password
        self.master = EmbeddedServer(binary=binary, tcp=True, repl_diskless_sync_delay=0)
        self.replica = EmbeddedServer(binary=binary, tcp=True, repl_diskless_sync_delay=0)
        self.sentinels: list[Sentinel] = []

    @property
    def hosts(self) -> str:
        return ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        return f"sentinel://{self.hosts}/{SERVICE}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Watched]:
        with ExitStack() as stack:
            for server in (self.master, self.replica):
                stack.enter_context(server)
            execute(self.replica, "REPLICAOF", "127.0.0.1", self.master.port or 0)
            wait_until_copied(self.replica)
            for _ in range(3):
                sentinel = Sentinel(self._directory, self._lines(), self._binary)
                stack.callback(sentinel.kill)
                sentinel.start()
                self.sentinels.append(sentinel)
            for sentinel in self.sentinels:
                wait_for(partial(self._sees_all, sentinel))
            yield self

    def replicate(self) -> bool:
        """Whether the replica has all that was written before."""
        with RespClient(self.master.url, timeout=2 * _READY_SECONDS) as client:
            client.execute("SET", "probe", "1", "PX", "1")  # what comes before it in the stream is there when it is
            return bool(client.execute("WAIT", 1, int(_READY_SECONDS * 1000)))

    def _lines(self) -> list[str]:
        secret = [f"requirepass {self._sentinel_password}"] if self._sentinel_password else []
        return [
            *secret,
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 5000",
        ]

    def _sees_all(self, sentinel: Sentinel) -> bool:
        found = sentinel.execute("SENTINEL", "MASTER", SERVICE, password=self._sentinel_password)
        fields = dict(zip(found[::2], found[1::2], strict=True))
        return bool(fields[b"num-slaves"] == b"1") and fields[b"num-other-sentinels"] == b"2"


class ClusterNodes:
    """Masters that share the slots evenly; the replicas, if any, belong to the first of them."""

    def __init__(self, masters: int = 3, replicas: int = 0, binary: str | None = None) -> None:
        self.binary = binary
        self.nodes = [self._new_node() for _ in range(masters + replicas)]
        self._many = masters
        self._share = SLOTS // masters + 1

    @property
    def masters(self) -> list[EmbeddedServer]:
        """As they were at the beginning."""
        return self.nodes[: self._many]

    def _new_node(self) -> EmbeddedServer:
        options: dict[str, Any] = {"binary": self.binary, "tcp": True, "repl_diskless_sync_delay": 0}
        options |= {"cluster_enabled": True, "cluster_node_timeout": _NODE_TIMEOUT_MS}
        return EmbeddedServer(cluster_port=free_port(), **options)

    @property
    def url(self) -> str:
        return "cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @contextlib.contextmanager
    def running(self) -> Iterator[ClusterNodes]:
        with ExitStack() as stack:
            for at in range(len(self.nodes)):
                self._start(at, stack)
            for at, node in enumerate(self.masters):
                execute(node, "CLUSTER", "SET-CONFIG-EPOCH", at + 1)
                last = min(SLOTS, (at + 1) * self._share) - 1
                execute(node, "CLUSTER", "ADDSLOTSRANGE", at * self._share, last)
            for node in self.nodes[1:]:
                bus = execute(node, "CONFIG", "GET", "cluster-port")[1]
                execute(self.nodes[0], "CLUSTER", "MEET", "127.0.0.1", node.port or 0, bus)
            wait_for(lambda: all(self._knows_all(node) for node in self.nodes))
            for node in self.nodes[len(self.masters) :]:
                execute(node, "CLUSTER", "REPLICATE", self.id_of(self.masters[0]))
                wait_until_copied(node)
            yield self

    def _start(self, at: int, stack: ExitStack) -> None:
        """A port that is free may be another's when the node begins to listen, which then ends."""
        for _ in range(_MOST_PORTS):
            try:
                stack.enter_context(self.nodes[at])
                return
            except QueueUnavailable as error:
                if "already in use" not in str(error):
                    raise
                self.nodes[at] = self._new_node()
        raise AssertionError("no node of a cluster can listen")

    def has(self, node: EmbeddedServer, slot: int) -> bool:
        """Whether this was, at the beginning, the node of the slot."""
        return slot // self._share == self.masters.index(node)

    def id_of(self, node: EmbeddedServer) -> str:
        return str(execute(node, "CLUSTER", "MYID").decode())

    def _knows_all(self, node: EmbeddedServer) -> bool:
        found = execute(node, "CLUSTER", "INFO")
        return b"cluster_state:ok" in found and b"cluster_known_nodes:%d\r" % len(self.nodes) in found
