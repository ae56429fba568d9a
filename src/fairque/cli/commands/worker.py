"""``fairque worker``: serve a queue."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import typer

from fairque import FairQueueConfig, TaskQueue, Worker
from fairque.cli.answering import HTTP_HOST, answering, check_can_answer
from fairque.cli.commands.config import service_gaps
from fairque.cli.errors import CommandError
from fairque.cli.imports import load_module, load_served, project_of
from fairque.cli.options import ConfigFile, LogJson, load_config
from fairque.cli.worker_process import Settings, make_worker, serve
from fairque.config.config import WorkerConfig
from fairque.contrib.http.family_probes import family_probes
from fairque.contrib.http.metrics import are_kept_here
from fairque.worker.changes import Changes
from fairque.worker.lifeline import has_parent
from fairque.worker.logs import LogLevel, LogSettings, set_up_logging
from fairque.worker.supervisor import Supervisor

if TYPE_CHECKING:
    from fairque.contrib.prometheus import Sum

__all__ = ["command"]

logger = logging.getLogger("fairque.worker")
_SAID_BY_BOTH = {
    "max_concurrent_tasks": ("--concurrency", "concurrency"),
    "assigned_users": ("--assigned-user", "assigned_users"),
    "steal_targets": ("--steal-target", "steal_targets"),
    "shutdown_timeout": ("--shutdown-timeout", "shutdown_timeout"),
}
"""The options of a worker: on the command line, and in code."""
_BESIDE_FILES = {"processes", "http", "http_hosts"}
"""What may be said beside configuration files, and wins over them."""


def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME",
            help="The queue or the worker, as module:name: a TaskQueue, a Worker, or a function that returns one. "
            "With --config: the module with the tasks, which is imported; the files have the queue.",
        ),
    ],
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", min=1, max=10_000, metavar="N", help="Tasks that a process runs at once (10)."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", "-p", min=1, max=1_000, metavar="N", help="Worker processes (1, or what the files say)."
        ),
    ] = None,
    max_tasks: Annotated[
        int | None,
        typer.Option(
            "--max-tasks", min=1, max=1_000_000_000, metavar="N", help="Replace a process that has run so many tasks."
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option("--max-memory", metavar="SIZE", help="Replace a process that takes more memory, such as 512M."),
    ] = None,
    burst: Annotated[
        bool, typer.Option("--burst", help="Serve until nothing is left that may run now, and exit with 0.")
    ] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="For development: start anew when a Python file changes.")
    ] = False,
    assigned_user: Annotated[
        list[str] | None,
        typer.Option(metavar="USER", help="Serve this user first. Repeatable; without it: everyone."),
    ] = None,
    steal_target: Annotated[
        list[str] | None,
        typer.Option(metavar="USER", help="Serve this user when the assigned ones have nothing; * is everyone."),
    ] = None,
    shutdown_timeout: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="What started tasks are given when the worker stops (25)."),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Answer probes by HTTP there: /livez, /readyz, /metrics."),
    ] = None,
    http_host: Annotated[list[str] | None, HTTP_HOST] = None,
    config: ConfigFile = None,
    worker: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Start this worker of the configuration; without it: all of them."),
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(
            case_sensitive=False,
            metavar="LEVEL",
            help="debug, info (every finished task), warning (retries) or error (failures).",
        ),
    ] = LogLevel.INFO,
    log_json: LogJson = False,
    uvloop: Annotated[bool, typer.Option("--uvloop/--no-uvloop", help="Use uvloop where it is installed.")] = True,
) -> int:
    """Serve a queue until SIGTERM, SIGHUP or Ctrl-C.

    The first signal drains: nothing more is claimed, and started tasks get the shutdown timeout.
    What is left then goes back to the front of its user's lane.
    A second signal leaves at once, and other workers take over what ran.

    A Worker says in code what it does, hooks and lifespan included.
    Of the options for that, only those about processes can be given as well.

    A process that has reached --max-tasks or --max-memory is replaced.
    First another one serves, then it claims nothing more and ends with its last task, after an hour at the latest.
    That is done to one process at a time.

    With --http, /livez answers as long as the event loop of each process turns, and /readyz while one takes tasks.
    /metrics are those of all processes, added up. They need the extra "prometheus".

    With --config, the files say what each worker does, and how many processes of it there are.
    Of the options for that, only --processes, --http and --http-host can be given as well.
    Their policies, groups and limits are set when a worker starts, as by fairque policy apply.

    Example: fairque worker myapp.tasks:queue --concurrency 50 --processes 2

    Example: fairque worker myapp.tasks:worker --processes 2

    Example: fairque worker myapp.tasks --config fairque.yaml --worker alpha

    Exit codes: 0 drained after a signal, 1 failed, 2 wrong usage, 128 and more: left at once after a second signal.
    """
    given = {
        "max_concurrent_tasks": concurrency,
        "assigned_users": assigned_user or None,
        "steal_targets": steal_target or None,
        "shutdown_timeout": shutdown_timeout,
        "processes": processes,
        "max_tasks": max_tasks,
        "max_memory": max_memory,
        "http": http,
        "http_hosts": http_host or None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    _check(options, config, worker)
    if burst and reload:
        raise CommandError("--burst ends when nothing is left to do, and --reload waits for changes", "leave one out")
    how = _How(target, LogSettings(log_level, log_json), uvloop, burst)
    if config:
        settings = _configured(how, load_config(config), tuple(config), worker, options)
    else:
        settings = [how.settings(WorkerConfig(**options))]  # type: ignore[arg-type]
    _check_http(settings, http_host)
    if reload:
        set_up_logging(how.logs)
        return asyncio.run(_keep(_commands(settings), settings, Changes(project_of(target))))
    return _serve_configured(settings) if config else _serve_named(settings[0], options)


class _How(NamedTuple):
    """What the command says of all of its workers."""

    target: str
    logs: LogSettings
    uvloop: bool
    burst: bool

    def settings(self, worker: WorkerConfig, **of_files: Any) -> Settings:
        return Settings(self.target, worker, logs=self.logs, uvloop=self.uvloop, burst=self.burst, **of_files)


def _check(options: Mapping[str, object], config: list[str] | None, worker: str | None) -> None:
    if config and options.keys() - _BESIDE_FILES:
        raise CommandError(
            "--config has what the workers do, of the options for that only --processes and --http… can be given",
            "change the file, or set a variable such as FAIRQUE_WORKERS_0_MAX_CONCURRENT_TASKS",
        )
    if worker is not None and not config:
        raise CommandError("--worker names a worker of a configuration, and there is none", "add --config FILE")
    if "steal_targets" in options and "assigned_users" not in options:
        raise CommandError(
            "--steal-target says whom to serve after the assigned users, and none is assigned",
            "add --assigned-user, or leave both out to serve everyone",
        )


def _check_http(settings: Sequence[Settings], hosts: Sequence[str] | None) -> None:
    if _address(settings) is not None and not has_parent():
        check_can_answer()
    elif hosts:
        raise CommandError("--http-host says how it is asked by HTTP, and it answers nowhere", "add --http HOST:PORT")


def _check_is_said_once(target: str, options: Mapping[str, object]) -> None:
    for name in options.keys() & _SAID_BY_BOTH.keys():
        option, argument = _SAID_BY_BOTH[name]
        raise CommandError(
            f"{option} says what {target!r}, which is a Worker, says itself",
            f"say it there, Worker(queue, {argument}=…), or name its queue instead",
        )


def _configured(
    how: _How, config: FairQueueConfig, files: tuple[str, ...], worker: str | None, options: Mapping[str, Any]
) -> list[Settings]:
    chosen = _chosen(config, worker)
    workers = {name: msgspec.structs.replace(each, **options) for name, each in chosen.items()}
    return [how.settings(each, files=files, name=name, config=config) for name, each in workers.items()]


def _serve_configured(settings: Sequence[Settings]) -> int:
    config = settings[0].config
    assert config is not None
    load_module(settings[0].target)
    set_up_logging(settings[0].logs)
    if len(settings) == len(config.workers):
        for gap in service_gaps(config):
            logger.warning("configuration: %s", gap)
    return _serve(TaskQueue.from_config(config), settings)


def _serve_named(settings: Settings, options: Mapping[str, object]) -> int:
    found = load_served(settings.target)
    if isinstance(found, Worker):
        _check_is_said_once(settings.target, options)
        settings = replace(settings, made=found)
    set_up_logging(settings.logs)
    return _serve(found.queue if isinstance(found, Worker) else found, [settings])


def _chosen(config: FairQueueConfig, name: str | None) -> dict[str, WorkerConfig]:
    workers = dict(zip(config.worker_names(), config.workers, strict=True))
    if not workers:
        raise CommandError("the configuration has no workers", "add one to its list 'workers'")
    if name is None:
        return workers
    if name not in workers:
        near = difflib.get_close_matches(name, workers, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(workers)}"
        raise CommandError(f"the configuration has no worker {name!r}", hint)
    return {name: workers[name]}


def _serve(queue: TaskQueue, settings: Sequence[Settings]) -> int:
    _check_reach(queue)
    commands = _commands(settings)
    if len(commands) == 1 and (has_parent() or not settings[0].recycling.is_wanted):
        return serve(queue, settings[0])
    return asyncio.run(_supervise(queue, settings, commands))


def _commands(settings: Sequence[Settings]) -> list[list[str]]:
    """One for each process."""
    return [each.arguments_of_one() for each in settings for _ in range(each.worker.processes)]


def _check_reach(queue: TaskQueue) -> None:
    """A private server is of no use to a worker: nobody else could put a task in."""
    if queue.connector.is_private:
        raise CommandError(
            "embedded:// is a server for one process alone, nothing could reach this worker",
            "use embedded:///some/directory, which processes of this machine share, or redis://",
        )


async def _supervise(queue: TaskQueue, settings: Sequence[Settings], commands: Sequence[Sequence[str]]) -> int:
    """What every process would trip over is said once, here."""
    for each in settings:
        make_worker(queue, each).check_several()
    async with queue:
        pass
    return await _keep(commands, settings)


async def _keep(commands: Sequence[Sequence[str]], settings: Sequence[Settings], changes: Changes | None = None) -> int:
    """Probes are answered until the last process has ended."""
    address = _address(settings)
    if address is None:
        return await Supervisor(commands, changes).run()
    sums = _sums()
    supervisor = Supervisor(commands, changes, sums)
    hosts = {host for each in settings for host in each.worker.http_hosts}
    async with answering(family_probes(supervisor, sums.render if sums is not None else bytes), address, hosts):
        return await supervisor.run()


def _sums() -> Sum | None:
    """What adds up the metrics of the processes, where there is something that keeps any."""
    if not are_kept_here():
        return None
    from fairque.contrib.prometheus import Sum

    return Sum()


def _address(settings: Sequence[Settings]) -> str | None:
    """The one at which a command answers for all that it runs."""
    found = {each.worker.http: None for each in settings if each.worker.http is not None}
    if len(found) > 1:
        raise CommandError(
            f"one command answers at one address, and its workers name {' and '.join(found)}",
            "name the same one, or start each worker by itself, with --worker",
        )
    return next(iter(found), None)
