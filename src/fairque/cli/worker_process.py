"""One worker in this process: signals drain it."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from _fairque_command import REPEATED_SECONDS, taken
from fairque import FairQueueConfig, TaskQueue, Worker
from fairque.cli.logs import LogLevel, log_hooks
from fairque.cli.processes import follow_parent
from fairque.cli.stuck import end_when_stuck
from fairque.config.config import WorkerConfig

__all__ = ["Settings", "make_worker", "serve"]

logger = logging.getLogger("fairque.worker")
_GRACE_SECONDS = 15.0
"""What a worker may take beyond its shutdown timeout, to report its last outcomes."""
_EXIT_SECONDS = 3.0
"""What the interpreter may take for its exit."""


@dataclass(frozen=True)
class Settings:
    """What ``fairque worker`` was told about one worker.

    Args:
        target: The queue or, with `files`, the module of the tasks.
        worker: Its options.
        files: The configuration that has it; empty where the command line says everything.
        name: How it is called there.
        log_level: What is logged.
        uvloop: Whether to use it.
        config: What `files` hold; None without any.
    """

    target: str
    worker: WorkerConfig
    files: tuple[str, ...]
    name: str
    log_level: LogLevel
    uvloop: bool
    config: FairQueueConfig | None = None

    def arguments_of_one(self) -> list[str]:
        """The same command for one process."""
        return [
            "worker",
            *(self._arguments_with_files() if self.files else self._arguments()),
            f"--log-level={self.log_level}",
            "--uvloop" if self.uvloop else "--no-uvloop",
            "--",
            self.target,
        ]

    def _arguments_with_files(self) -> list[str]:
        return [*(f"--config={file}" for file in self.files), f"--worker={self.name}", "--processes=1"]

    def _arguments(self) -> list[str]:
        assigned = () if self.worker.assigned_users == ("*",) else self.worker.assigned_users
        return [
            f"--concurrency={self.worker.max_concurrent_tasks}",
            *(f"--assigned-user={user}" for user in assigned),
            *(f"--steal-target={user}" for user in self.worker.steal_targets),
            f"--shutdown-timeout={self.worker.shutdown_timeout}",
        ]


def make_worker(queue: TaskQueue, settings: Settings) -> Worker:
    """Raises `InvalidInput` for settings that cannot be used."""
    scheduler = settings.config is None or settings.config.scheduler.enabled
    return Worker.from_config(queue, settings.worker, scheduler=scheduler, **log_hooks())


def serve(queue: TaskQueue, settings: Settings) -> int:
    """Serve until a signal; returns the exit code."""
    with asyncio.Runner(loop_factory=_loop_factory(settings.uvloop)) as runner:
        return runner.run(_serve(queue, settings))


async def _serve(queue: TaskQueue, settings: Settings) -> int:
    worker = make_worker(queue, settings)
    shutdown = Shutdown(worker)
    with shutdown.on_signals(), end_when_stuck(worker.options.stall_timeout):
        try:
            async with queue:
                if settings.config is not None:
                    await queue.apply_policies(settings.config)
                shutdown.serving = True
                loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
                logger.info("serves queue %r at %s on %s", queue.name, queue.connector.safe_url, loop)
                await worker.run()
        except asyncio.CancelledError:
            if not shutdown.asked:
                raise
    _insist_on_exit()
    return 0


class Shutdown:
    """The first signal stops the worker, which drains; a second one leaves at once.

    Signals are taken by the interpreter and not by the loop, so that a task that blocks the loop cannot hold up the
    second one. A process with a parent of ours leaves it to that one to end it: it may get each signal twice, from its
    parent and from whoever signals every process of a service.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self._asked_at: float | None = None
        self._has_parent = False
        self.serving = False

    @property
    def asked(self) -> bool:
        return self._asked_at is not None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        with taken(self._on_signal):
            self._has_parent = follow_parent(self._on_parents_death)
            yield

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        if self._asked_at is None:
            self._ask(signal.Signals(signum).name)
        elif not self._has_parent and time.monotonic() - self._asked_at > REPEATED_SECONDS:
            # Not through logging, which this may have interrupted.
            os.write(2, b"second signal: leaving at once, other workers take over what runs here\n")
            os._exit(128 + signum)

    def _ask(self, reason: str) -> None:
        self._asked_at = time.monotonic()
        self._loop.call_soon_threadsafe(self._stop, reason)

    def _stop(self, reason: str) -> None:
        logger.info("%s: stopping%s", reason, "" if self._has_parent else ", a second signal leaves at once")
        if self.serving:
            self._stopping = self._loop.create_task(self._worker.stop())
        elif self._main is not None:
            self._main.cancel()

    def _on_parents_death(self) -> None:
        """In a thread. A loop that is blocked cannot drain: the process ends all the same."""
        if not self.asked:
            self._ask("the parent process is gone")
        time.sleep(self._worker.options.shutdown_timeout + _GRACE_SECONDS)
        os._exit(1)


def _insist_on_exit() -> None:
    """A thread cannot be cancelled: what goes on in one was put back, and must not keep this process alive."""

    def leave() -> None:
        time.sleep(_EXIT_SECONDS)
        logger.warning("a plain function goes on in its thread after the stop of its worker: leaving it behind")
        logging.shutdown()
        os._exit(0)

    threading.Thread(target=leave, name="fairque-exit", daemon=True).start()


def _loop_factory(use_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not use_uvloop or importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop
