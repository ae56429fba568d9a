"""`FairQueueConfig`: everything that can be set, from files, dicts and environment variables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta

from fairque.checks import MAX_SECONDS, check_id
from fairque.config.codec import CodecConfig
from fairque.config.endpoint import parse_endpoint
from fairque.config.hosts import checked_hosts
from fairque.config.policies import GroupConfig, LimitConfig, PolicyConfig
from fairque.config.section import Section
from fairque.config.server import RedisConfig
from fairque.config.size import parse_size
from fairque.config.sources import Sources
from fairque.errors import ConfigError, InvalidInput
from fairque.everybody import EVERYONE
from fairque.redis.keys import Keys
from fairque.redis.partitions import MOST_PARTITIONS
from fairque.settings import LEAST_USAGE_TTL, MOST_USAGE_TTL

__all__ = ["FairQueueConfig", "Loaded", "QueueConfig", "RedisConfig", "SchedulerConfig", "WorkerConfig"]

Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
Users = Annotated[tuple[str, ...], Meta(max_length=1000)]


class QueueConfig(Section, frozen=True, kw_only=True):
    """What `TaskQueue` is told, by the same names. What is not given is as the queue has it."""

    name: str = "default"
    priority_step: Seconds | None = None
    lease: Annotated[float, Meta(ge=0.1, le=MAX_SECONDS)] | None = None
    result_ttl: Seconds | None = None
    dead_letter_ttl: Annotated[float, Meta(ge=1, le=MAX_SECONDS)] | None = None
    max_message_bytes: Annotated[int, Meta(ge=1, le=512 * 1024 * 1024)] | None = None
    fairness: Literal["cost", "time"] | None = None
    usage_ttl: Annotated[float, Meta(ge=LEAST_USAGE_TTL, le=MOST_USAGE_TTL)] | None = None
    partitions: Annotated[int, Meta(ge=1, le=MOST_PARTITIONS)] | None = None

    checks: ClassVar[Mapping[str, Callable[[Any], object]]] = {"name": Keys}


def _check_users(users: tuple[str, ...]) -> None:
    for user in users:
        check_id("a user", user)


def _check_worker_id(text: str) -> None:
    if not text.isprintable():
        raise InvalidInput(f"an id is printable text, not {text!r}")


class WorkerConfig(Section, frozen=True, kw_only=True):
    """What a `Worker` is told.

    Args:
        id: What its worker ids begin with; host, process and a random part follow, so that several processes, and the
            old and the new one of a deployment, never share an id.
        assigned_users: Users served first; ``"*"`` is everyone.
        steal_targets: Users served when the assigned ones have nothing.
        max_concurrent_tasks: Tasks that a process runs at once.
        processes: Worker processes that ``fairque worker`` starts.
        max_tasks, max_memory: What makes it replace one of them: so many runs of tasks, or so many bytes, such as
            ``"512M"``. See `Worker.serve`.
        http: Where ``fairque worker`` answers probes, such as ``"0.0.0.0:8080"``; None: nowhere. One address answers
            for all workers that a command runs.
        http_hosts: Names under which it is asked there, beside addresses and the own name of the machine.
        task_timeout: Seconds that a task may run which has no timeout of its own; None: as long as it takes.
        poll_interval, shutdown_timeout, stall_timeout, max_deliveries, unknown_task_patience, cancel_grace,
        max_tasks_per_child, max_leftover_threads: See `Worker`.
    """

    id: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    assigned_users: Users = (EVERYONE,)
    steal_targets: Users = ()
    max_concurrent_tasks: Annotated[int, Meta(ge=1, le=10_000)] = 10
    processes: Annotated[int, Meta(ge=1, le=1_000)] = 1
    max_tasks: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    max_memory: Annotated[str, Meta(min_length=1, max_length=20)] | None = None
    http: Annotated[str, Meta(min_length=1, max_length=300)] | None = None
    http_hosts: Annotated[tuple[str, ...], Meta(max_length=100)] = ()
    task_timeout: Annotated[float, Meta(ge=0.001, le=MAX_SECONDS)] | None = None
    poll_interval: Annotated[float, Meta(ge=0.01, le=MAX_SECONDS)] = 5.0
    shutdown_timeout: Seconds = 25.0
    stall_timeout: Annotated[float, Meta(ge=0.1, le=MAX_SECONDS)] | None = 300.0
    max_deliveries: Annotated[int, Meta(ge=1, le=1_000)] = 5
    unknown_task_patience: Seconds = 3600.0
    cancel_grace: Seconds = 5.0
    max_tasks_per_child: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    max_leftover_threads: Annotated[int, Meta(ge=1, le=10_000)] = 80

    checks: ClassVar[Mapping[str, Callable[[Any], object]]] = {
        "id": _check_worker_id,
        "max_memory": parse_size,
        "http": parse_endpoint,
        "http_hosts": checked_hosts,
        "assigned_users": _check_users,
        "steal_targets": _check_users,
    }

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if not self.assigned_users and not self.steal_targets:
            yield "assigned_users", "a worker needs assigned_users or steal_targets; '*' is everyone"


class SchedulerConfig(Section, frozen=True, kw_only=True):
    """The scheduler inside of the workers.

    Args:
        enabled: Fire due schedules: what ``fairque worker`` gives to `Worker` as `scheduler`.
    """

    enabled: bool = True


class Loaded(NamedTuple):
    """A configuration, and where each value that is not a default came from, by its path (``workers[0].id``)."""

    config: FairQueueConfig
    origins: dict[str, str]


class FairQueueConfig(Section, frozen=True, kw_only=True):
    """Everything that can be set. Immutable, checked as a whole, and it never shows a password.

    Later sources win over earlier ones: mappings merge, lists replace, and ``FAIRQUE_…`` variables come on top of all
    (``FAIRQUE_REDIS_URL``, ``FAIRQUE_QUEUE_NAME``, ``FAIRQUE_WORKERS_0_PROCESSES``). A `redis.url` replaces all that
    earlier sources say about the server, its passwords included, and a `redis.host` an earlier url. In files,
    ``${NAME}`` and ``${NAME:-default}`` stand for environment variables. Durations are seconds, or texts like ``30s``,
    ``1h30m`` and ``7d``.

    Args:
        redis: Where Redis is.
        queue: What `TaskQueue` is told.
        workers: What each `Worker` is told. Without this section, there is one that serves everyone.
        scheduler: Whether the workers fire schedules.
        codec: What contents look like in Redis.
        policies, groups, limits: What governs users and groups of them, and limits of tasks. Set in Redis by
            `TaskQueue.apply_policies`, which ``fairque worker`` calls when it starts, and ``fairque policy apply``.

    Raises:
        ConfigError: With all that is wrong, a line each: where it stands, the path, the problem.
    """

    redis: RedisConfig = RedisConfig()
    queue: QueueConfig = QueueConfig()
    workers: tuple[WorkerConfig, ...] = (WorkerConfig(),)
    scheduler: SchedulerConfig = SchedulerConfig()
    codec: CodecConfig = CodecConfig()
    policies: tuple[PolicyConfig, ...] = ()
    groups: tuple[GroupConfig, ...] = ()
    limits: tuple[LimitConfig, ...] = ()

    @classmethod
    def from_yaml(cls, *files: str | Path, environ: Mapping[str, str] | None = None) -> FairQueueConfig:
        """From YAML files, later ones over earlier ones. Needs ``pip install 'fairque[yaml]'``."""
        return cls._of_files(files, environ, "yaml").config

    @classmethod
    def from_toml(cls, *files: str | Path, environ: Mapping[str, str] | None = None) -> FairQueueConfig:
        """From TOML files, later ones over earlier ones."""
        return cls._of_files(files, environ, "toml").config

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, environ: Mapping[str, str] | None = None) -> FairQueueConfig:
        """From a dict, as a file would hold it. `environ` is what is put on top, instead of the environment."""
        sources = Sources(cls, os.environ if environ is None else environ)
        sources.add_dict(data)
        sources.add_environment()
        return sources.built(cls)[0]

    @classmethod
    def load(cls, *files: str | Path, environ: Mapping[str, str] | None = None) -> FairQueueConfig:
        """From files, each read by its suffix (.yaml, .yml, .toml); without any, from the environment alone."""
        return cls.load_with_origins(*files, environ=environ).config

    @classmethod
    def load_with_origins(cls, *files: str | Path, environ: Mapping[str, str] | None = None) -> Loaded:
        """The same, with where each value came from: ``file:line``, or the name of a variable."""
        return cls._of_files(files, environ, None)

    def to_dict(self) -> dict[str, Any]:
        """All values, the defaults and the passwords as well, as `from_dict` takes them."""
        values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return values

    def contradictions(self) -> Iterator[tuple[str, str]]:
        names = self.worker_names()
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield "workers", f"two workers have the id {name!r}; without an id, a worker is called by its place"
        for section in ("policies", "groups", "limits"):
            named = [getattr(entry, entry.named_by) for entry in getattr(self, section)]
            for name, count in Counter(named).items():
                if count > 1:
                    yield section, f"{count} entries are about {name!r}: put their rules into one"

    def worker_names(self) -> list[str]:
        """The ids of the workers; one without an id is called by its place: ``"1"``, ``"2"``."""
        return [worker.id or str(place) for place, worker in enumerate(self.workers, 1)]

    def worker(self, name: str | None = None) -> WorkerConfig:
        """The worker of this name (see `worker_names`), or the only one. Raises `ConfigError` where there is none."""
        named = dict(zip(self.worker_names(), self.workers, strict=True))
        if name is None and len(named) == 1:
            return self.workers[0]
        if name not in named:
            asked = "say which of its workers" if name is None else f"no worker is called {name!r}"
            raise ConfigError(f"the configuration: {asked}; there are {', '.join(map(repr, named)) or 'none'}")
        return named[name]

    @classmethod
    def _of_files(cls, files: Sequence[str | Path], environ: Mapping[str, str] | None, form: str | None) -> Loaded:
        sources = Sources(cls, os.environ if environ is None else environ)
        for file in files:
            sources.add_file(Path(file), form)
        sources.add_environment()
        return Loaded(*sources.built(cls))
