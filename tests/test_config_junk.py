"""Whatever a configuration holds: it is used as it is meant, or refused by a `ConfigError`."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fairque import ConfigError, FairQueueConfig
from fairque.config.config import QueueConfig, RedisConfig, SchedulerConfig, WorkerConfig

SECTIONS: dict[str, Any] = {
    "redis": RedisConfig,
    "queue": QueueConfig,
    "workers": WorkerConfig,
    "scheduler": SchedulerConfig,
}
FIELDS = sorted({field for kind in SECTIONS.values() for field in kind.__struct_fields__})

seconds = st.one_of(st.floats(1, 1e9), st.integers(1, 10**9))
printable = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["C", "Z"]), min_size=1, max_size=20
)
users = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), max_size=4)
optional_text = st.none() | printable


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


servers = some(
    host=st.text(string.ascii_lowercase, min_size=1),
    port=st.integers(1, 65535),
    db=st.integers(0, 15),
    username=optional_text,
    password=optional_text,
    tls=st.booleans(),
    timeout=seconds,
) | some(
    url=st.sampled_from(["redis://h", "rediss://h:1/2", "unix:///x", "sentinel://a,b:1/service", "cluster://a"]),
    username=optional_text,
    password=optional_text,
    timeout=seconds,
)
queues = some(
    name=printable.filter(lambda name: not set("{}") & set(name)),
    priority_step=seconds,
    lease=seconds,
    result_ttl=seconds,
    dead_letter_ttl=seconds,
    usage_ttl=st.integers(3600, 40 * 86400),
    max_message_bytes=st.integers(1, 10**6),
    fairness=st.sampled_from(["cost", "time"]),
)
workers = some(
    id=optional_text,
    assigned_users=users.filter(bool),
    steal_targets=users,
    max_concurrent_tasks=st.integers(1, 10_000),
    processes=st.integers(1, 1000),
    max_tasks=st.none() | st.integers(1, 1_000_000_000),
    max_memory=st.none() | st.sampled_from(["1", "512M", "2GiB"]),
    task_timeout=st.none() | seconds,
    poll_interval=seconds,
    shutdown_timeout=seconds,
    stall_timeout=st.none() | seconds,
    max_deliveries=st.integers(1, 1000),
    unknown_task_patience=seconds,
    cancel_grace=seconds,
    max_tasks_per_child=st.none() | st.integers(1, 1_000_000),
)


def names(given: list[dict[str, Any]]) -> list[str]:
    return [worker.get("id") or str(place) for place, worker in enumerate(given, 1)]


valid = some(
    redis=servers,
    queue=queues,
    workers=st.lists(workers, max_size=3).filter(lambda given: len(set(names(given))) == len(given)),
    scheduler=some(enabled=st.booleans()),
)

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*SECTIONS, *FIELDS]) | st.text() | st.integers(), inner, max_size=3)
        | st.tuples(inner)
    ),
    max_leaves=10,
)
near_misses = st.fixed_dictionaries(
    {},
    optional={
        "redis": st.dictionaries(st.sampled_from(RedisConfig.__struct_fields__), junk, max_size=4) | junk,
        "queue": st.dictionaries(st.sampled_from(QueueConfig.__struct_fields__), junk, max_size=4) | junk,
        "workers": st.lists(st.dictionaries(st.sampled_from(WorkerConfig.__struct_fields__), junk, max_size=4) | junk)
        | junk,
        "scheduler": junk,
    },
)


def load_or_refuse(load: Any, *arguments: Any, **options: Any) -> None:
    try:
        config = load(*arguments, **options)
    except ConfigError as error:
        assert str(error)  # noqa: PT017 - that it is nothing else is the test
    else:
        assert FairQueueConfig.from_dict(config.to_dict(), environ={}) == config
        repr(config)


@given(valid)
def test_a_valid_configuration_comes_back_as_it_was(data: dict[str, Any]):
    config = FairQueueConfig.from_dict(data, environ={})
    back = config.to_dict()
    assert FairQueueConfig.from_dict(back, environ={}) == config
    assert FairQueueConfig.from_dict(back, environ={}).to_dict() == back
    for section in ("redis", "queue", "scheduler"):
        for field, value in data.get(section, {}).items():
            assert back[section][field] == value
    for number, worker in enumerate(data.get("workers", [])):
        for field, value in worker.items():
            assert back["workers"][number][field] == value


@given(near_misses | junk)
@example({"redis": {"url": "redis://[x"}})
@example({"redis": {"url": "redis://\ud800"}})
@example({"redis": {"host": "\ud800", "username": "\udfff"}})
@example({"queue": {"name": "\ud800"}})
@example({"workers": [{"id": "\ud800", "assigned_users": ["\ud800"]}]})
def test_junk_in_a_dict_is_refused_by_our_own_error(data: Any):
    load_or_refuse(FairQueueConfig.from_dict, data, environ={})


@given(
    st.dictionaries(
        st.sampled_from(
            [
                f"FAIRQUE_{section.upper()}_{field.upper()}"
                for section, kind in SECTIONS.items()
                for field in kind.__struct_fields__
            ]
            + [
                f"FAIRQUE_WORKERS_{number}_{field.upper()}"
                for number in range(3)
                for field in WorkerConfig.__struct_fields__
            ]
        )
        | st.text().map("FAIRQUE_".__add__),
        st.text() | st.sampled_from(["1", "true", "1m", "redis://h", "a,b", '["a"]', "[1]", "[", "['"]),
        max_size=5,
    )
)
@example({"FAIRQUE_REDIS_PORT": "9" * 5000})
@example({"FAIRQUE_WORKERS_0_ASSIGNED_USERS": "[" * 100_000})
@example({"FAIRQUE_WORKERS_0_ASSIGNED_USERS": '["\udc80"]'})
def test_junk_in_the_environment_is_refused_by_our_own_error(environ: dict[str, str]):
    load_or_refuse(FairQueueConfig.from_dict, {}, environ=environ)


WORDS = ["redis", "queue", "workers", "port", "id", "url", "1", "1:30", "2020-01-01", "${A}", "${", "$${", "~"]
MARKS = [
    ": ",
    ":",
    "\n",
    "\n  ",
    "\n- ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "? ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "%",
    "\t",
    "\0",
]
TAGS = ["&a ", "*a", "!!int ", "!!bool ", "!!timestamp ", "!x ", "<<", "="]
pieces = st.sampled_from([*WORDS, *MARKS, *TAGS])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(pieces | st.text(max_size=3), max_size=12).map("".join), suffix=st.sampled_from(["yaml", "toml"]))
@example(text="&a : *a", suffix="yaml")
@example(text="redis: !!timestamp x", suffix="yaml")
@example(text="queue: {name: !!binary ä}", suffix="yaml")
@example(text="queue: {name: !!float x}", suffix="yaml")
@example(text="queue: {lease: !!int 9" + "9" * 5000 + "}", suffix="yaml")
@example(text="queue: {lease: 9" + "9" * 5000 + "}", suffix="yaml")
@example(text="queue.lease = 9" + "9" * 5000, suffix="toml")
@example(text="redis: {host: !!null x, tls: !!bool x}", suffix="yaml")
@example(text='redis: {host: "\\ud800"}', suffix="yaml")
def test_junk_in_a_file_is_refused_by_our_own_error(tmp_path: Path, text: str, suffix: str):
    file = tmp_path / f"junk.{suffix}"
    file.write_bytes(text.encode(errors="surrogatepass"))
    load_or_refuse(FairQueueConfig.load, file, environ={"A": "a"})
