"""`fairque acl`: what it prints is taken by Redis as it is, and permits what the role is for."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

from fairque import NotPermitted, TaskQueue, Worker
from fairque.cli.commands.acl import RoleName
from fairque.embedded.server import EmbeddedServer
from fairque.redis.keys import Keys
from fairque.redis.role import ROLES
from tests.support.command import call_command
from tests.support.gate import new_gate, work
from tests.support.resp import RespClient

ODD = 'it\'s a [queue] of \\ "odd" $names` *'


def execute(server: EmbeddedServer, *words: str) -> Any:
    with RespClient(server.url) as client:
        return client.execute(*words)


def of_user(server: EmbeddedServer, name: str) -> str:
    [line] = [line.decode() for line in execute(server, "ACL", "LIST") if line.startswith(f"user {name} ".encode())]
    return str(line)


def test_each_role_can_be_named() -> None:
    assert {name.value for name in RoleName} == set(ROLES)


@pytest.mark.parametrize("queue", ["emails", ODD])
@pytest.mark.parametrize("role", ROLES)
async def test_the_command_gives_a_user_the_rules_and_leaves_its_password(
    own_server: Callable[..., EmbeddedServer], role: str, queue: str
) -> None:
    server = own_server(tcp=True)
    execute(server, "ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "(+get ~foreign:*)")
    printed = await call_command("acl", "--role", role, "--user", "app", "--queue", queue)
    assert printed.code == 0
    assert execute(server, *shlex.split(printed.out)) == b"OK"
    line = of_user(server, "app")
    assert "#" in line, "its password"
    assert "foreign" not in line
    assert "@all" not in line.replace("-@all", "")
    async with TaskQueue(server.url, name=queue) as first:
        await first.reader.load_functions()
    async with TaskQueue(f"redis://app:secret@127.0.0.1:{server.port}", name=queue) as opened:
        assert (await opened.stats()).queued == 0
    with pytest.raises(NotPermitted):
        await TaskQueue(f"redis://app:secret@127.0.0.1:{server.port}", name="another").open()


async def test_a_line_of_an_acl_file_gives_the_same(own_server: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    """`#` and a SHA-256 stand for a password there."""
    new_gate().open()
    printed = await call_command("acl", "--role", "worker", "--may-load", "--aclfile", "--queue", ODD)
    lines = tmp_path / "users.acl"
    of_secret = "#2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
    lines.write_text(f"user default on nopass ~* &* +@all\n{printed.out.strip()} {of_secret}\n")
    server = own_server(tcp=True, aclfile=str(lines))
    user = quote(printed.out.split()[1], safe="")
    assert unquote(user).startswith("fairque-it%27s%20a")
    url = f"redis://{user}:secret@127.0.0.1:{server.port}"
    async with TaskQueue(url, name=ODD) as queue, Worker(queue):
        assert await (await queue.enqueue(work(1), user_id="acme")).result(timeout=20) == 1


async def test_what_it_prints_as_json_are_the_parts_of_the_same() -> None:
    command = shlex.split((await call_command("acl", "--role", "reader", "--queue", "q")).out)
    told = (await call_command("acl", "--role", "reader", "--queue", "q", "--json")).json
    assert (told["user"], told["roles"], told["queue"]) == ("fairque-q-reader", ["reader"], "q")
    assert told["keys"] == ["%R~fairque:{q}:*", f"%R~{Keys('q').copy.prefix}*"]
    assert told["channels"] == ["&fairque:{q}:*"]
    assert command[-len(told["rules"]) :] == told["rules"]
    assert [f"+{name}" for name in told["commands"]] == told["rules"][4:]


async def test_a_user_may_be_several() -> None:
    """The keys of one that writes are for writing, whatever else it is."""
    told = (await call_command("acl", "--role=reader", "--role=scheduler", "--queue=q", "--json")).json
    assert told["keys"] == ["~fairque:{q}:*", f"%R~{Keys('q').copy.prefix}*"]
    assert told["user"] == "fairque-q-reader-scheduler"
    one, other, both = [
        set((await call_command("acl", *roles, "--json")).json["commands"])
        for roles in (
            ("--role=reader",),
            ("--role=scheduler",),
            ("--role=reader", "--role=scheduler", "--role=reader"),
        )
    ]
    assert both == one | other
    assert one < both


@pytest.mark.parametrize(
    ("url", "command"), [("sentinel://h/main", "role"), ("cluster://h", "cluster|slots"), ("redis://h", None)]
)
async def test_what_finds_the_server_is_permitted_where_the_url_asks_for_that(url: str, command: str | None) -> None:
    told = (await call_command("acl", "--role=reader", "--json", "--url", url)).json["commands"]
    assert set(told) & {"role", "cluster|slots"} == ({command} if command else set())


async def test_the_queue_is_the_one_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "q.toml").write_text('[queue]\nname = "of the file"\n')
    told = await call_command("acl", "--role=worker", "--json", "--config", str(tmp_path / "q.toml"))
    assert told.json["queue"] == "of the file"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--role=worker", "--user=a b"], "no name of a user"),
        (["--role=worker", "--user="], "no name of a user"),
        (["--role=worker", "--aclfile", "--json"], "two ways"),
        (["--role=worker", "--queue={}"], "a queue name has"),
        ([], "--role"),
    ],
)
async def test_wrong_usage_is_told(arguments: list[str], error: str) -> None:
    ended = await call_command("acl", *arguments)
    assert ended.code == 2
    assert error in ended.error[0]
    assert ended.out == ""
