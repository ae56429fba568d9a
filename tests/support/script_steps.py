"""How many commands each call of a script runs: what it costs, whatever else the machine does meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from tests.support.resp import RespClient

__all__ = ["script_steps"]

_END = b"that-is-all"


@contextlib.contextmanager
def script_steps(url: str) -> Iterator[list[int]]:
    """A list that has one number for each call of a script, in their order, once the block has ended.

    The server must be the test's own: MONITOR tells what a script runs behind the call of it.
    """
    steps: list[int] = []
    with RespClient(url, timeout=60.0) as monitor:
        monitor.execute("MONITOR")
        reader = threading.Thread(target=_count, args=(monitor, steps))
        reader.start()
        try:
            yield steps
        finally:
            with RespClient(url) as client:
                client.execute("ECHO", _END)
            reader.join()


def _count(monitor: RespClient, steps: list[int]) -> None:
    while _END not in (line := monitor.receive()):
        source, _, command = line.partition(b'] "')
        if command.lower().startswith(b"fcall"):
            steps.append(0)
        elif source.endswith(b" lua"):
            steps[-1] += 1
