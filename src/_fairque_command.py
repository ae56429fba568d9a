"""The command ``fairque`` from its first moment on. It stands outside of the package, whose import takes half a second.

A service that is told to stop while its modules load has nothing to drain: it ends like one that has drained.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["REPEATED_SECONDS", "SERVICES", "info", "main", "stop_signals", "taken"]

SERVICES = ("worker", "scheduler", "server", "http", "dashboard")
"""The commands that run until they are told to stop."""
REPEATED_SECONDS = 0.5
"""A signal that comes again so soon is the same request: some managers signal a process and, at once, its group."""


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


def _end_at(code: int) -> None:
    """From now on a signal ends the process at once, with this code: nothing is left to be drained.

    An exception would do harm: it would be raised in the middle of an import, and an extension module that is half
    loaded may swallow it and crash.
    """

    def end(_: int, __: FrameType | None) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # closed, gone, or what this has interrupted
                stream.flush()
        os._exit(code)

    for signum in stop_signals():
        signal.signal(signum, end)


def main() -> NoReturn:
    """Run the command in ``sys.argv`` and exit with its code."""
    if not _is_service(sys.argv[1:]):
        sys.exit(_run(sys.argv[1:]))
    _end_at(0)
    code = _run(sys.argv[1:])
    _end_at(code)  # the exit of the interpreter may be cut short
    sys.exit(code)


def info() -> NoReturn:
    """``fairque-info``: the command ``fairque info`` under a name of its own."""
    sys.exit(_run(["info", *sys.argv[1:]]))


def _run(arguments: list[str]) -> int:
    try:
        # Late, so that a Ctrl-C while modules load is as quiet as any other.
        from fairque.cli.app import run

        return run(arguments)
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
    _end_at(0)
