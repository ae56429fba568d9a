"""URLs of every kind, encryption, passwords, and connections that end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from fairque import ConfigError, QueueUnavailable, StoreError, TaskQueue, Worker, task
from fairque.embedded.server import EmbeddedServer, free_port
from fairque.redis.connector import Connector, _heeding_cancellation
from fairque.redis.requester import BlockingRequester, Requester, pack
from fairque.redis.url import Address, ServerUrl
from tests.support.eventually import eventually
from tests.support.fleet import execute

if TYPE_CHECKING:
    from tests.support.servers import Server

SECRET = "hunter2"
PING = pack(("PING",))
BIG = 32 * 1024 * 1024


@task
async def double(n: int) -> int:
    return 2 * n


async def go_round(url: str, **options: Any) -> None:
    """Through every kind of connection: requests, messages, the thread that renews."""
    async with TaskQueue(url, **options) as queue, Worker(queue, poll_interval=3600):
        assert await (await queue.enqueue(double(21), user_id="acme")).result(timeout=20) == 42


# URLs


@pytest.mark.parametrize(
    ("url", "hosts", "of_the_first"),
    [
        ("redis://", ["localhost:6379"], "redis://localhost:6379/"),
        ("redis://h/2", ["h:6379"], "redis://h:6379/2"),
        ("rediss://u:p%40@h:1/0?ssl_ca_certs=%2Fca", ["h:1"], "rediss://u:p%40@h:1/0?ssl_ca_certs=%2Fca"),
        ("redis://[::1]:7000", ["[::1]:7000"], "redis://[::1]:7000/"),
        ("redis://h?db=3", ["h:6379"], "redis://h:6379/?db=3"),
        ("cluster://a,b:7001", ["a:6379", "b:7001"], "redis://a:6379/"),
        ("redis+cluster://:p@a/0?tls=true", ["a:6379"], "rediss://:p@a:6379/0"),
        ("sentinel://u:p@a:1,[fe80::1],b/main/4", ["a:1", "[fe80::1]:26379", "b:26379"], "redis://u:p@a:1/4"),
    ],
)
def test_a_url_says_whom_to_ask_and_how(url: str, hosts: list[str], of_the_first: str) -> None:
    read = ServerUrl(url)
    assert [str(host) for host in read.hosts] == hosts
    assert read.server() == of_the_first


def test_a_sentinel_has_credentials_of_its_own_and_the_same_certificates() -> None:
    url = ServerUrl("sentinel://u:p@a/m?sentinel_username=s&sentinel_password=x%2Fy&tls=yes&ssl_ca_certs=/ca")
    assert url.sentinel(Address("a", 1)) == "rediss://s:x%2Fy@a:1/?ssl_ca_certs=/ca"
    assert url.server(Address("::1", 2)) == "rediss://u:p@[::1]:2/?ssl_ca_certs=/ca"
    assert ServerUrl("sentinel://u:p@a/m").sentinel(Address("a", 1)) == "redis://a:1/"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sentinal://a/m", "did you mean 'sentinel'"),
        ("redis:a", r"write it like redis://host:port"),
        ("unix://a", "three slashes"),
        ("redis://h/one", "the database is a number, not 'one'"),
        ("redis://a,b", "it names one host"),
        ("redis://h:99999", "a host is like host, host:6379"),
        ("sentinel://a", "it needs the name of the service"),
        ("sentinel:///m", "a host is missing"),
        ("sentinel://a/m?sentinel_pasword=x", "has no option 'sentinel_pasword'; did you mean 'sentinel_password'"),
        ("sentinel://a/m?tls=perhaps", "tls is true or false, not 'perhaps'"),
        ("cluster://a,/0", "a host is missing"),
        ("cluster://a/1", "a cluster has only database 0, not 1"),
        ("cluster://a?ssl_ca_certs=/ca", "need tls=true"),
        ("redis://a?ssl_ca_certs=/ca", "redis:// has no option 'ssl_ca_certs'"),
        ("redis://h?socket_timeout=1", "redis:// has no option 'socket_timeout'"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_once(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TaskQueue(url)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@h",
        f"redis://u:{SECRET}@[::1]:1/0",
        f"redis://h?password={SECRET}",
        f"cluster://u:{SECRET}@a,b",
        f"sentinel://u:{SECRET}@a/m?sentinel_username=s&sentinel_password={SECRET}&tls=true&ssl_password={SECRET}",
    ],
)
def test_no_password_of_a_url_is_shown(url: str) -> None:
    shown = Connector(url).safe_url
    assert SECRET not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "url",
    [
        f"redis://u:a/{SECRET}@h",
        f"redis://u:1/{SECRET}@h",
        f"sentinel://u:1/{SECRET}@h/m",
        f"redis://:#{SECRET}@h",
        f"redis://u:\n{SECRET}@h?x=y",
        f"cluster://u:x/{SECRET}@h,i",
        f"redis://h?pasword={SECRET}",
        f"redis:u:{SECRET}@h",
        f"{SECRET}:x",
        f"{SECRET}:x@h:6379",
        SECRET,
    ],
)
def test_a_password_that_is_not_encoded_is_not_told_in_the_error(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        TaskQueue(url)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("option", ["ssl_cert_reqs=maybe", "ssl_ca_certs=/no/such/file", "ssl_min_version=new"])
async def test_options_of_encryption_are_checked_before_connecting(option: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        await TaskQueue(f"rediss://127.0.0.1:1?{option}").open()


# Encryption


class Encrypted:
    """A server that speaks TLS only, and the files that a client needs."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.key, self.certificate = directory / "key.pem", directory / "cert.pem"
        issued = authority.issue_cert("localhost", "client")
        issued.private_key_pem.write_to_path(self.key)
        issued.cert_chain_pems[0].write_to_path(self.certificate)
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"rediss://localhost:{self.port}"

    def options(self, *, clients: str) -> dict[str, Any]:
        """`clients`: whether they have to have a certificate, too (yes or no)."""
        files = {"tls_cert_file": self.certificate, "tls_key_file": self.key, "tls_ca_cert_file": self.ca}
        return {"tls_port": self.port, "tls_auth_clients": clients, **{name: str(file) for name, file in files.items()}}


def binary_with_tls() -> str:
    """The embedded server is built without."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        pytest.skip("the embedded server speaks no TLS, and there is no redis-server on PATH")
    return found


@pytest.fixture
def encrypted(tmp_path: Path, own_server: Callable[..., EmbeddedServer]) -> Encrypted:
    encrypted = Encrypted(tmp_path)
    own_server(binary=binary_with_tls(), **encrypted.options(clients="no"))
    return encrypted


async def test_an_encrypted_connection(encrypted: Encrypted) -> None:
    await go_round(f"{encrypted.url}?ssl_ca_certs={encrypted.ca}")


async def test_an_encrypted_connection_with_a_certificate_of_the_client(
    tmp_path: Path, own_server: Callable[..., EmbeddedServer]
) -> None:
    encrypted = Encrypted(tmp_path)
    own_server(binary=binary_with_tls(), **encrypted.options(clients="yes"))
    trusting = f"{encrypted.url}?ssl_ca_certs={encrypted.ca}"
    await go_round(f"{trusting}&ssl_certfile={encrypted.certificate}&ssl_keyfile={encrypted.key}")
    with pytest.raises(QueueUnavailable):
        await TaskQueue(trusting, timeout=0.5).open()


async def test_a_certificate_that_nobody_vouches_for_is_a_clear_error(encrypted: Encrypted) -> None:
    with pytest.raises(StoreError, match="certificate verify failed"):
        await TaskQueue(encrypted.url).open()
    connector = Connector(encrypted.url)
    await connector.open()
    with pytest.raises(StoreError, match="certificate verify failed"):
        await asyncio.to_thread(BlockingRequester(connector).request, PING)


async def test_a_certificate_for_another_host_is_a_clear_error(encrypted: Encrypted) -> None:
    url = f"rediss://127.0.0.1:{encrypted.port}?ssl_ca_certs={encrypted.ca}"
    with pytest.raises(StoreError, match=r"certificate is not valid for '127\.0\.0\.1'"):
        await TaskQueue(url).open()
    await go_round(f"{url}&ssl_check_hostname=false")


async def test_an_encrypted_cluster(tmp_path: Path, own_server: Callable[..., EmbeddedServer]) -> None:
    encrypted = Encrypted(tmp_path)
    options = {**encrypted.options(clients="no"), "tls_cluster": True}
    node = own_server(binary=binary_with_tls(), cluster_enabled=True, cluster_port=free_port(), **options)
    execute(node, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    await eventually(lambda: b"cluster_state:ok" in execute(node, "CLUSTER", "INFO"))
    await go_round(f"cluster://localhost:{encrypted.port}?tls=true&ssl_ca_certs={encrypted.ca}")


async def test_servers_that_are_no_sentinel_and_no_cluster_are_clear_errors(encrypted: Encrypted) -> None:
    url = f"cluster://localhost:{encrypted.port}?tls=true&ssl_ca_certs={encrypted.ca}"
    with pytest.raises(StoreError, match=r"node localhost:\d+: .*cluster support disabled"):
        await TaskQueue(url).open()
    with pytest.raises(StoreError, match=r"sentinel localhost:\d+: unknown command"):
        await TaskQueue(url.replace("cluster:", "sentinel:").replace("?", "/main?")).open()


# Users and passwords


async def test_a_user_with_a_password(own_server: Callable[..., EmbeddedServer]) -> None:
    server = own_server(tcp=True)
    execute(server, "ACL", "SETUSER", "app", "on", f">{SECRET}/@", "~fairque:*", "&fairque:*", "+@all")
    execute(server, "ACL", "SETUSER", "default", "off")
    at = f"127.0.0.1:{server.port}"
    await go_round(f"redis://app:{SECRET}%2F%40@{at}")
    await go_round(f"unix://app:{SECRET}%2F%40@{server.socket}")
    for url in (f"redis://app:wrong-{SECRET}@{at}", f"redis://nobody:{SECRET}@{at}", f"redis://{at}"):
        with pytest.raises(StoreError, match=r"invalid username-password pair|Authentication required") as refused:
            await TaskQueue(url).open()
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize("wrong", ["app:wrong@{socket}", "app:{password}@{socket}?db=99"])
async def test_a_refusal_over_a_socket_is_told_at_once(own_server: Callable[..., EmbeddedServer], wrong: str) -> None:
    server = own_server()
    execute(server, "ACL", "SETUSER", "app", "on", f">{SECRET}", "~*", "&*", "+@all")
    url = f"unix://{wrong.format(socket=server.socket, password=SECRET)}"
    with pytest.raises(StoreError, match=r"invalid username-password pair|DB index is out of range"):
        await TaskQueue(url, timeout=30).open()


async def test_a_user_who_may_not_is_a_clear_error(own_server: Callable[..., EmbeddedServer]) -> None:
    server = own_server(tcp=True)
    execute(server, "ACL", "SETUSER", "app", "on", f">{SECRET}", "~other:*", "+@all")
    with pytest.raises(StoreError, match="No permissions to access a key"):
        await TaskQueue(f"redis://app:{SECRET}@127.0.0.1:{server.port}").open()


# Sockets


async def test_a_unix_socket_and_its_database(own_server: Callable[..., EmbeddedServer]) -> None:
    server = own_server()
    await go_round(f"{server.url}?db=5")
    assert b"db5:keys" in execute(server, "INFO", "keyspace")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no address ::1")
async def test_an_address_of_ipv6(own_server: Callable[..., EmbeddedServer]) -> None:
    server = own_server(tcp=True, bind="::1")
    await go_round(f"redis://[::1]:{server.port}")


# Connections that end, and large ones


@pytest.fixture
async def requester(server: Server) -> AsyncIterator[Requester]:
    requester = Requester(Connector(server.url))
    yield requester
    await requester.close()


async def test_a_connection_that_the_server_closed_is_replaced_before_anything_is_sent(
    server: Server, requester: Requester
) -> None:
    assert await requester.request(PING) == b"PONG"
    connection = requester._connection
    assert connection is not None
    server.execute("CLIENT", "KILL", "ID", await requester.request(pack(("CLIENT", "ID"))))
    await connection.wait_closed()
    assert await requester.request(PING) == b"PONG"


async def test_a_canceled_request_does_not_leave_its_reply_to_the_next(requester: Requester) -> None:
    await requester.request(PING)
    waiting = asyncio.create_task(requester.request(pack(("BLPOP", "nothing", 0.2))))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await requester.request(pack(("ECHO", "mine"))) == b"mine"


async def test_a_cancellation_that_meets_an_error_of_redis_py_is_not_lost() -> None:
    """As `asyncio.wait_for` of Python 3.11 does it: the error came in the same moment."""

    async def connect() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("the server closed the connection") from None

    connecting = asyncio.create_task(_heeding_cancellation(connect()))
    await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


async def test_a_request_without_an_answer_ends_in_time_and_the_next_is_answered(server: Server) -> None:
    requester = Requester(Connector(server.url, timeout=0.3))
    await requester.request(PING)
    await asyncio.sleep(0.2)  # the timer of this one ends in the middle of the next
    began = time.monotonic()
    with pytest.raises(QueueUnavailable, match="Timeout: no answer in time"):
        async with asyncio.timeout(20):
            await requester.request(pack(("BLPOP", "nothing", 0)))
    assert time.monotonic() - began > 0.14  # half of it: there is time for another connection
    assert await requester.request(PING) == b"PONG"
    await requester.close()


async def test_a_server_that_became_a_replica_is_left(own_server: Callable[..., EmbeddedServer]) -> None:
    """Its name may lead to the new master by now."""
    server = own_server()
    requester = Requester(Connector(server.url))
    before = await requester.request(pack(("CLIENT", "ID")))
    execute(server, "REPLICAOF", "127.0.0.1", 1)
    with pytest.raises(QueueUnavailable, match="read only replica"):
        await requester.request(pack(("SET", "key", 1)))
    assert await requester.request(pack(("CLIENT", "ID"))) != before
    await requester.close()


async def test_an_error_of_the_server_costs_no_connection(requester: Requester) -> None:
    before = await requester.request(pack(("CLIENT", "ID")))
    with pytest.raises(StoreError, match="unknown command"):
        await requester.request(pack(("NONSENSE",)))
    assert await requester.request(pack(("CLIENT", "ID"))) == before


@pytest.mark.parametrize(
    ("greeting", "reply", "says"),
    [
        (b"+OK\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol error"),
        (b"+OK\r\n+OK\r\n", b"+PONG\r\n", "does not keep to the protocol"),
        (b"+OK\r\n", b"", "the server closed the connection"),
    ],
)
async def test_a_server_that_does_not_speak_as_it_should_is_left(greeting: bytes, reply: bytes, says: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            for answer in (greeting, reply):  # to CLIENT SETNAME and to PING
                if await reader.read(100):
                    writer.write(answer)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as impostor:
        port = impostor.sockets[0].getsockname()[1]
        requester = Requester(Connector(f"redis://127.0.0.1:{port}"))
        with pytest.raises(QueueUnavailable, match=says):
            await requester.request(PING)
        await requester.close()


async def test_large_messages(requester: Requester) -> None:
    reply = await requester.request(pack(("ECHO", b"x" * BIG)))
    assert len(reply) == BIG


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_on_every_event_loop(loop: str, tmp_path: Path, own_server: Callable[..., EmbeddedServer]) -> None:
    encrypted = Encrypted(tmp_path)
    server = own_server(binary=binary_with_tls(), **encrypted.options(clients="no"))
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
    if loop == "uvloop":
        run = pytest.importorskip("uvloop").run

    async def main() -> None:
        for url in (server.url, f"{encrypted.url}?ssl_ca_certs={encrypted.ca}"):
            await go_round(url)
            requester = Requester(Connector(url))
            assert len(await requester.request(pack(("ECHO", b"x" * BIG)))) == BIG
            await requester.close()

    run(main())
