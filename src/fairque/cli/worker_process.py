"""One worker in this process: signals drain it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fairque import FairQueueConfig, TaskQueue, Worker
from fairque.cli.answering import answering
from fairque.cli.processes import FAIRQUE
from fairque.config.config import WorkerConfig
from fairque.contrib.http import probes
from fairque.contrib.http.metrics import are_kept_here
from fairque.worker import reports, service
from fairque.worker.lifeline import has_parent
from fairque.worker.logs import LogSettings
from fairque.worker.recycling import Recycling

__all__ = ["Settings", "make_worker", "serve"]

logger = logging.getLogger("fairque.worker")
_EXIT_SECONDS = 3.0
"""What the interpreter may take for its exit."""


@dataclass(frozen=True)
class Settings:
    """What ``fairque worker`` was told about one worker.

    Args:
        target: The queue or the worker or, with `files`, the module of the tasks.
        worker: Its options; of a worker that was `made`, only those that are about its processes.
        logs: What is logged, and how.
        uvloop: Whether to use it.
        files: The configuration that has it; empty where the command line says everything.
        name: How it is called there.
        config: What `files` hold; None without any.
        made: What `target` names, where that is a worker.
        burst: Whether it ends when nothing is left to do now.
    """

    target: str
    worker: WorkerConfig
    logs: LogSettings
    uvloop: bool
    files: tuple[str, ...] = ()
    name: str = ""
    config: FairQueueConfig | None = None
    made: Worker | None = None
    burst: bool = False

    @property
    def recycling(self) -> Recycling:
        return Recycling(self.worker.max_tasks, self.worker.max_memory)

    def arguments_of_one(self) -> list[str]:
        """The same command for one process, as Python is to be told."""
        return [
            *FAIRQUE,
            "worker",
            *(self._arguments_with_files() if self.files else (*self._arguments(), *self._limits())),
            *(("--burst",) if self.burst else ()),
            f"--log-level={self.logs.level}",
            *(("--log-json",) if self.logs.as_json else ()),
            "--uvloop" if self.uvloop else "--no-uvloop",
            "--",
            self.target,
        ]

    def _arguments_with_files(self) -> list[str]:
        return [*(f"--config={file}" for file in self.files), f"--worker={self.name}", "--processes=1"]

    def _limits(self) -> list[str]:
        given = {"--max-tasks": self.worker.max_tasks, "--max-memory": self.worker.max_memory}
        return [f"{option}={value}" for option, value in given.items() if value is not None]

    def _arguments(self) -> list[str]:
        if self.made is not None:
            return []
        assigned = () if self.worker.assigned_users == ("*",) else self.worker.assigned_users
        return [
            f"--concurrency={self.worker.max_concurrent_tasks}",
            *(f"--assigned-user={user}" for user in assigned),
            *(f"--steal-target={user}" for user in self.worker.steal_targets),
            f"--shutdown-timeout={self.worker.shutdown_timeout}",
        ]


def make_worker(queue: TaskQueue, settings: Settings) -> Worker:
    """Raises `InvalidInput` for settings that cannot be used."""
    if settings.made is not None:
        return settings.made
    scheduler = settings.config is None or settings.config.scheduler.enabled
    return Worker.from_config(queue, settings.worker, scheduler=scheduler)


def serve(queue: TaskQueue, settings: Settings) -> int:
    """Serve until a signal; returns the exit code."""
    with asyncio.Runner(loop_factory=_loop_factory(settings.uvloop)) as runner:
        return runner.run(_serve(queue, settings))


async def _serve(queue: TaskQueue, settings: Settings) -> int:
    config = settings.config
    prepare = None if config is None else partial(queue.apply_policies, config)
    worker = make_worker(queue, settings)
    address = settings.worker.http if not has_parent() else None  # else the parent answers
    if worker.report is None and are_kept_here() and (reports.are_wanted() or address is not None):
        from fairque.contrib.prometheus import WorkerMetrics

        WorkerMetrics(worker)
    hosts = settings.worker.http_hosts
    async with answering(probes(worker), address, hosts) if address is not None else contextlib.nullcontext():
        await service.serve(worker, prepare, burst=settings.burst, recycling=settings.recycling)
    _insist_on_exit()
    return 0


def _insist_on_exit() -> None:
    """Threads that a body has started, as by `asyncio.to_thread`, must not keep this process alive."""

    def leave() -> None:
        time.sleep(_EXIT_SECONDS)
        logger.warning("a thread that a task has started goes on after the stop of the worker: leaving it behind")
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)

    threading.Thread(target=leave, name="fairque-exit", daemon=True).start()


def _loop_factory(use_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not use_uvloop or importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop
