"""Keys as they are pressed, from a terminal that does not wait for Enter."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["pressed_keys"]

END = "\x04"
"""What a terminal that is gone counts as: Ctrl-D."""


@contextmanager
def pressed_keys() -> Iterator[asyncio.Queue[str]]:
    """A queue that each key goes into; the terminal is as before when this is left."""
    descriptor = sys.stdin.fileno()
    keys: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            data = os.read(descriptor, 64)
        except OSError:
            data = b""
        if not data:
            loop.remove_reader(descriptor)
        for key in data.decode(errors="replace") or END:
            keys.put_nowait(key)

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield keys
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
