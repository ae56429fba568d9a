"""What a configuration is: its fields, where they come from, and what is said about wrong ones."""

from __future__ import annotations

import asyncio
import base64
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio.connection import parse_url
from rich.pretty import pretty_repr

from fairque import (
    Compress,
    ConfigError,
    Encrypt,
    FairQueueConfig,
    QueueSettings,
    Sign,
    StoreError,
    Task,
    TaskFailed,
    TaskHandler,
    TaskQueue,
    Worker,
    current_task,
    task,
)
from fairque.codec.codec import Kind, Place
from fairque.config.config import QueueConfig, RedisConfig, SchedulerConfig, WorkerConfig
from fairque.config.duration import parse_duration, shown_duration
from fairque.embedded.server import EmbeddedServer
from fairque.redis.url import ServerUrl
from tests.support.fleet import execute
from tests.support.process import ROOT

SECRET = "hunter2"
OTHER_QUEUE = QueueConfig(
    name="other",
    priority_step=1,
    lease=2,
    result_ttl=3,
    dead_letter_ttl=4,
    max_message_bytes=5,
    fairness="time",
    usage_ttl=3600,
)
OF_PROCESSES = {"processes", "max_tasks", "max_memory", "http", "http_hosts"}
OTHER_WORKER = WorkerConfig(
    id="alpha",
    assigned_users=("ann",),
    steal_targets=("bob",),
    max_concurrent_tasks=3,
    processes=2,
    task_timeout=4,
    poll_interval=5.5,
    shutdown_timeout=6,
    stall_timeout=7,
    max_deliveries=8,
    unknown_task_patience=9,
    cancel_grace=10,
    max_tasks_per_child=11,
)


def from_dict(data: Any, **environ: str) -> FairQueueConfig:
    return FairQueueConfig.from_dict(data, environ=environ)


def load(tmp_path: Path, text: str, suffix: str = "yaml", **environ: str) -> FairQueueConfig:
    file = tmp_path / f"fairque.{suffix}"
    file.write_text(text)
    return FairQueueConfig.load(file, environ=environ)


def problems_of(data: Any, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        from_dict(data, **environ)
    return str(caught.value).splitlines()


def problems_in(tmp_path: Path, text: str, suffix: str = "yaml", **environ: str) -> list[str]:
    """Without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, suffix, **environ)
    return [line.removeprefix(f"{tmp_path}/fairque.{suffix}") for line in str(caught.value).splitlines()]


# Every field does something


def test_a_queue_gets_every_field_of_its_section():
    others = {"url", "timeout", "codec", "enqueue_middleware", "run_middleware", "firing_headers"}
    assert set(QueueConfig.__struct_fields__) | others == set(inspect.signature(TaskQueue).parameters)
    queue = TaskQueue.from_config(FairQueueConfig(queue=OTHER_QUEUE, redis=RedisConfig(port=1234, timeout=2.5)))
    assert queue.name == "other"
    assert queue.settings == QueueSettings(
        priority_step_ms=1000,
        lease_ms=2000,
        result_ttl_ms=3000,
        dead_letter_ttl_ms=4000,
        usage_ttl_ms=3_600_000,
        max_message_bytes=5,
        fairness="time",
    )
    assert (queue.connector.url, queue.connector.timeout) == ("redis://localhost:1234", 2.5)


KEY = base64.b64encode(b"k" * 32).decode()


def test_a_codec_gets_every_field_of_its_section():
    given = {
        "method": "encrypt",
        "keys": [f"2:{KEY}", f"1:{base64.b64encode(b'o' * 40).decode()}"],
        "hash_key": KEY,
        "realm": "shared",
        "compress_above": 100,
        "accepts_plain": True,
    }
    codec = from_dict({"codec": given}).codec.codec
    assert isinstance(codec, Encrypt)
    assert (codec.realm, codec.accepts_plain) == ("shared", True)
    place = Place("shared", Kind.RESULT, "acme", "id")
    same = Encrypt({"1": b"o" * 40, "2": b"k" * 32}, hash_key=b"k" * 32)
    sealed = codec.seal(place, bytes(1000), b"")
    assert len(sealed) < 200
    assert sealed.startswith(b"e\x012")
    assert same.open(place, sealed, b"", 1000) == bytes(1000)
    assert codec.hashed("shared", None, "a") == same.hashed("shared", None, "a")
    assert isinstance(from_dict({"codec": {"method": "sign", "keys": [f"1:{KEY}"]}}).codec.codec, Sign)
    assert isinstance(from_dict({"codec": {"method": "compress", "compress_above": 5}}).codec.codec, Compress)
    assert from_dict({}).codec.codec is None
    by_variables = from_dict({}, FAIRQUE_CODEC_METHOD="sign", FAIRQUE_CODEC_KEYS=f"2:{KEY}, 1:{KEY}").codec
    assert by_variables.keys == (f"2:{KEY}", f"1:{KEY}")
    assert KEY not in repr(by_variables)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"method": "encrypt"}, "codec.keys: a codec needs a key"),
        ({"method": "sign", "keys": ["short"]}, "codec.keys: a key is written id:base64"),
        ({"method": "sign", "keys": ["1:!"]}, "codec.keys: the key '1' is not in base64"),
        ({"method": "sign", "keys": ["1:aGVsbG8="]}, "codec.keys: the key '1' has 5 bytes"),
        (
            {"method": "sign", "keys": [f"1:{KEY}"], "hash_key": "!"},
            "codec.hash_key: the key 'hash_key' is not in base64",
        ),
        ({"keys": [f"1:{KEY}"]}, "codec.keys: it needs a method: encrypt or sign"),
        ({"method": "compress", "realm": "x"}, "codec.realm: it needs a method"),
        ({"compress_above": 1}, "codec.compress_above: it needs a method"),
        ({"method": "rot13"}, "codec.method: expected 'compress' or 'encrypt' or 'sign', not 'rot13'"),
    ],
)
def test_a_codec_that_cannot_be_is_refused_without_its_keys(given: dict[str, Any], problem: str):
    [line] = problems_of({"codec": given})
    assert problem in line
    assert KEY not in line


def test_a_worker_gets_every_field_of_its_section_but_those_about_processes():
    class Recorder(Worker):
        def __init__(self, _: TaskQueue, **options: Any) -> None:
            self.options = options

    queue = TaskQueue("embedded://")
    options = Recorder.from_config(queue, OTHER_WORKER, on_lost=print).options
    assert options.pop("worker_id").startswith("alpha-")
    assert options.pop("on_lost") is print
    assert list(options.pop("assigned_users")) == ["ann"]
    assert list(options.pop("steal_targets")) == ["bob"]
    assert options.pop("concurrency") == 3
    own_names = {"id", "assigned_users", "steal_targets", "max_concurrent_tasks"} | OF_PROCESSES
    assert options == {name: getattr(OTHER_WORKER, name) for name in set(WorkerConfig.__struct_fields__) - own_names}
    assert set(options) <= set(inspect.signature(Worker).parameters)


def test_a_worker_of_a_whole_configuration_fires_schedules_where_that_says_so():
    queue = TaskQueue("embedded://")
    on, off = FairQueueConfig.from_dict({}, environ={}), {"scheduler": {"enabled": False}}
    assert Worker.from_config(queue, on).options.scheduler
    assert not Worker.from_config(queue, FairQueueConfig.from_dict(off, environ={})).options.scheduler
    assert Worker.from_config(queue, FairQueueConfig.from_dict(off, environ={}), scheduler=True).options.scheduler


def test_one_of_several_workers_of_a_configuration_is_named():
    queue = TaskQueue("embedded://")
    two = {"workers": [{"id": "alpha", "max_concurrent_tasks": 3}, {"max_concurrent_tasks": 4}]}
    config = FairQueueConfig.from_dict(two, environ={})
    assert [Worker.from_config(queue, config, name).options.concurrency for name in ("alpha", "2")] == [3, 4]
    with pytest.raises(ConfigError, match=r"say which .*'alpha', '2'"):
        Worker.from_config(queue, config)
    with pytest.raises(ConfigError, match=r"'beta'.*'alpha', '2'"):
        Worker.from_config(queue, config, "beta")
    with pytest.raises(ConfigError, match="none"):
        Worker.from_config(queue, FairQueueConfig.from_dict({"workers": []}, environ={}))


async def test_a_worker_of_a_configuration_can_be_made_and_has_an_id_of_its_own():
    queue = TaskQueue("embedded://")
    first, second = (Worker.from_config(queue, OTHER_WORKER) for _ in range(2))
    assert first.worker_id != second.worker_id
    options = first.options
    assert (options.concurrency, options.groups, options.poll_interval) == (3, [["ann"], ["bob"]], 5.5)
    assert not Worker.from_config(queue, WorkerConfig()).worker_id.startswith("None")


@pytest.mark.parametrize("made", [TaskQueue, Worker])
def test_the_defaults_are_those_of_what_is_configured(made: type):
    section: Any = QueueConfig() if made is TaskQueue else WorkerConfig()
    names = {"concurrency": "max_concurrent_tasks", "worker_id": "id"}
    defaults = {names.get(name, name): given.default for name, given in inspect.signature(made).parameters.items()}
    shared = defaults.keys() & set(section.__struct_fields__)
    assert len(shared) > 6
    for name in shared - {"assigned_users"}:
        assert getattr(section, name) == defaults[name], name


def test_in_a_configuration_everybody_is_an_asterisk():
    assert WorkerConfig().assigned_users == ("*",)
    queue = TaskQueue("embedded://")
    assert Worker.from_config(queue, WorkerConfig()).options.groups == Worker(queue).options.groups == [()]
    other = WorkerConfig(assigned_users=("ann",), steal_targets=("*",))
    assert Worker.from_config(queue, other).options.groups == [["ann"], ()]


@pytest.mark.parametrize(
    ("section", "field", "accepted", "refused"),
    [
        (QueueConfig, "priority_step", 0, -0.001),
        (QueueConfig, "lease", 0.1, 0.09),
        (QueueConfig, "result_ttl", 0, -1),
        (QueueConfig, "dead_letter_ttl", 1, 0.9),
        (QueueConfig, "usage_ttl", 3600, 3599),
        (QueueConfig, "usage_ttl", 40 * 86400, 40 * 86400 + 1),
        (QueueConfig, "max_message_bytes", 1, 0),
        (QueueConfig, "max_message_bytes", 512 * 1024 * 1024, 512 * 1024 * 1024 + 1),
        (QueueConfig, "name", "n" * 200, "n" * 201),
        (WorkerConfig, "max_concurrent_tasks", 1, 0),
        (WorkerConfig, "max_concurrent_tasks", 10_000, 10_001),
        (WorkerConfig, "max_deliveries", 1, 0),
        (WorkerConfig, "max_deliveries", 1000, 1001),
        (WorkerConfig, "poll_interval", 0.01, 0.009),
        (WorkerConfig, "task_timeout", 0.001, 0),
        (WorkerConfig, "shutdown_timeout", 0, -1),
        (WorkerConfig, "shutdown_timeout", 3_153_600_000, 3_153_600_001),
        (WorkerConfig, "stall_timeout", 0.1, 0.09),
        (WorkerConfig, "unknown_task_patience", 0, -1),
        (WorkerConfig, "cancel_grace", 0, -1),
        (WorkerConfig, "max_tasks_per_child", 1, 0),
        (WorkerConfig, "max_tasks_per_child", 1_000_000, 1_000_001),
        (WorkerConfig, "assigned_users", ("u" * 512,), ("u" * 513,)),
        (WorkerConfig, "steal_targets", tuple(map(str, range(1000))), tuple(map(str, range(1001)))),
    ],
)
async def test_limits_are_those_of_what_is_configured(section: type, field: str, accepted: Any, refused: Any):
    """What a configuration accepts can be used, and what it refuses could not."""

    def use(value: Any) -> None:
        names = {"max_concurrent_tasks": "concurrency"}
        given: dict[str, Any] = {names.get(field, field): value}
        if section is QueueConfig:
            TaskQueue("embedded://", **given)
        else:
            Worker(TaskQueue("embedded://"), **({"assigned_users": ("x",)} | given))

    section(**{field: accepted})
    use(accepted)
    with pytest.raises(ConfigError, match=field):
        section(**{field: refused})
    with pytest.raises(ValueError, match=r"must be|name|bytes|entries"):
        use(refused)


@task
async def patient(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


class Dawdler(TaskHandler):
    async def process_task(self, payload: dict[str, Any]) -> None:
        await asyncio.sleep(payload["seconds"])


async def test_the_task_timeout_of_a_worker_is_for_tasks_that_have_none(queue: TaskQueue):
    own = await queue.enqueue(patient(0.6).options(timeout=30), user_id="ann")
    none = await queue.enqueue(patient(60), user_id="ann")
    payload = await queue.enqueue(Task.create(payload={"seconds": 60}), user_id="ann")
    async with Worker.from_config(queue, WorkerConfig(task_timeout=0.3), handler=Dawdler()):
        assert await own.result(timeout=20) == 0.6
        for handle in (none, payload):
            with pytest.raises(TaskFailed) as caught:
                await handle.result(timeout=20)
            assert caught.value.kind == "timeout"


async def test_tasks_see_the_id_of_the_worker_of_a_configuration(queue: TaskQueue):
    handle = await queue.enqueue(where(), user_id="ann")
    async with Worker.from_config(queue, WorkerConfig(id="alpha")):
        assert (await handle.result(timeout=20)).startswith("alpha-")


@task
async def where() -> str:
    return current_task().worker_id


# Redis


def test_host_port_and_database_make_a_url():
    assert RedisConfig().redis_url == "redis://localhost:6379"
    assert RedisConfig(host="::1", port=1, db=2).redis_url == "redis://[::1]:1/2"
    assert RedisConfig(tls=True, host="example.org").redis_url == "rediss://example.org:6379"


def test_a_host_cannot_say_more_than_its_name():
    assert RedisConfig(host="a/b@c").redis_url == "redis://a%2Fb%40c:6379"


def test_credentials_arrive_whatever_characters_they_have():
    user, password = "a:b@c/d", "p@ss:w/o?r#d% +ü&="
    told = parse_url(RedisConfig(host="example.org", username=user, password=password).redis_url)
    assert (told["username"], told["password"], told["host"]) == (user, password, "example.org")
    told = parse_url(RedisConfig(password=password).redis_url)
    assert (told.get("username"), told["password"]) == (None, password)


def test_tls_options_arrive_as_redis_has_them():
    config = RedisConfig(
        tls=True,
        tls_ca_file="/a b/ca&1.pem",
        tls_cert_file="/cert+.pem",
        tls_key_file="/key.pem",
        tls_key_password="pass#word&",
        tls_check_hostname=False,
    )
    told = parse_url(ServerUrl(config.redis_url).server())
    assert told["ssl_ca_certs"] == "/a b/ca&1.pem"
    assert told["ssl_certfile"] == "/cert+.pem"
    assert told["ssl_keyfile"] == "/key.pem"
    assert told["ssl_password"] == "pass#word&"
    assert told["ssl_check_hostname"] is False


def test_sentinels_get_credentials_of_their_own_and_tls():
    config = RedisConfig(
        url="sentinel://one,two:5/service",
        username="fairque",
        password="a/b",
        sentinel_username="s",
        sentinel_password="c&d",
        tls=True,
        tls_ca_file="/ca.pem",
    )
    url = ServerUrl(config.redis_url)
    assert ([str(host) for host in url.hosts], url.service) == (["one:26379", "two:5"], "service")
    sentinel, master = parse_url(url.sentinel(url.hosts[0])), parse_url(url.server(url.hosts[0]))
    assert (sentinel["username"], sentinel["password"]) == ("s", "c&d")
    assert (master["username"], master["password"]) == ("fairque", "a/b")
    assert sentinel["ssl_ca_certs"] == master["ssl_ca_certs"] == "/ca.pem"


def test_a_url_keeps_its_own_options():
    config = RedisConfig(url="rediss://h?ssl_check_hostname=false", tls_ca_file="/ca.pem", password="x")
    assert config.redis_url == "rediss://:x@h?ssl_check_hostname=false&ssl_ca_certs=/ca.pem"


async def test_an_acl_user_of_a_configuration_gets_in(own_server: Any):
    server: EmbeddedServer = own_server(tcp=True)
    password = "p@ss/w:rd%"
    execute(server, "ACL", "SETUSER", "fair:que", "on", f">{password}", "~*", "&*", "+@all")
    config = FairQueueConfig(redis=RedisConfig(url=server.tcp_url, username="fair:que", password=password))
    async with TaskQueue.from_config(config) as queue:
        assert (await queue.stats()).queued == 0
        assert b"user=fair:que" in execute(server, "CLIENT", "LIST")
    wrong = FairQueueConfig(redis=RedisConfig(url=server.tcp_url, username="fair:que", password=SECRET))
    with pytest.raises(StoreError, match="invalid username-password") as caught:
        await TaskQueue.from_config(wrong).open()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "field", "text"),
    [
        ({"url": "redis://h", "host": "g"}, "host", "one of the two"),
        ({"url": "redis://h", "port": 1}, "port", "one of the two"),
        ({"url": "redis://h", "db": 1}, "db", "one of the two"),
        ({"url": f"redis://:{SECRET}@h", "password": "x"}, "url", "credentials"),
        ({"url": f"{SECRET}@h:6379"}, "url", "begins with a scheme"),
        ({"url": f"rediz://:{SECRET}@h"}, "url", "did you mean 'redis'"),
        ({"url": f"redis://:{SECRET}@h/x"}, "url", "database is a number"),
        ({"url": "embedded://", "tls": True}, "url", "embedded://"),
        ({"sentinel_password": SECRET}, "sentinel_password", "sentinel://"),
        ({"url": "redis://h", "sentinel_username": "x"}, "url", "no option 'sentinel_username'"),
        ({"tls_ca_file": "/x"}, "tls_ca_file", "needs tls"),
        ({"tls_check_hostname": False}, "tls_check_hostname", "needs tls"),
        ({"port": 70_000}, "port", "1 to 65535, not 70000"),
    ],
)
def test_a_server_that_cannot_be_meant_is_refused(given: dict[str, Any], field: str, text: str):
    [problem] = problems_of({"redis": given})
    assert problem.startswith(f"redis.{field}: ")
    assert text in problem
    assert SECRET not in problem


# Secrets


def test_passwords_are_never_shown():
    config = FairQueueConfig(
        redis=RedisConfig(
            url="sentinel://one/service",
            password=SECRET,
            sentinel_password=SECRET,
            tls=True,
            tls_key_password=SECRET,
        )
    )
    inside = FairQueueConfig(redis=RedisConfig(url=f"redis://ann:{SECRET}@example.org"))
    for shown in (config, config.redis, inside, inside.redis):
        for text in (repr(shown), str(shown), f"{shown}", pretty_repr(shown), repr([shown])):
            assert SECRET not in text
            assert "***" in text
    assert config.to_dict()["redis"]["password"] == SECRET


@pytest.mark.parametrize(
    "redis",
    [
        {"password": [SECRET]},
        {"password": {SECRET: SECRET}},
        {"password": int.from_bytes(SECRET.encode())},
        {"password": SECRET, "port": "x"},
        {"url": f"redis://ann:{SECRET}@host:port"},
        f"redis://ann:{SECRET}@host",
        [SECRET],
    ],
)
def test_passwords_are_not_in_errors(redis: Any):
    text = "\n".join(problems_of({"redis": redis}))
    assert SECRET not in text
    assert str(int.from_bytes(SECRET.encode())) not in text


@pytest.mark.parametrize(
    "text",
    [
        f"redis: {{password: *{SECRET}}}",
        f"redis: {{password: !{SECRET} x}}",
        f"redis:\n  password: {SECRET}: x",
        f"redis:\n  password: '{SECRET}",
        f"redis:\n  password: @{SECRET}",
        f"redis:\n  password: %{SECRET}",
        f"redis: redis://:{SECRET}@h",
        f"redis:\n  password: ${{{SECRET}",
    ],
)
def test_passwords_are_not_in_errors_about_the_form_of_a_file(tmp_path: Path, text: str):
    assert SECRET not in "\n".join(problems_in(tmp_path, text))


def test_values_of_variables_are_not_in_errors(tmp_path: Path):
    lines = problems_in(
        tmp_path, "redis:\n  port: ${P}\n  timeout: ${P}\n  tls: ${P}\nqueue:\n  fairness: ${P}", P=SECRET
    )
    assert len(lines) == 4
    assert SECRET not in "".join(lines)
    assert lines[0].startswith(":2, $P: redis.port: expected a whole number")


# Frozen


def test_a_configuration_is_immutable():
    config = FairQueueConfig()
    for section, field in ((config, "redis"), (config.redis, "url"), (config.workers[0], "id")):
        with pytest.raises(AttributeError):
            setattr(section, field, None)
    with pytest.raises(TypeError):
        config.workers[0] = OTHER_WORKER  # type: ignore[index]


def test_a_section_is_checked_when_it_is_made():
    with pytest.raises(ConfigError) as caught:
        WorkerConfig(processes=0, poll_interval="soon", task_timeout=True)  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) == 3
    assert WorkerConfig(poll_interval="1m", assigned_users=["a"]).assigned_users == ("a",)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a RedisConfig"):
        FairQueueConfig(redis={"url": "redis://h"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"expected a RedisConfig, not a string$"):
        FairQueueConfig(redis=f"redis://:{SECRET}@h")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a list of mappings"):
        FairQueueConfig(workers=WorkerConfig())  # type: ignore[arg-type]


# What is wrong


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"quue": {}}, "quue: unknown key; did you mean 'queue'?"),
        ({"x": 1}, "x: unknown key; there are redis, queue, workers, scheduler"),
        ({"redis": {"pasword": "x"}}, "redis.pasword: unknown key; did you mean 'password'?"),
        ({"redis": {"Password": "x"}}, "redis.Password: unknown key; did you mean 'password'?"),
        ({"workers": [{}, {"a\nb": 1}]}, "workers[1].'a\\nb': unknown key; there are id, "),
        ({"redis": {"host": 1}}, "redis.host: expected a string of 1 to 255 characters, not 1, put it in quotes"),
        ({"redis": {"tls": "yes"}}, "redis.tls: expected true or false, not 'yes'"),
        ({"redis": {"port": True}}, "redis.port: expected a whole number from 1 to 65535, not true"),
        ({"redis": {"port": None}}, "redis.port: expected a whole number from 1 to 65535, not null"),
        ({"redis": {"port": 10**60}}, "redis.port: expected a whole number from 1 to 65535, not a number"),
        ({"queue": {"lease": "10 parsecs"}}, "as a number or like '1h30m', not '10 parsecs'"),
        ({"queue": {"lease": float("nan")}}, "not nan"),
        ({"queue": {"lease": False}}, "not false"),
        ({"queue": {"fairness": "fair"}}, "queue.fairness: expected 'cost' or 'time', not 'fair'"),
        ({"queue": {"name": "a{b}"}}, "queue.name: a queue name has 1 to 200 bytes and no braces"),
        ({"queue": ["x"]}, "queue: expected a mapping, not a list"),
        ({"workers": {"id": "a"}}, "workers: expected a list of mappings, not a mapping"),
        ({"workers": ["a"]}, "workers[0]: expected a mapping, not a string"),
        (
            {"workers": [{"assigned_users": "ann"}]},
            "assigned_users: expected a list of at most 1000 strings, not 'ann'",
        ),
        ({"workers": [{"assigned_users": ["a", 7]}]}, "assigned_users: entry 2: expected a string, not 7, put it in"),
        ({"workers": [{"assigned_users": [""]}]}, "workers[0].assigned_users: a user must not be empty"),
        ({"workers": [{"assigned_users": []}]}, "workers[0].assigned_users: a worker needs"),
        ({"workers": [{"id": "a"}, {"id": "a"}]}, "workers: two workers have the id 'a'"),
        ({"workers": [{"id": "2"}, {}]}, "workers: two workers have the id '2'"),
        ({"workers": [{"id": ""}]}, "workers[0].id: expected a string of 1 to 100 characters"),
        ({"workers": [{"id": "a\nb"}]}, "workers[0].id: an id is printable text"),
        ({1: {}}, "1: unknown key; there are redis, queue, "),
        ({"redis": {"host": {"a": 1}}}, "redis.host: expected a string of 1 to 255 characters, not a mapping"),
        ([], "a configuration is a mapping, not a list"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(data: Any, problem: str):
    [line] = problems_of(data)
    assert problem in line


def test_a_dict_that_contains_itself_is_refused():
    data: dict[str, Any] = {}
    data["redis"] = data
    assert "redis.redis: unknown key" in problems_of(data)[0]


def test_a_dict_that_grows_without_end_is_refused():
    wide: Any = ["x"] * 100
    for _ in range(5):
        wide = [wide] * 100
    lines = problems_of({"workers": wide})
    assert lines == [f"workers[{number}]: expected a mapping, not a list" for number in range(100)]


def test_all_problems_are_reported_together():
    lines = problems_of(
        {"redis": {"prt": 1, "port": "x"}, "queue": {"lease": 0}, "workers": [{}, {"processes": 0}]},
        FAIRQUE_QUEUE_LEAS="1",
        FAIRQUE_SCHEDULER_ENABLED="maybe",
    )
    starts = [
        "FAIRQUE_QUEUE_LEAS: unknown",
        "FAIRQUE_SCHEDULER_ENABLED: scheduler.enabled: expected true or false",
        "queue.lease: ",
        "redis.port: ",
        "redis.prt: ",
        "workers[1].processes: ",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(sorted(lines), starts, strict=True):
        assert line.startswith(start)


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("1.5", 1.5),
        ("30s", 30),
        ("250ms", 0.25),
        ("5m", 300),
        ("1h30m", 5400),
        (" 1h 30m ", 5400),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("0s", 0),
    ],
)
def test_durations_are_read(text: str, seconds: float):
    assert parse_duration(text) == seconds
    assert from_dict({"queue": {"result_ttl": text}}).queue.result_ttl == seconds


@pytest.mark.parametrize("text", ["", "s", "1x", "30m1h", "1s1s", "-1s", "1e3", "h1", "1 2", "٣s", "inf", "1..5s"])
def test_what_is_no_duration_is_refused(text: str):
    assert parse_duration(text) is None
    assert len(problems_of({"queue": {"result_ttl": text}})) == 1


@pytest.mark.parametrize("seconds", [0, 0.25, 1, 59, 60, 5400, 86_400, 604_800, 694_861, 1.5])
def test_durations_are_shown_as_they_are_read(seconds: float):
    assert parse_duration(shown_duration(seconds)) == seconds


# Environment


def test_variables_come_on_top():
    config = from_dict(
        {"queue": {"name": "a", "lease": 20}, "workers": [{"id": "x", "processes": 2}, {"id": "y"}]},
        FAIRQUE_QUEUE_NAME="b",
        FAIRQUE_REDIS_DB="3",
        FAIRQUE_REDIS_TLS="on",
        FAIRQUE_REDIS_TLS_CA_FILE="/ca.pem",
        FAIRQUE_QUEUE_RESULT_TTL="2h",
        FAIRQUE_SCHEDULER_ENABLED="false",
        FAIRQUE_WORKERS_1_PROCESSES="5",
        FAIRQUE_WORKERS_1_ASSIGNED_USERS="ann, bob",
        FAIRQUE_WORKERS_2_STEAL_TARGETS='["a,b", "c"]',
    )
    assert config.queue == QueueConfig(name="b", lease=20, result_ttl=7200)
    assert config.redis == RedisConfig(db=3, tls=True, tls_ca_file="/ca.pem")
    assert config.scheduler == SchedulerConfig(enabled=False)
    assert [worker.id for worker in config.workers] == ["x", "y", None]
    assert [worker.processes for worker in config.workers] == [2, 5, 1]
    assert config.workers[1].assigned_users == ("ann", "bob")
    assert config.workers[2].steal_targets == ("a,b", "c")


def test_every_field_has_a_variable():
    for section, name in (
        (RedisConfig, "REDIS"),
        (QueueConfig, "QUEUE"),
        (WorkerConfig, "WORKERS_0"),
        (SchedulerConfig, "SCHEDULER"),
    ):
        for field in section.__struct_fields__:
            with pytest.raises(ConfigError) as caught:
                from_dict({"x": 1}, **{f"FAIRQUE_{name}_{field.upper()}": "1"})
            assert "unknown variable" not in str(caught.value)


def test_a_worker_of_variables_alone():
    assert from_dict({}, FAIRQUE_WORKERS_0_ID="a").workers == (WorkerConfig(id="a"),)
    assert from_dict({"workers": None}, FAIRQUE_WORKERS_0_ID="a").workers == (WorkerConfig(id="a"),)
    assert from_dict({"workers": [None]}, FAIRQUE_WORKERS_0_ID="a").workers == (WorkerConfig(id="a"),)
    [line] = problems_of({}, FAIRQUE_WORKERS_1_ID="a")
    assert line == "FAIRQUE_WORKERS_1_ID: workers[1]: there is no workers[0] before it: workers are counted from 0"


def test_more_than_ten_workers_are_added_in_their_order():
    environ = {f"FAIRQUE_WORKERS_{number}_ID": f"w{number}" for number in range(12)}
    assert [worker.id for worker in from_dict({}, **environ).workers] == [f"w{number}" for number in range(12)]


def test_a_variable_of_a_section_of_the_wrong_type_leaves_the_error_to_it():
    assert problems_of({"redis": "x"}, FAIRQUE_REDIS_HOST="h") == ["redis: expected a mapping, not a string"]
    assert problems_of({"workers": {}}, FAIRQUE_WORKERS_0_ID="h") == [
        "workers: expected a list of mappings, not a mapping"
    ]
    assert problems_of({"workers": [1]}, FAIRQUE_WORKERS_0_ID="h") == ["workers[0]: expected a mapping, not a number"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("FAIRQUE_REDIS_PASWORD", "did you mean FAIRQUE_REDIS_PASSWORD?"),
        ("FAIRQUE_WORKERS_3_PROCESES", "did you mean FAIRQUE_WORKERS_3_PROCESSES?"),
        ("FAIRQUE_WORKERS_PROCESSES", "did you mean FAIRQUE_WORKERS_0_PROCESSES?"),
        ("FAIRQUE_URL", "fields of the configuration"),
        ("FAIRQUE_", "fields of the configuration"),
    ],
)
def test_an_unknown_variable_is_an_error(name: str, hint: str):
    [line] = problems_of({}, **{name: SECRET})
    assert line.startswith(f"{name}: unknown variable; ")
    assert hint in line
    assert SECRET not in line


def test_variables_of_others_are_left_alone():
    others = {
        "FAIRQUE_TRACEBACK": "1",
        "FAIRQUE_TEST_REDIS_URL": "redis://h",
        "FAIRQUE_LIFELINE": "3",
        "FAIRQUE_REPORTS": "4",
        "FAIRQUE_DEMO_QUEUE": "q",
        "FAIRQUE_QUEUE_LEASE": "",  # empty counts as not set
        "FAIRQUE_REDIS_SERVICE_HOST": "10.0.0.1",  # Kubernetes, for a service named fairque-redis
        "FAIRQUE_REDIS_SERVICE_PORT_REDIS": "6379",
        "FAIRQUE_REDIS_PORT": "tcp://10.0.0.1:6379",
        "FAIRQUE_REDIS_PORT_6379_TCP_ADDR": "10.0.0.1",
        "REDIS_URL": "redis://h",
    }
    assert from_dict({}, **others) == FairQueueConfig()


def test_every_variable_that_the_code_reads_is_known():
    """Another part of fairque that reads a variable of its own has to be left alone."""
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    names = set(re.findall(r'"(FAIRQUE_[A-Z0-9_]*[A-Z0-9])"', source))
    assert {"FAIRQUE_REDIS_URL", "FAIRQUE_TRACEBACK"} <= names
    for name in names:
        from_dict({}, **{name: "redis://h"})


def test_the_environment_of_the_process_counts_unless_another_is_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAIRQUE_QUEUE_NAME", "outside")
    assert FairQueueConfig.from_dict({}).queue.name == "outside"
    assert FairQueueConfig.load().queue.name == "outside"
    assert FairQueueConfig.load(environ={}).queue.name == "default"


def test_a_later_url_replaces_everything_about_the_server_but_the_timeout():
    given = {"redis": {"host": "a", "port": 1, "username": "u", "password": SECRET, "tls": True, "timeout": 9}}
    config = from_dict(given, FAIRQUE_REDIS_URL="redis://b")
    assert config.redis == RedisConfig(url="redis://b", timeout=9)
    config = from_dict(given, FAIRQUE_REDIS_URL="redis://b", FAIRQUE_REDIS_PASSWORD="x")
    assert config.redis == RedisConfig(url="redis://b", timeout=9, password="x")


def test_a_later_host_replaces_a_url():
    given = {"redis": {"url": f"redis://:{SECRET}@b", "timeout": 9}}
    assert from_dict(given, FAIRQUE_REDIS_HOST="c").redis == RedisConfig(host="c", timeout=9)


def test_reading_yaml_without_pyyaml_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.delitem(sys.modules, "fairque.config.yaml_file", raising=False)
    assert problems_in(tmp_path, "{}")[0].endswith("pip install 'fairque[yaml]'; TOML works without it")
    assert load(tmp_path, "", "toml") == FairQueueConfig()


def test_a_configuration_survives_msgspec():
    config = FairQueueConfig(queue=OTHER_QUEUE, workers=(OTHER_WORKER,))
    assert msgspec.json.decode(msgspec.json.encode(config), type=FairQueueConfig) == config
