"""Tasks that tests have run in subprocesses of other processes."""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from fairque import current_task, task

logger = logging.getLogger("app")
own_logger = logging.getLogger("app.own")
own_logger.addHandler(logging.StreamHandler())


@task(run_in="process")
def pids(file: str, seconds: float = 60.0) -> int:
    """Leave the process ids of the subprocess and of one that it starts."""
    child = subprocess.Popen(["sleep", "300"])
    Path(file).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(seconds)
    return current_task().attempt


@task(run_in="process")
def spins(file: str) -> None:
    """It never lets go of the interpreter."""
    Path(file).write_text(str(os.getpid()))
    "a".join(["b"] * 10)
    sum(range(10**13))


@task(run_in="process")
def repeats(text: str, times: int) -> str:
    """And says so meanwhile."""
    current_task().progress(0.5, text)
    return text * times


@task(run_in="process")
def writes_much() -> int:
    """To its file descriptors, to its streams, and by a child and the log."""
    os.write(1, b"raw line\n")
    print("printed line")
    print("printed error", file=sys.stderr)
    subprocess.run(["echo", "line of a child"], check=True)
    logger.warning("a record", extra={"colour": "blue", "size": {"width": 2}, "at": Path("/here")})
    own_logger.warning("a record of its own")
    try:
        raise ValueError("on purpose")
    except ValueError:
        logger.exception("x" * 300_000)
    for _ in range(200):
        os.write(2, b"x" * 1023 + b"\n")
    return os.getpid()


@task(run_in="process")
def climbs(gate: str, attempts: int = 1) -> str:
    """Tell half of it, and wait for the file; each attempt but the last fails."""
    me = current_task()
    if me.attempt == 1:
        me.progress(0.5, "half of it")
    while not Path(gate).exists():
        time.sleep(0.01)
    if me.attempt < attempts:
        raise ValueError("not yet")
    return f"{me.user_id} {me.task_id} {me.attempt}"


@task(run_in="process")
def leaves_a_reporter(gate: str) -> None:
    """Its thread goes on to report after it has ended, until the file is there."""
    me = current_task()

    def report() -> None:
        while not Path(gate).exists():
            me.progress(0.9, "of another task")
            time.sleep(0.01)

    threading.Thread(target=report).start()


@task(run_in="process")
def leaves(file: str) -> list[object]:
    """What it finds of an earlier one, and leaves for a later one; the file is written as the process ends."""
    found = [os.getpid(), os.environ.get("LEFT", "")]
    os.environ["LEFT"] = current_task().user_id
    atexit.register(Path(file).touch)
    return found


@task
def forks_the_worker(file: str) -> None:
    """In a thread of the worker. The fork holds all that the worker has open."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    Path(file).write_text(str(pid))


@task(run_in="process")
def forks() -> str:
    os.fork()
    current_task().progress(0.5)
    return "one of two"


@task(run_in="process")
def leaves_a_fork() -> None:
    """The fork holds the socket to the worker."""
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    os._exit(3)


@task(run_in="process")
def dies(seconds: float) -> int:
    """In so many seconds; after it has ended, where that is more than none."""
    if not seconds:
        os._exit(7)
    threading.Timer(seconds, os._exit, [7]).start()
    return os.getpid()


@dataclass
class Deadly:
    """Its decoding ends the process."""

    number: int

    def __post_init__(self) -> None:
        if self.number:
            os._exit(self.number)


@task(run_in="process")
def takes_deadly(deadly: Deadly) -> int:
    return deadly.number
