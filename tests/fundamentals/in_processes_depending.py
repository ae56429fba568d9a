"""Tasks for subprocesses that have dependencies. A subprocess imports the module of its function."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairque import task
from fairque.contrib.depends import CallArgument, Depends


@contextmanager
def opened(path: str = CallArgument()) -> Iterator[int]:
    with Path(path).open("a") as file:
        file.write(f"opened by {os.getpid()}\n")
        file.flush()
        yield os.getpid()
        file.write(f"closed by {os.getpid()}\n")


def refused() -> int:
    raise ConnectionRefusedError("nobody is there")


@task(run_in="process")
def use(path: str, pid: int = Depends(opened)) -> int:
    assert path
    assert pid == os.getpid()
    return pid


@task(run_in="process", max_retries=0)
def refuse(pid: int = Depends(refused)) -> int:
    return pid
