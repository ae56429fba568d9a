"""Users of Redis that may no more than their role, or less: all that is needed is permitted, and nothing beyond."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import fairque.redis.store
from fairque import NotPermitted, QueueUnavailable, TaskQueue, TaskScheduler, Worker, __version__
from fairque.embedded.server import EmbeddedServer
from fairque.redis.blocking_call import call_blocking
from fairque.redis.commands import CHANGING, commands_of, readers, scripts_of_core
from fairque.redis.keys import Keys
from fairque.redis.requester import BlockingRequester
from fairque.redis.role import ROLES, rules_of
from fairque.redis.script_caller import ScriptCaller
from fairque.redis.scripts import Script, load
from fairque.redis.store import renew
from fairque.redis.store_permissions import PermissionScripts
from tests import test_cut_calls
from tests.support.command import call_command, run_command
from tests.support.gate import new_gate, work
from tests.support.plugin import load_scripts
from tests.support.resp import RedisError, RespClient
from tests.support.servers import Server
from tests.support.users import PASSWORD, denials, user_with, words_of

pytestmark = pytest.mark.leaves_keys()
LUA = files("fairque.redis") / "lua"


def execute(server: EmbeddedServer, *words: str | bytes | int) -> Any:
    with RespClient(server.url) as client:
        return client.execute(*words)


# What is derived


def test_every_script_belongs_to_a_role() -> None:
    assert ROLES["admin"].all_scripts == set(scripts_of_core())
    assert (
        ROLES["reader"].all_scripts == set(readers()) == {name for name in scripts_of_core() if load(name).only_reads}
    )
    for role in ROLES.values():
        assert set(role.scripts()) <= set(scripts_of_core())


@pytest.mark.every_server
def test_what_is_derived_are_commands_of_the_server_of_which_those_that_write_are_known(server: Server) -> None:
    derived = sorted(set().union(*map(commands_of, scripts_of_core())))
    for command, told in zip(derived, server.execute("COMMAND", "INFO", *derived), strict=True):
        assert told is not None, f"{command} is none"
        assert not told[9], f"{command} has parts, of which not all are needed"
        flags = {flag.decode() for flag in told[2]}
        assert (command in CHANGING) == bool(flags & {"write", "may_replicate"} or command == "spublish"), command


def test_no_word_of_the_lua_is_a_command_that_was_overlooked(server: Server) -> None:
    commands = {name.decode().upper() for name in server.execute("COMMAND", "LIST")}
    overlooked = {}
    for script in scripts_of_core():
        known = {command.partition("|")[0].upper() for command in commands_of(script)}
        known |= {command.partition("|")[0].upper() for command in CHANGING if load(script).only_reads}
        words = set(re.findall(r"['\"]([A-Z_]+)['\"]", load(script).source.decode()))
        if missed := words & commands - known:
            overlooked[script] = missed
    assert not overlooked


def test_commands_that_are_sent_beside_scripts_are_permitted_to_somebody() -> None:
    sent = set()
    for path in Path(str(files("fairque.redis"))).glob("*.py"):
        sent |= set(re.findall(r'(?:pack\(\(|_scan\(|_write\(|ask\(|_WALKS = .*)b?"([A-Z]+)"', path.read_text()))
    assert {"SSUBSCRIBE", "PING", "HGETALL", "SCAN", "RENAME"} <= sent, "the search finds what there is"
    assert sent <= {command.partition("|")[0].upper() for command in ROLES["admin"].commands}


# Each script under the rules of its role


def cases() -> Iterator[tuple[str, str]]:
    """Each call with the least role that has its script."""
    done: set[str] = set()
    for role in ROLES.values():
        called = {test_cut_calls.CALLS[script].__name__ for script in set(role.scripts()) - done}
        done |= set(role.scripts())
        if role.name in ("reader", "worker"):  # a check and an export go through all keys, as only an admin may
            called -= {test_cut_calls.check.__name__, test_cut_calls.carry.__name__}
        yield from ((role.name, name) for name in sorted(called))
    yield "admin", test_cut_calls.check.__name__


@asynccontextmanager
async def detour(monkeypatch: pytest.MonkeyPatch, queue: TaskQueue, scripts: frozenset[str]) -> AsyncIterator[None]:
    """Scripts other than these are called by the user of another queue object, who may do everything."""
    run = ScriptCaller._run
    blocking = BlockingRequester(queue.connector)

    async def run_by(self: ScriptCaller, script: Script, *args: Any) -> Any:
        is_own = script.name in scripts
        return await run(self if is_own or self.keys.prefix != queue.keys.prefix else queue.reader, script, *args)

    def call_by(requester: BlockingRequester, keys: Keys, arguments: Any, values: Any = ()) -> Any:
        return call_blocking(requester if arguments.script in scripts else blocking, keys, arguments, values)

    async def check_nothing(*_: Any) -> None:
        pass

    with monkeypatch.context() as patch:
        patch.setattr(ScriptCaller, "_run", run_by)
        patch.setattr(fairque.redis.store, "call_blocking", call_by)
        patch.setattr(PermissionScripts, "check_roles", check_nothing)
        yield
    blocking.close()


@pytest.mark.every_server
@pytest.mark.parametrize(("role", "call"), list(cases()))
async def test_a_role_may_do_all_that_it_is_for(
    server: Server, queue_name: str, role: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_scripts(server)
    user, act = f"{role}-{queue_name}", getattr(test_cut_calls, call)
    with user_with(server.execute, server.url, user, _with_others_of(queue_name, role)) as url:
        async with TaskQueue(server.url, name=queue_name, lease=test_cut_calls.LEASE) as queue:
            await test_cut_calls.prepare(queue)
            test_cut_calls.starts.clear()
            async with (
                TaskQueue(url, name=queue_name) as far,
                detour(monkeypatch, queue, ROLES[role].all_scripts),
            ):
                await act(far)
        assert denials(server.execute, user) == []


def _with_others_of(queue_name: str, role: str) -> list[str]:
    """One call opens a queue whose name begins with that of this one."""
    both = words_of(queue_name, role), words_of(f"{queue_name}/new", role)
    return list(dict.fromkeys([word for words in both for word in words if word != "-@all"]))


# What is denied

FOREIGN = "fairque:{another queue}:state"


def told(client: RespClient, *words: str | int) -> str:
    try:
        return repr(client.execute(*words))
    except RedisError as error:
        return str(error)


@pytest.mark.every_server
@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_nothing_beyond(server: Server, queue_name: str, role: str) -> None:
    load_scripts(server)
    keys = Keys(queue_name)
    with (
        user_with(server.execute, server.url, f"{role}-{queue_name}", words_of(queue_name, role)) as url,
        RespClient(url) as client,
    ):
        for words in (
            ("EVAL", "return 1", 0),
            ("EVAL_RO", "return 1", 0),
            ("SCRIPT", "LOAD", "return 1"),
            ("CONFIG", "GET", "*"),
            ("FLUSHALL",),
            ("FUNCTION", "FLUSH"),
            ("FUNCTION", "DELETE", "any"),
            ("ACL", "LIST"),
            ("KEYS", "*"),
            ("CLIENT", "LIST"),
            ("MONITOR",),
            ("GET", FOREIGN),
            ("HGETALL", FOREIGN),
            ("FCALL", load("stats").function.decode(), 1, FOREIGN),
            ("FCALL_RO", load("stats").function.decode(), 1, FOREIGN),
            ("SSUBSCRIBE", "fairque:{another queue}:schedules"),
            ("SUBSCRIBE", "*"),
            ("PSUBSCRIBE", "*"),
        ):
            assert told(client, *words).startswith("NOPERM"), words
        may_load = told(client, "FUNCTION", "LOAD", "REPLACE", load("stats").library.decode())
        assert may_load.startswith("NOPERM") == (role != "admin")
        assert ("NOPERM" in told(client, "SCAN", 0)) == (role not in ("worker", "admin"))
        may_write = told(client, "FCALL", load("agree").function.decode(), 1, keys.state)
        assert may_write.startswith("NOPERM") == (role == "reader")


async def test_a_reader_changes_nothing_by_what_it_may_call(server: Server, queue_name: str) -> None:
    load_scripts(server)
    async with TaskQueue(server.url, name=queue_name) as queue:
        await queue.enqueue(work(1), user_id="acme", task_id="t")
        before = server.keys(queue_name)
        with user_with(server.execute, server.url, f"r-{queue_name}", words_of(queue_name, "reader")) as url:
            async with TaskQueue(url, name=queue_name) as reader:
                assert [each.task_id for each in await reader.tasks("acme")] == ["t"]
                assert (await reader.health()).stats.queued == 1
                for act in (
                    lambda: reader.enqueue(work(1), user_id="acme"),
                    lambda: reader.handle("acme", "t").cancel(),
                    lambda: reader.purge("acme"),
                    lambda: reader.change_settings(lease=7),
                    lambda: reader.set_policy("acme", weight=2),
                ):
                    with pytest.raises(NotPermitted, match=r"fcall.*fairque acl"):
                        await act()
        assert server.keys(queue_name) == before


@pytest.mark.parametrize("name", ["two words", "a*b", "[ab]?", "back\\slash", "it's", "dash-ed", "caret^", "ä"])
async def test_rules_are_for_the_queue_of_this_name_alone(server: Server, queue_name: str, name: str) -> None:
    name = f"{name} {queue_name}"
    others = [name.replace(char, other) for char in set(name) - set("\\") for other in ("-", "x", "*") if other != char]
    others += [f"{name}x", f"x{name}", name[1:], name[:-1], name.replace("\\", "")]
    with (
        user_with(server.execute, server.url, f"u-{queue_name}", words_of(name, "reader")) as url,
        RespClient(url) as client,
    ):
        assert told(client, "GET", Keys(name).state) == "None"
        assert "NOPERM" not in told(client, "FCALL_RO", "nothing", 1, Keys(name).state)
        for other in set(others) - {name}:
            assert told(client, "GET", Keys(other).state).startswith("NOPERM"), other


# Named at the start


@pytest.fixture
def less(server: Server, queue_name: str) -> Iterator[Callable[..., str]]:
    """The URL for a user of all rights but some, given as rules."""
    load_scripts(server)
    name = f"less-{queue_name}"
    with user_with(server.execute, server.url, name, ("~*", "&*", "+@all")) as url:

        def without(*words: str) -> str:
            server.execute("ACL", "SETUSER", name, *words)
            return url

        yield without


async def test_a_server_that_refuses_channels_is_named_as_the_queue_is_opened(
    less: Callable[..., str], queue_name: str
) -> None:
    with pytest.raises(NotPermitted) as refused:
        await TaskQueue(less("resetchannels"), name=queue_name).open()
    assert "SSUBSCRIBE" in str(refused.value)
    assert f"&{Keys(queue_name).prefix}" in str(refused.value).replace("\\", "")
    assert f"fairque acl --role producer --queue {queue_name}" in str(refused.value)
    assert refused.value.missing[0].startswith("&fairque:{")


@pytest.mark.parametrize("command", ["zadd", "ssubscribe", "spublish", "unlink"])
async def test_a_command_that_no_producer_can_do_without_is_named_as_the_queue_is_opened(
    less: Callable[..., str], queue_name: str, command: str
) -> None:
    with pytest.raises(NotPermitted, match=f"may not {command.upper()}") as refused:
        await TaskQueue(less(f"-{command}"), name=queue_name).open()
    assert f"+{command}" in refused.value.missing


@pytest.mark.parametrize("rules", [["resetkeys"], ["resetkeys", "~other:*"], ["-fcall", "-fcall_ro"], ["-@all"]])
async def test_who_may_do_nothing_at_all_is_told_where_to_look(
    less: Callable[..., str], queue_name: str, rules: list[str]
) -> None:
    with pytest.raises(NotPermitted, match="fairque acl"):
        await TaskQueue(less(*rules), name=queue_name).open()


async def test_a_command_that_workers_need_is_named_as_one_starts(less: Callable[..., str], queue_name: str) -> None:
    async with TaskQueue(less("-xautoclaim"), name=queue_name) as queue:
        worker = Worker(queue)
        with pytest.raises(NotPermitted, match=r"may not XAUTOCLAIM; it lacks \+xautoclaim\..*--role worker"):
            await worker.run()
        with pytest.raises(NotPermitted, match="XAUTOCLAIM"):
            async with Worker(queue):
                pytest.fail("it runs")


async def test_a_scheduler_that_may_only_read_says_so_as_it_starts(less: Callable[..., str], queue_name: str) -> None:
    async with TaskQueue(less("resetkeys", "resetchannels", *words_of(queue_name, "reader")), name=queue_name) as queue:
        with pytest.raises(NotPermitted, match=r"may not .*FCALL on .*--role scheduler"):
            await TaskScheduler(queue).run()


@pytest.mark.parametrize("role", ["worker", "scheduler"])
async def test_a_process_that_may_not_do_its_work_ends_with_the_reason(
    less: Callable[..., str], queue_name: str, role: str
) -> None:
    env = {
        "SERVED_URL": less("resetkeys", "resetchannels", *words_of(queue_name, "reader")),
        "SERVED_QUEUE": queue_name,
    }
    ended = await run_command(role, "tests.apps.served:queue", env=env)
    assert ended.code == 1
    assert f"fairque acl --role {role} --queue {queue_name}" in ended.err
    assert "error: Redis at" in ended.err


async def test_a_worker_begins_once_the_permission_is_there(less: Callable[..., str], queue_name: str) -> None:
    new_gate().open()
    async with TaskQueue(less("-xautoclaim"), name=queue_name) as queue:
        handle = await queue.enqueue(work(1), user_id="acme")
        with pytest.raises(NotPermitted):
            await Worker(queue).run()
        less("+xautoclaim")
        async with Worker(queue):
            assert await handle.result(timeout=20) == 1


# Functions that have to be there


@pytest.fixture
def fresh(own_server: Callable[..., EmbeddedServer]) -> EmbeddedServer:
    """A server that nobody has loaded anything into."""
    return own_server(tcp=True)


def app_url(server: EmbeddedServer, *words: str) -> str:
    execute(server, "ACL", "SETUSER", "app", "reset", "on", f">{PASSWORD}", *words)
    return f"redis://app:{PASSWORD}@127.0.0.1:{server.port}"


@pytest.mark.parametrize("role", ["reader", "producer", "worker"])
async def test_functions_that_are_not_there_and_may_not_be_loaded_are_named(
    fresh: EmbeddedServer, queue_name: str, role: str
) -> None:
    url = app_url(fresh, *words_of(queue_name, role))
    with pytest.raises(NotPermitted, match=r"functions of fairque .* `fairque functions load`") as refused:
        await TaskQueue(url, name=queue_name).open()
    assert refused.value.missing == ("+function|load",)
    async with TaskQueue(fresh.url, name=queue_name) as queue:
        assert await queue.reader.load_functions() == len(scripts_of_core())
    async with TaskQueue(url, name=queue_name) as queue:
        assert (await queue.stats()).queued == 0
    assert set(denials(partial(execute, fresh), "app")) == {"command function|load"}


async def test_a_renewal_tells_of_functions_that_are_not_there_as_well(fresh: EmbeddedServer, queue_name: str) -> None:
    new_gate().open()
    url = app_url(fresh, *words_of(queue_name, "worker"))
    async with TaskQueue(fresh.url, name=queue_name) as queue:
        await queue.reader.load_functions()
    execute(fresh, "FUNCTION", "DELETE", load("renew").function.decode())
    async with TaskQueue(url, name=queue_name) as queue:
        requester = BlockingRequester(queue.connector)
        with pytest.raises(NotPermitted, match="fairque functions load"):
            await asyncio.to_thread(renew, requester, queue.keys, "w", {"pid": 1}, [])
        requester.close()


async def test_who_may_load_functions_need_not_be_one_who_may_use_the_queue(
    fresh: EmbeddedServer, queue_name: str
) -> None:
    url = app_url(fresh, "+function|load")
    loaded = await call_command("functions", "load", "--url", url, "--queue", queue_name, "--json")
    assert loaded.json == {"loaded": len(scripts_of_core()), "version": __version__}
    assert (await call_command("functions", "load", "--url", url)).code == 0, "again"
    known = {library[1].decode() for library in execute(fresh, "FUNCTION", "LIST")}
    assert known == {load(name).function.decode() for name in scripts_of_core()}
    denied = await call_command("functions", "load", "--url", app_url(fresh, "+ping"))
    assert denied.code == 1
    assert "function|load" in denied.error[0]


async def test_a_server_that_takes_no_writes_is_not_available_where_eval_is_denied(
    own_server: Callable[..., EmbeddedServer], queue_name: str
) -> None:
    """A function that it does not know cannot be loaded just then."""
    server = own_server(tcp=True)
    async with TaskQueue(server.url, name=queue_name) as queue:
        await queue.reader.load_functions()
    execute(server, "FUNCTION", "DELETE", load("stats").function.decode())
    url = app_url(server, *rules_of(["producer"], Keys(queue_name), loads=True).words)
    async with TaskQueue(url, name=queue_name, timeout=1) as queue:
        execute(server, "CONFIG", "SET", "min-replicas-to-write", "1")
        with pytest.raises(QueueUnavailable, match="replicas"):
            await queue.stats()
        execute(server, "CONFIG", "SET", "min-replicas-to-write", "0")
        assert (await queue.stats()).queued == 0


# Servers of others


@pytest.mark.parametrize(
    "denied",
    [
        ("-@admin", "-@dangerous", "+info"),
        ("-@admin", "-@dangerous"),
        ("-client",),
        ("-info",),
        (
            "-config",
            "-command",
            "-function",
            "-script",
            "-eval",
            "-evalsha",
            "-debug",
            "-memory",
            "-latency",
            "-slowlog",
        ),
        ("-hello", "-acl", "-object", "-keys", "-flushall", "-flushdb", "-shutdown", "-role", "-wait"),
    ],
    ids=" ".join,
)
async def test_a_server_that_permits_no_command_for_administration_does(
    server: Server, less: Callable[..., str], queue_name: str, denied: tuple[str, ...]
) -> None:
    new_gate().open()
    name = f"less-{queue_name}"
    async with TaskQueue(less(*denied), name=queue_name) as queue, Worker(queue):
        handle = await queue.enqueue(work(1), user_id="acme")
        assert await handle.result(timeout=20) == 1
        assert (await queue.health()).stats.finished == 1
        assert (await queue.user("acme")).finished == 1
    assert set(denials(server.execute, name)) <= {"command client|setname", "command info"}


@pytest.mark.parametrize("command", ["CLIENT", "CONFIG", "INFO", "COMMAND"])
async def test_a_server_that_does_not_know_a_command_for_administration_does(
    own_server: Callable[..., EmbeddedServer], tmp_path: Path, queue_name: str, command: str
) -> None:
    new_gate().open()
    (tmp_path / "renamed.conf").write_text(f'rename-command {command} ""\n')
    server = own_server(include=str(tmp_path / "renamed.conf"))
    async with TaskQueue(server.url, name=queue_name) as queue, Worker(queue):
        assert await (await queue.enqueue(work(1), user_id="acme")).result(timeout=20) == 1
