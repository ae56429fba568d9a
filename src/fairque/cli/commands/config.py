"""``fairque config check``: what a configuration comes to, and whom its workers do not serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

from fairque import ConfigError, FairQueueConfig
from fairque.cli.errors import FAILED, USAGE
from fairque.cli.options import AsJson
from fairque.cli.output import print_json, say
from fairque.cli.table import names, print_table, words
from fairque.config.config import Loaded
from fairque.config.duration import shown_duration
from fairque.config.section import Section
from fairque.counted import counted
from fairque.everybody import EVERYONE

__all__ = ["app", "service_gaps"]

app = typer.Typer(
    help="Configuration files: check them.\n\nExample: fairque config check config/fairque.yaml", no_args_is_help=True
)
_DEFAULT = "default"
_NUMBERS = (".weight",)
"""All other floats are durations."""


@app.callback()
def _group() -> None:
    """Keeps `check` a command of its own, while it is the only one."""


class Setting(msgspec.Struct, frozen=True):
    """A field with its effective value, which is never a password."""

    path: str
    value: Any
    origin: str


@app.command()
def check(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="YAML or TOML; later ones win.", show_default=False),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when there are warnings.")] = False,
    as_json: AsJson = False,
) -> int:
    """Check configuration files, show every value and where it comes from.

    FAIRQUE_ variables come on top of the files, as everywhere: FAIRQUE_REDIS_URL, FAIRQUE_QUEUE_NAME,
    FAIRQUE_WORKERS_0_PROCESSES. Warns about users that no worker serves. Connects to nothing. Passwords are masked.

    Example: fairque config check config/fairque.yaml config/production.yaml --strict

    Exit codes: 0 fine, 1 with warnings under --strict, 2 not valid.
    """
    try:
        loaded = FairQueueConfig.load_with_origins(*files or ())
    except ConfigError as error:
        return _report_invalid(str(error).splitlines(), as_json)
    warnings = service_gaps(loaded.config)
    if as_json:
        print_json({"valid": True, "settings": list(_settings(loaded)), "warnings": warnings})
    else:
        print_table(
            (names("setting", whole=1), words("value"), names("from")),
            [_cells(setting) for setting in _settings(loaded)],
        )
        for warning in warnings:
            say(f"warning: {warning}", "yellow")
    return FAILED if strict and warnings else 0


def _report_invalid(problems: list[str], as_json: bool) -> int:
    if as_json:
        print_json({"valid": False, "problems": problems})
        return USAGE
    for problem in problems:
        say(f"error: {problem}", "red")
    say("hint: change that, and check again")
    return USAGE


def _settings(loaded: Loaded) -> Iterator[Setting]:
    config, origins = loaded
    yield from _of_section("redis", config.redis, origins)
    yield from _of_section("queue", config.queue, origins)
    for number, worker in enumerate(config.workers):
        yield from _of_section(f"workers[{number}]", worker, origins)
    yield from _of_section("scheduler", config.scheduler, origins)
    for name in ("policies", "groups", "limits"):
        for number, entry in enumerate(getattr(config, name)):
            settings = _of_section(f"{name}[{number}]", entry, origins)
            yield from (setting for setting in settings if setting.value is not None)


def _of_section(path: str, section: Section, origins: dict[str, str]) -> Iterator[Setting]:
    for field in section.__struct_fields__:
        full = f"{path}.{field}"
        yield Setting(full, section.shown(field), origins.get(full, _DEFAULT))


def _cells(setting: Setting) -> tuple[str, str, str]:
    is_number = setting.path.endswith(_NUMBERS) and setting.value is not None
    return setting.path, f"{setting.value:g}" if is_number else _shown(setting.value), setting.origin


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return shown_duration(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value)) or "nobody"
    text = str(value)
    return text if text.isprintable() else repr(text)


def service_gaps(config: FairQueueConfig) -> list[str]:
    """A sentence for each user that is not served, or not as one would think."""
    return [*_unserved(config), *_without_effect(config)]


def _unserved(config: FairQueueConfig) -> Iterator[str]:
    assigned = {user for worker in config.workers for user in worker.assigned_users}
    targets = {user for worker in config.workers for user in worker.steal_targets}
    if not config.workers:
        yield "there are no workers: nobody is served by this configuration"
    elif EVERYONE not in assigned | targets:
        listed = counted(len(assigned | targets), "user that is listed is", "users that are listed are")
        yield (
            f"only the {listed} served, tasks of anyone else wait for ever: "
            "give a worker '*' among its assigned_users or steal_targets"
        )
    if EVERYONE not in assigned:
        for user in sorted(targets - assigned - {EVERYONE}):
            yield f"user {user!r} is a steal target but assigned to no worker: served only when others have nothing"


def _without_effect(config: FairQueueConfig) -> Iterator[str]:
    for name, worker in zip(config.worker_names(), config.workers, strict=True):
        if EVERYONE in worker.assigned_users:
            if len(worker.assigned_users) > 1:
                yield f"worker {name!r}: '*' in assigned_users is everyone, the other entries do nothing"
            if worker.steal_targets:
                yield f"worker {name!r}: steal_targets do nothing, because its assigned_users are everyone"
