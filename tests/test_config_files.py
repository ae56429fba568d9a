"""Configuration files: how they are read and merged, and those that the project ships."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairque import ConfigError, FairQueueConfig
from fairque.cli.commands.config import service_gaps
from fairque.config.codec import CodecConfig
from fairque.config.config import QueueConfig, RedisConfig, SchedulerConfig, WorkerConfig
from fairque.redis.url import ServerUrl
from fairque.settings import QueueSettings, checked_settings
from tests.support.process import ROOT

SHIPPED = ROOT / "config"
PASSWORDS = {"REDIS_PASSWORD": "first", "SENTINEL_PASSWORD": "second"}

YAML = """\
redis:
  host: example.org
  port: 7000
queue: {name: orders, lease: 30s}
workers:
  - id: alpha
    assigned_users: [ann, "bob"]
  - id: beta
scheduler:
"""
TOML = """\
[redis]
host = "example.org"
port = 7000

[queue]
name = "orders"
lease = "30s"

[[workers]]
id = "alpha"
assigned_users = ["ann", "bob"]

[[workers]]
id = "beta"
"""
MEANT = FairQueueConfig(
    redis=RedisConfig(host="example.org", port=7000),
    queue=QueueConfig(name="orders", lease=30),
    workers=(WorkerConfig(id="alpha", assigned_users=("ann", "bob")), WorkerConfig(id="beta")),
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def problems_of(*files: Path, **environ: str) -> list[str]:
    """Without the directory."""
    with pytest.raises(ConfigError) as caught:
        FairQueueConfig.load(*files, environ=environ)
    return [line.removeprefix(f"{files[0].parent}/") for line in str(caught.value).splitlines()]


# Reading


def test_yaml_and_toml_and_a_dict_say_the_same(tmp_path: Path):
    yaml, toml = write(tmp_path / "a.yaml", YAML), write(tmp_path / "a.toml", TOML)
    assert FairQueueConfig.from_yaml(yaml, environ={}) == MEANT
    assert FairQueueConfig.from_yaml(str(yaml), environ={}) == MEANT
    assert FairQueueConfig.from_toml(toml, environ={}) == MEANT
    assert FairQueueConfig.load(yaml, environ={}) == FairQueueConfig.load(toml, environ={}) == MEANT
    assert FairQueueConfig.from_dict(MEANT.to_dict(), environ={}) == MEANT


def test_the_suffix_does_not_matter_where_the_form_is_said(tmp_path: Path):
    assert FairQueueConfig.from_yaml(write(tmp_path / "config", YAML), environ={}) == MEANT
    assert FairQueueConfig.from_toml(write(tmp_path / "conf", TOML), environ={}) == MEANT


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "{}", "redis:\nqueue:\nworkers:\nscheduler:\n", "workers: [null]"]
)
def test_what_is_empty_takes_nothing_away(tmp_path: Path, text: str):
    assert FairQueueConfig.load(write(tmp_path / "a.yaml", text), environ={}) == FairQueueConfig()


def test_an_empty_list_of_workers_is_one_without_any(tmp_path: Path):
    assert FairQueueConfig.load(write(tmp_path / "a.yml", "workers: []"), environ={}).workers == ()


def test_anchors_and_merge_keys_save_repetition(tmp_path: Path):
    text = """
workers:
  - &base {id: a, processes: 3, cancel_grace: 9}
  - {<<: *base, id: b}
  - {<<: [{id: c, processes: 4}, *base]}
"""
    workers = FairQueueConfig.load(write(tmp_path / "a.yaml", text), environ={}).workers
    assert [(worker.id, worker.processes, worker.cancel_grace) for worker in workers] == [
        ("a", 3, 9),
        ("b", 3, 9),
        ("c", 4, 9),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("redis:\n  hots: x", "a.yaml:2: redis.hots: unknown key; did you mean 'host'?"),
        ("redis:\n  port: 1\n\n  port: 2", "a.yaml:4: not valid YAML: port is given twice"),
        ("queue: {}\nqueue: {}", "a.yaml:2: not valid YAML: queue is given twice"),
        (
            "workers:\n- id: a\n- processes: 0",
            "a.yaml:3: workers[1].processes: expected a whole number from 1 to 1000, not 0",
        ),
        (
            "workers:\n- assigned_users:\n  - no",
            "a.yaml:3: workers[0].assigned_users: entry 1: expected a string, not false, put it in quotes",
        ),
        ("redis:\n  username: 12", "a.yaml:2: redis.username: expected a string, not 12, put it in quotes"),
        ("redis: [", "a.yaml:1: not valid YAML: expected the node content, but found …"),
        ("a: b: c", "a.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("{}\n---\n{}", "a.yaml:2: not valid YAML: but found another document"),
        ("- a", "a.yaml: a configuration is a mapping, with sections such as redis and queue"),
        ("just text", "a.yaml: a configuration is a mapping, with sections such as redis and queue"),
        ("? [a]\n: b", "a.yaml:1: not valid YAML: keys are strings"),
        ("queue:\n  <<: 1", "a.yaml:2: not valid YAML: << takes a mapping"),
        ("queue: &a\n  name: *a", "a.yaml:1: queue.name: expected a string, not a mapping"),
        ("a: \0", "a.yaml: not valid YAML"),
        ("a: !!int x", "a.yaml:1: not valid YAML: not a value that YAML knows"),
        ("a: !!python/object/apply:os.getcwd []", "a.yaml:1: not valid YAML: could not determine a constructor"),
        ("queue: {name: !!python/name:os.getcwd x}", "a.yaml:1: not valid YAML: could not determine a constructor"),
        ("queue: {name: 2020-13-45}", "a.yaml:1: not valid YAML: not a value that YAML knows"),
        ("queue: {name: 2020-01-05}", "a.yaml:1: queue.name: expected a string, not a date"),
        ("[" * 5000, "a.yaml: not valid YAML"),
    ],
)
def test_what_is_wrong_in_yaml_is_named_with_its_line(tmp_path: Path, text: str, problem: str):
    lines = problems_of(write(tmp_path / "a.yaml", text))
    assert len(lines) == 1
    assert lines[0].startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[redis]\nhots = 1", "a.toml: redis.hots: unknown key; did you mean 'host'?"),
        ("[redis]\n[redis]", "a.toml: not valid TOML: "),
        ("port =", "a.toml: not valid TOML: Invalid value (at end of document)"),
        ("[queue]\nname = 2020-01-01", "a.toml: queue.name: expected a string, not a date"),
        ("a = " + "[" * 5000, "a.toml: not valid TOML"),
    ],
)
def test_what_is_wrong_in_toml_is_named_with_its_file(tmp_path: Path, text: str, problem: str):
    [line] = problems_of(write(tmp_path / "a.toml", text))
    assert line.startswith(problem)


def test_files_that_cannot_be_read_are_named_all_together(tmp_path: Path):
    latin = tmp_path / "b.yaml"
    latin.write_bytes(b"queue: {name: \xe4}")
    wrong = write(tmp_path / "c.toml", "x = 1")
    lines = problems_of(tmp_path / "a.yaml", latin, tmp_path / "c.ini", wrong, tmp_path)
    assert lines[0] == "a.yaml: cannot be read: No such file or directory"
    assert lines[1].endswith("b.yaml: cannot be read: not UTF-8")
    assert lines[2].endswith("c.ini: the name of a configuration file ends in .yaml, .yml or .toml")
    assert lines[3].endswith(
        "c.toml: x: unknown key; there are redis, queue, workers, scheduler, codec, policies, groups, limits"
    )
    assert "the name of a configuration file ends" in lines[4]


def test_aliases_cannot_blow_a_file_up(tmp_path: Path):
    text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for name, inner in ("ba", "cb", "dc", "ed", "fe", "gf"):
        text += f"{name}: &{name} [{', '.join([f'*{inner}'] * 10)}]\n"
    assert len(problems_of(write(tmp_path / "a.yaml", text))) == 7


# Merging


def test_later_files_win_mappings_merge_and_lists_replace(tmp_path: Path):
    first = write(tmp_path / "a.yaml", YAML)
    second = write(tmp_path / "b.toml", 'queue.lease = 5\nscheduler.enabled = false\n[[workers]]\nid = "only"')
    config, origins = FairQueueConfig.load_with_origins(first, second, environ={"FAIRQUE_REDIS_DB": "2"})
    assert config.redis == RedisConfig(host="example.org", port=7000, db=2)
    assert config.queue == QueueConfig(name="orders", lease=5)
    assert config.workers == (WorkerConfig(id="only"),)
    assert config.scheduler == SchedulerConfig(enabled=False)
    assert origins == {
        "redis.host": f"{first}:2",
        "redis.port": f"{first}:3",
        "redis.db": "FAIRQUE_REDIS_DB",
        "queue.name": f"{first}:4",
        "queue.lease": str(second),
        "workers[0].id": str(second),
        "scheduler.enabled": str(second),
    }


def test_an_empty_section_of_a_later_file_takes_nothing_away(tmp_path: Path):
    first = write(tmp_path / "a.yaml", YAML)
    second = write(tmp_path / "b.yaml", "redis:\nworkers:\n")
    assert FairQueueConfig.load(first, second, environ={}) == MEANT


def test_null_takes_a_value_back(tmp_path: Path):
    first = write(tmp_path / "a.yaml", "redis: {password: x}")
    second = write(tmp_path / "b.yaml", "redis: {password: null}")
    assert FairQueueConfig.load(first, second, environ={}) == FairQueueConfig()


def test_a_url_of_a_later_file_replaces_the_server_of_an_earlier_one(tmp_path: Path):
    first = write(tmp_path / "a.yaml", "redis: {host: a, password: x, timeout: 9}")
    second = write(tmp_path / "b.yaml", "redis: {url: 'redis://b'}")
    third = write(tmp_path / "c.yaml", "redis: {host: c}")
    assert FairQueueConfig.load(first, second, environ={}).redis == RedisConfig(url="redis://b", timeout=9)
    assert FairQueueConfig.load(first, second, third, environ={}).redis == RedisConfig(host="c", timeout=9)


def test_a_key_that_does_not_exist_is_reported_even_when_a_url_replaces_its_server(tmp_path: Path):
    first = write(tmp_path / "a.yaml", "redis: {pasword: x}")
    assert "redis.pasword: unknown key" in problems_of(first, FAIRQUE_REDIS_URL="redis://b")[0]


# Variables in files


def test_variables_are_filled_in_and_take_the_type_of_their_field(tmp_path: Path):
    text = """
redis: {password: "${PW}", port: "${PORT:-7000}", username: "${NOBODY:-}", tls: "${TLS}"}
queue: {name: "a-${NAME}-${NAME}", lease: "${LEASE:-20s}"}
workers: [{assigned_users: "${USERS}", steal_targets: ["x${NAME}"], id: "$${NAME}"}]
"""
    environ = {"PW": "${NAME}$", "NAME": "n", "TLS": "true", "USERS": "ann,bob"}
    config = FairQueueConfig.load(write(tmp_path / "a.yaml", text), environ=environ)
    assert config.redis == RedisConfig(password="${NAME}$", port=7000, tls=True)
    assert (config.queue.name, config.queue.lease) == ("a-n-n", 20)
    assert config.workers == (WorkerConfig(id="${NAME}", assigned_users=("ann", "bob"), steal_targets=("xn",)),)


def test_variables_are_filled_in_in_toml_and_named_as_origin(tmp_path: Path):
    file = write(tmp_path / "a.toml", 'redis.password = "${PW}"')
    config, origins = FairQueueConfig.load_with_origins(file, environ={"PW": "x"})
    assert config.redis.password == "x"
    assert origins == {"redis.password": f"{file}, $PW"}


def test_a_missing_variable_is_named(tmp_path: Path):
    lines = problems_of(write(tmp_path / "a.yaml", "redis:\n  port: ${PORT}\n  password: ${PW}\nqueue: {lease: 0}"))
    assert lines[:2] == [
        "a.yaml:2: redis.port: the environment variable PORT is not set",
        "a.yaml:3: redis.password: the environment variable PW is not set",
    ]
    assert len(lines) == 3


def test_a_variable_is_not_missed_where_another_source_wins(tmp_path: Path):
    file = write(tmp_path / "a.yaml", "redis:\n  password: ${PW}")
    assert FairQueueConfig.load(file, environ={"FAIRQUE_REDIS_URL": "redis://h"}).redis == RedisConfig(url="redis://h")
    assert (
        FairQueueConfig.load(file, write(tmp_path / "b.yaml", "redis: {password: y}"), environ={}).redis.password == "y"
    )
    assert FairQueueConfig.load(file, environ={"FAIRQUE_REDIS_PASSWORD": "z"}).redis.password == "z"


@pytest.mark.parametrize("text", ["${}", "${1A}", "${A:?x}", "x${A"])
def test_what_looks_like_a_variable_and_is_none_is_refused(tmp_path: Path, text: str):
    [line] = problems_of(write(tmp_path / "a.yaml", f"queue:\n  name: '{text}'"), A="a")
    assert line == "a.yaml:2: queue.name: a variable is written ${NAME} or ${NAME:-default}, and a plain ${ as $${"


def test_files_may_refer_to_variables_of_any_name(tmp_path: Path):
    file = write(tmp_path / "a.yaml", "redis: {password: '${FAIRQUE_SECRET}'}")
    assert FairQueueConfig.load(file, environ={"FAIRQUE_SECRET": "x"}).redis.password == "x"
    environ = {"FAIRQUE_SECRET": "x", "FAIRQUE_REDIS_URL": "redis://h"}
    assert FairQueueConfig.load(file, environ=environ).redis == RedisConfig(url="redis://h")


def test_a_dict_is_taken_as_it_is():
    assert FairQueueConfig.from_dict({"redis": {"password": "${PW}"}}, environ={}).redis.password == "${PW}"


# What is shipped


def uncommented(name: str) -> str:
    """With every setting switched on. Prose has a space after its #."""
    return re.sub(r"^( *)#(?=[a-z_])", r"\1", (SHIPPED / name).read_text(), flags=re.MULTILINE)


def test_fairque_yaml_changes_nothing_as_it_is():
    assert FairQueueConfig.from_yaml(SHIPPED / "fairque.yaml", environ={}) == FairQueueConfig()


def test_fairque_yaml_shows_every_field_with_its_default(tmp_path: Path):
    file = write(tmp_path / "all.yaml", uncommented("fairque.yaml"))
    config, origins = FairQueueConfig.load_with_origins(file, environ={})
    assert msgspec.structs.replace(config, queue=QueueConfig()) == FairQueueConfig()
    settings = msgspec.structs.asdict(config.queue)
    assert settings.pop("name") == QueueConfig().name
    assert settings.pop("partitions") == QueueSettings().partitions
    assert QueueSettings(**checked_settings(**settings)) == QueueSettings()
    assert checked_settings(**settings).keys() == set(QueueSettings.__struct_fields__) - {"partitions"}
    sections: dict[str, Any] = {
        "redis": RedisConfig,
        "queue": QueueConfig,
        "workers[0]": WorkerConfig,
        "scheduler": SchedulerConfig,
        "codec": CodecConfig,
    }
    assert set(origins) == {f"{path}.{field}" for path, kind in sections.items() for field in kind.__struct_fields__}


def test_multi_worker_yaml_has_two_workers_that_cover_for_each_other():
    config = FairQueueConfig.from_yaml(SHIPPED / "multi-worker.yaml", environ={})
    alpha, beta = config.workers
    assert set(alpha.assigned_users) <= set(beta.steal_targets)
    assert set(beta.assigned_users) <= set(alpha.steal_targets)
    assert not set(alpha.assigned_users) & set(beta.assigned_users)
    assert service_gaps(config) == []


def test_production_yaml_takes_its_passwords_from_the_environment():
    config, origins = FairQueueConfig.load_with_origins(SHIPPED / "production.yaml", environ=PASSWORDS)
    assert (config.redis.password, config.redis.sentinel_password) == ("first", "second")
    assert re.fullmatch(r".*production\.yaml:\d+, \$REDIS_PASSWORD", origins["redis.password"])
    assert config.redis.tls
    assert config.redis.username
    url = ServerUrl(config.redis.redis_url)
    assert url.scheme == "sentinel"
    assert len(url.hosts) == 3
    assert url.server(url.hosts[0]).startswith("rediss://fairque:first@")
    assert service_gaps(config) == []


def test_production_yaml_does_without_no_password():
    assert len(problems_of(SHIPPED / "production.yaml")) == len(PASSWORDS)
