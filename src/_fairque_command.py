"""The command ``fairque`` from its first moment on. It stands outside of the package, whose import takes half a second.

A service that is told to stop while its modules load has nothing to drain: it ends like one that has drained.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["REPEATED_SECONDS", "SERVICES", "Stopped", "info", "loading", "main", "stop_signals", "taken"]

SERVICES = ("worker", "scheduler", "server")
"""The commands that run until they are told to stop."""
REPEATED_SECONDS = 0.5
"""A signal that comes again so soon is the same request: some managers signal a process and, at once, its group."""


class Stopped(SystemExit):
    """A service was told to stop before there was anything to drain."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """Those that ask a process to stop. Who starts it under ``nohup`` wants it to outlive the terminal."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGTERM, signal.SIGINT)
    return (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def taken(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """They go to `handler` meanwhile, and then to whom they went before."""
    before = {signum: signal.signal(signum, handler) for signum in stop_signals()}
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, signal.SIG_DFL if earlier is None else earlier)


class Loading:
    """Takes the signals until something does that can drain, and again after that."""

    def __init__(self) -> None:
        self._asked_at: float | None = None

    def listen(self) -> None:
        for signum in stop_signals():
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            raise Stopped(0)
        if time.monotonic() - self._asked_at > REPEATED_SECONDS:
            os._exit(128 + signum)

    def check(self) -> None:
        """Raises `Stopped` where a module that was being loaded has swallowed that."""
        if self._asked_at is not None:
            raise Stopped(0)

    def end(self, code: int) -> None:
        """Nothing is left to be drained: the exit of the interpreter may be cut short."""
        for signum in stop_signals():
            signal.signal(signum, lambda *_: os._exit(code))


loading = Loading()


def main() -> NoReturn:
    """Run the command in ``sys.argv`` and exit with its code."""
    if not _is_service(sys.argv[1:]):
        sys.exit(_run(sys.argv[1:]))
    loading.listen()
    code = _run(sys.argv[1:])
    loading.end(code)
    sys.exit(code)


def info() -> NoReturn:
    """``fairque-info``: the command ``fairque info`` under a name of its own."""
    sys.exit(_run(["info", *sys.argv[1:]]))


def _run(arguments: list[str]) -> int:
    try:
        # Late, so that a Ctrl-C while modules load is as quiet as any other.
        from fairque.cli.app import run

        return run(arguments)
    except Stopped:
        return 0
    except KeyboardInterrupt:
        return 130


def _is_service(arguments: list[str]) -> bool:
    return bool(arguments) and arguments[0] in SERVICES


def _service_as_module() -> bool:
    """Whether Python is importing the package to run it: ``python -m fairque worker …``."""
    command = sys.orig_argv
    is_found = getattr(sys, "argv", [])[:1] != ["-m"]  # it has a path there as soon as the module is found
    at = -1 if is_found or "-m" not in command else command.index("-m")
    return at > 0 and command[at + 1] == "fairque" and _is_service(command[at + 2 :])


if _service_as_module():
    loading.listen()
