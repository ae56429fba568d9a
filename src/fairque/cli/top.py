"""``fairque top``: a live view of who is served."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from typing import Annotated

import typer
from rich.live import Live

from fairque import QueueUnavailable, TaskQueue
from fairque.cli.frame import Frame, Order, Sampler
from fairque.cli.interruption import Interruption
from fairque.cli.keyboard import END, pressed_keys
from fairque.cli.output import make_console, print_json
from fairque.cli.reach import AsJson, ConfigFile, QueueName, Url, make_queue, on_queue
from fairque.cli.screen import draw

__all__ = ["command"]

RESIZED = ""


def command(
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.1, max=60, metavar="SECONDS", help="Between two looks.")
    ] = 2.0,
    sort: Annotated[
        Order, typer.Option("--sort", "-s", metavar="ORDER", help=f"Users by {', '.join(Order)}.")
    ] = Order.SHARE,
    once: Annotated[bool, typer.Option("--once", help="Show what one interval was like, and exit.")] = False,
    url: Url = None,
    queue: QueueName = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Watch a queue: who is served, who waits, what the workers do.

    "share" is the part of all tasks of the last interval that was a user's, "fair" what its weight entitles it to.
    Keys: s share, w wait, r running, b backlog, u user; p or space holds the picture; q quits.
    Of more than 200 users with something to do, those next and those last served are shown.
    Where it is not at a terminal, and with --json, it shows one interval and exits.

    Example: fairque top --sort wait

    Exit codes: 0 quit, 1 failed, 2 wrong usage, 130 ended by Ctrl-C.
    """
    opened = make_queue(url, queue, config)
    if once or as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        frame = on_queue(opened, lambda each: _one_interval(each, interval))
        if as_json:
            print_json(frame)
        else:
            make_console().print(draw(frame, sort, None, ""))
        return 0
    return on_queue(opened, lambda each: _run(each, interval, sort))


async def _one_interval(queue: TaskQueue, interval: float) -> Frame:
    sampler = Sampler(queue)
    await sampler.look()
    await asyncio.sleep(interval)
    return await sampler.look()


async def _run(queue: TaskQueue, interval: float, sort: Order) -> int:
    interruption = Interruption(lambda: None)
    try:
        await View(queue, interval, sort).run()
    except asyncio.CancelledError:
        if not interruption.code:
            raise
    return interruption.code


class View:
    """What is on the screen, until somebody quits."""

    def __init__(self, queue: TaskQueue, interval: float, sort: Order) -> None:
        self._sampler = Sampler(queue)
        self._interval = interval
        self._sort = sort
        self._held = False
        self._trouble = ""
        self._frame: Frame | None = None

    async def run(self) -> None:
        console = make_console()
        with pressed_keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
            asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, keys.put_nowait, RESIZED)
            next_look = 0.0
            while True:
                if time.monotonic() >= next_look:
                    await self._look()
                    next_look = time.monotonic() + self._interval
                if self._frame is not None:
                    live.update(draw(self._frame, self._sort, console.size, self._note()), refresh=True)
                key = await _key(keys, next_look - time.monotonic())
                if key in ("q", "Q", END):
                    return
                self._press(key)

    async def _look(self) -> None:
        """An outage is shown, and waited out, once there was something to show."""
        if self._held:
            return
        try:
            self._frame = await self._sampler.look()
            self._trouble = ""
        except QueueUnavailable as error:
            if self._frame is None:
                raise
            self._trouble = str(error)

    def _press(self, key: str | None) -> None:
        if key in ("p", " "):
            self._held = not self._held
        else:
            self._sort = next((order for order in Order if order[0] == key), self._sort)

    def _note(self) -> str:
        return self._trouble or ("held" if self._held else "")


async def _key(keys: asyncio.Queue[str], seconds: float) -> str | None:
    """The next key, or None when none is pressed in time."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            return await keys.get()
    except TimeoutError:
        return None
