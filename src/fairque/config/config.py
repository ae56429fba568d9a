"""`FairQueueConfig`: everything that can be set, from files, dicts and environment variables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple
from urllib.parse import quote

import msgspec
from msgspec import Meta

from fairque.checks import MAX_SECONDS, check_id
from fairque.config.build import Builder, sections_of
from fairque.config.environment import put_on_top
from fairque.config.policies import GroupConfig, LimitConfig, PolicyConfig
from fairque.config.sources import Node, Problems, fill_in, merge, read_dict, read_file, references
from fairque.config.values import Section, fields_of
from fairque.errors import InvalidInput
from fairque.models import EVERYONE
from fairque.redis.keys import Keys
from fairque.redis.url import Address, ServerUrl

__all__ = ["FairQueueConfig", "Loaded", "QueueConfig", "RedisConfig", "SchedulerConfig", "WorkerConfig"]

DAY = 86_400.0
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
Users = Annotated[tuple[str, ...], Meta(max_length=1000)]
_TLS_OPTIONS = {
    "tls_ca_file": "ssl_ca_certs",
    "tls_cert_file": "ssl_certfile",
    "tls_key_file": "ssl_keyfile",
    "tls_key_password": "ssl_password",
}
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


def _quoted(text: str | None, safe: str = "") -> str:
    return quote(text or "", safe=safe)


class RedisConfig(Section, frozen=True, kw_only=True):
    """Where Redis is, and how to connect to it.

    Args:
        url: Any URL that `TaskQueue` takes, instead of `host`, `port` and `db`. What it does not say may be said by the
            fields below: ``url: sentinel://host1,host2/service`` with a `password` and `tls`.
        host: Name or address.
        port: Of the server.
        db: Number of the database.
        username: Of an ACL user.
        password: Of that user, or of the server.
        sentinel_username: For the sentinels, where they ask for one.
        sentinel_password: For the sentinels.
        tls: Connect by TLS.
        tls_ca_file: Certificates of the authorities to trust, instead of those of the system.
        tls_cert_file: Certificate of this client.
        tls_key_file: Its key.
        tls_key_password: Of an encrypted key.
        tls_check_hostname: The certificate of the server must be one for its name.
        timeout: Seconds within which every call succeeds or raises `QueueUnavailable`.
    """

    url: str | None = None
    host: Annotated[str, Meta(min_length=1, max_length=255)] = "localhost"
    port: Annotated[int, Meta(ge=1, le=65535)] = 6379
    db: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    username: str | None = None
    password: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    tls: bool = False
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    tls_key_password: str | None = None
    tls_check_hostname: bool = True
    timeout: Annotated[float, Meta(ge=0.001, le=MAX_SECONDS)] = 5.0

    secrets: ClassVar[frozenset[str]] = frozenset(("password", "sentinel_password", "tls_key_password"))

    @property
    def redis_url(self) -> str:
        """All of it as one URL, as `TaskQueue` takes it; with the passwords."""
        scheme, _, rest = (self.url or self._own_url()).partition("://")
        if self.tls and scheme == "redis":
            scheme = "rediss"
        if self.username is not None or self.password is not None:
            rest = f"{_quoted(self.username)}:{_quoted(self.password)}@{rest}"
        options = "&".join(f"{name}={value}" for name, value in self._options(scheme).items())
        return f"{scheme}://{rest}{'&' if '?' in rest else '?'}{options}" if options else f"{scheme}://{rest}"

    def shown(self, field: str) -> Any:
        if field == "url" and self.url is not None:
            return ServerUrl(self.url).safe
        return super().shown(field)

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        if self.url is not None and "://" not in self.url:
            yield "url", "it begins with a scheme, such as redis://"
            return
        contradictions = [*self._contradictions(), *self._useless_tls()]
        if contradictions:
            yield from contradictions
            return
        try:
            ServerUrl(self.redis_url)
        except InvalidInput as error:
            yield "host" if self.url is None else "url", str(error)

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        if self.url is None:
            for name in _SENTINEL_OPTIONS:
                if getattr(self, name) is not None:
                    yield name, "it needs a url of sentinels, such as sentinel://host1,host2/service"
            return
        for name, default in (("host", "localhost"), ("port", 6379), ("db", 0)):
            if getattr(self, name) != default:
                yield name, "the url says it already: give one of the two"
        authority = self.url.partition("://")[2].partition("/")[0]
        if "@" in authority and (self.username is not None or self.password is not None):
            yield "url", "it has credentials in it, and username or password are given as well: give one of the two"

    def _useless_tls(self) -> Iterator[tuple[str, str]]:
        url = self.url or ""
        if self.tls or url.startswith("rediss://") or "tls=" in url:
            return
        for name in (*_TLS_OPTIONS, "tls_check_hostname"):
            if getattr(self, name) not in (None, True):
                yield name, "it needs tls: true"

    def _own_url(self) -> str:
        return f"redis://{Address(_quoted(self.host.strip('[]'), ':'), self.port)}{f'/{self.db}' if self.db else ''}"

    def _options(self, scheme: str) -> dict[str, str]:
        """Of the URL, encoded."""
        named = {name: name for name in _SENTINEL_OPTIONS} | _TLS_OPTIONS
        options = {option: getattr(self, name) for name, option in named.items() if getattr(self, name) is not None}
        if self.tls and scheme != "rediss":
            options["tls"] = "true"
        if not self.tls_check_hostname:
            options["ssl_check_hostname"] = "false"
        return {option: quote(value, safe="/") for option, value in options.items()}


class QueueConfig(Section, frozen=True, kw_only=True):
    """What `TaskQueue` is told, by the same names. What is not given is as the queue has it."""

    name: str = "default"
    priority_step: Seconds | None = None
    lease: Annotated[float, Meta(ge=0.1, le=MAX_SECONDS)] | None = None
    result_ttl: Seconds | None = None
    dead_letter_ttl: Annotated[float, Meta(ge=1, le=MAX_SECONDS)] | None = None
    max_message_bytes: Annotated[int, Meta(ge=1, le=512 * 1024 * 1024)] | None = None
    fairness: Literal["cost", "time"] | None = None

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        try:
            Keys(self.name)
        except InvalidInput as error:
            yield "name", str(error)


class WorkerConfig(Section, frozen=True, kw_only=True):
    """What a `Worker` is told.

    Args:
        id: What its worker ids begin with; host, process and a random part follow, so that several processes, and the
            old and the new one of a deployment, never share an id.
        assigned_users: Users served first; ``"*"`` is everyone.
        steal_targets: Users served when the assigned ones have nothing.
        max_concurrent_tasks: Tasks that a process runs at once.
        processes: Worker processes that ``fairque worker`` starts.
        task_timeout: Seconds that a task may run which has no timeout of its own; None: as long as it takes.
        poll_interval, shutdown_timeout, stall_timeout, max_deliveries, unknown_task_patience, cancel_grace:
            See `Worker`.
    """

    id: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    assigned_users: Users = (EVERYONE,)
    steal_targets: Users = ()
    max_concurrent_tasks: Annotated[int, Meta(ge=1, le=10_000)] = 10
    processes: Annotated[int, Meta(ge=1, le=1_000)] = 1
    task_timeout: Annotated[float, Meta(ge=0.001, le=MAX_SECONDS)] | None = None
    poll_interval: Annotated[float, Meta(ge=0.01, le=MAX_SECONDS)] = 5.0
    shutdown_timeout: Seconds = 25.0
    stall_timeout: Seconds = 300.0
    max_deliveries: Annotated[int, Meta(ge=1, le=1_000)] = 5
    unknown_task_patience: Seconds = 3600.0
    cancel_grace: Seconds = 5.0

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        for field in ("assigned_users", "steal_targets"):
            for user in getattr(self, field):
                try:
                    check_id("a user", user)
                except InvalidInput as error:
                    yield field, str(error)
        if not self.assigned_users and not self.steal_targets:
            yield "assigned_users", "a worker needs assigned_users or steal_targets; '*' is everyone"
        if self.id is not None and not self.id.isprintable():
            yield "id", f"an id is printable text, not {self.id!r}"


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
        policies, groups, limits: What governs users, groups of them and tasks of a name. Set in Redis by
            `TaskQueue.apply_policies`, which ``fairque worker`` calls when it starts, and ``fairque policy apply``.

    Raises:
        ConfigError: With all that is wrong, a line each: where it stands, the path, the problem.
    """

    redis: RedisConfig = RedisConfig()
    queue: QueueConfig = QueueConfig()
    workers: tuple[WorkerConfig, ...] = (WorkerConfig(),)
    scheduler: SchedulerConfig = SchedulerConfig()
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
        problems = Problems()
        return cls._built(read_dict(data, problems), set(), environ, problems).config

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

    def broken_rules(self) -> Iterator[tuple[str, str]]:
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

    @classmethod
    def _of_files(cls, files: Sequence[str | Path], environ: Mapping[str, str] | None, form: str | None) -> Loaded:
        problems = Problems()
        tree = Node({}, "")
        known: set[str] = set()
        for file in files:
            over = read_file(file, problems, form)
            known |= references(over)
            _forget_other_servers(tree, _names_in_redis(over))
            tree = merge(tree, over)
        return cls._built(tree, known, environ, problems)

    @classmethod
    def _built(cls, tree: Node, known: set[str], environ: Mapping[str, str] | None, problems: Problems) -> Loaded:
        environ = os.environ if environ is None else environ
        single, several = sections_of(cls)
        fields = {name: tuple(fields_of(kind)) for name, kind in (single | several).items()}
        _forget_other_servers(tree, {name for name in ("url", "host") if environ.get(f"FAIRQUE_REDIS_{name.upper()}")})
        put_on_top(tree, environ, fields, several, known, problems)
        fill_in(tree, environ, problems)
        builder = Builder(problems)
        config = builder.whole(cls, tree)
        problems.check()
        assert config is not None
        return Loaded(config, builder.origins)


def _names_in_redis(tree: Node) -> set[str]:
    redis = tree.content.get("redis")
    return set(redis.content) if redis is not None and isinstance(redis.content, dict) else set()


def _forget_other_servers(tree: Node, over: set[str]) -> None:
    """A url says everything about its server: passwords of another one must not go there."""
    redis = tree.content.get("redis")
    if redis is None or not isinstance(redis.content, dict):
        return
    if "url" in over:
        redis.content = {
            name: node
            for name, node in redis.content.items()
            if name not in fields_of(RedisConfig) or name == "timeout"
        }
    elif "host" in over:
        redis.content.pop("url", None)
