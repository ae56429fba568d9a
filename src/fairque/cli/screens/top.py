"""The live view of a queue: what it did between two looks, drawn for a terminal of any size."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum

import msgspec
from rich.console import ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.text import Text

from fairque import Overview, QueueStats, QueueUnavailable, TaskQueue, UserInfo, UserStatus
from fairque.cli.output import NOTHING, make_console, shown, span
from fairque.cli.screens.overview import look, workers_table
from fairque.cli.table import FittedTable, names, numbers, words
from fairque.counted import counted, unanswered

__all__ = ["Order", "Sampler", "Snapshot", "TopView", "UserRow", "draw"]

MOST_USERS = 200
RESIZED = ""
END = "\x04"
"""What a terminal that is gone counts as: Ctrl-D."""
_LINES = 5
"""Beside users and workers: two of heading, the heads of two tables, the help."""


class Order(StrEnum):
    """How users are sorted."""

    SHARE = "share"
    WAIT = "wait"
    STARTED = "started"
    BACKLOG = "backlog"
    USER = "user"


_ORDER_OF_KEY = {"s": Order.SHARE, "w": Order.WAIT, "t": Order.STARTED, "b": Order.BACKLOG, "u": Order.USER}
_HELP = f"sort: {', '.join(f'{key} {order}' for key, order in _ORDER_OF_KEY.items())}   p hold   q quit"


class UserRow(msgspec.Struct, frozen=True, kw_only=True):
    """One user. `share` is its part of what was served lately, `fair_share` what it is entitled to: see `Share`.

    `flags`: see `UserStatus`. `rate` is since the look before, None in the first.
    """

    user: UserInfo
    rate: float | None
    share: float | None
    fair_share: float | None
    flags: tuple[str, ...]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds` since the look before, None in the first; `rate` is tasks per second."""

    queue: str
    seconds: float | None
    rate: float | None
    stats: QueueStats
    rows: tuple[UserRow, ...]

    def sorted_by(self, order: Order) -> list[UserRow]:
        keys = {
            Order.SHARE: lambda row: (-(row.share or 0.0), -row.user.started, -row.user.queued),
            Order.WAIT: lambda row: -(row.user.wait_seconds or 0.0),
            Order.STARTED: lambda row: -row.user.started,
            Order.BACKLOG: lambda row: -row.user.queued,
            Order.USER: lambda row: row.user.user_id,
        }
        return sorted(sorted(self.rows, key=keys[Order.USER]), key=keys[order])


class Sampler:
    """Looks at a queue again and again."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._before: Overview | None = None

    async def look(self) -> Snapshot:
        now = await look(self._queue, MOST_USERS)
        before, self._before = self._before, now
        return _compare(before, now)


def _compare(before: Overview | None, now: Overview) -> Snapshot:
    seconds = max(0.001, now.stats.at - before.stats.at) if before is not None else None
    counted = {user.user_id: _served(user) for user in before.users} if before is not None else {}
    served = {user.user_id: max(0, _served(user) - counted.get(user.user_id, _served(user))) for user in now.users}
    rows = tuple(
        _row(user, now.statuses[user.user_id], served[user.user_id] / seconds if seconds else None)
        for user in now.users
    )
    return Snapshot(
        queue=now.queue,
        seconds=seconds,
        rate=(_served(now.stats) - _served(before.stats)) / seconds if before is not None and seconds else None,
        stats=now.stats,
        rows=rows,
    )


def _row(user: UserInfo, status: UserStatus, rate: float | None) -> UserRow:
    """Of a user that is paused, say, there is no share."""
    share, entitled = (status.share.share, status.share.entitled) if status.share is not None else (None, None)
    return UserRow(user=user, rate=rate, share=share, fair_share=entitled, flags=status.flags)


def _served(counts: UserInfo | QueueStats) -> int:
    """Attempts that came to an end."""
    return counts.finished + counts.failed + counts.retried


def draw(snapshot: Snapshot, order: Order, size: ConsoleDimensions | None, note: str) -> RenderableType:
    """`size` None: as large as it takes. `note` goes into the heading."""
    workers, rows = list(snapshot.stats.workers), snapshot.sorted_by(order)
    if size is not None:
        room = max(2, size.height - _LINES)
        workers = workers[: max(1, room // 3)]
        rows = rows[: max(1, room - len(workers))]
    parts = [_heading(snapshot, order, note), _users(rows)]
    if workers:
        parts.append(workers_table(workers, snapshot.stats.at, is_live=True))
    if size is not None:
        parts.append(Text(_HELP, style="dim", no_wrap=True, overflow="crop"))
    return Group(*parts)


def _heading(snapshot: Snapshot, order: Order, note: str) -> Text:
    stats = snapshot.stats
    used, slots = sum(each.running for each in stats.workers), sum(each.concurrency for each in stats.workers)
    text = Text(no_wrap=True, overflow="crop")
    text.append(f"queue {shown(snapshot.queue)}: {_rate(snapshot.rate)} tasks/s, {stats.queued} queued, ")
    text.append(f"{used} of {counted(slots, 'slot')} used\n{counted(stats.users_known, 'user')}, by {order}")
    if note := note or (unanswered(stats.missing) if stats.missing else ""):
        text.append(f"  [{shown(note)}]", style="bold")
    return text


def _users(rows: Sequence[UserRow]) -> RenderableType:
    columns = (
        *(names("user"), numbers("share"), numbers("fair", 3), numbers("tasks/s", 4), numbers("started", 6)),
        *(numbers("queued"), numbers("wait"), numbers("sched.", 1), numbers("dead", 2), words("flags", 5)),
    )
    return FittedTable(columns, [_cells(row) for row in rows], wraps=False, tells=False)


def _cells(row: UserRow) -> tuple[object, ...]:
    user = row.user
    return (
        *(user.user_id, _percent(row.share), _percent(row.fair_share), _rate(row.rate)),
        *(user.started, user.queued, span(user.wait_seconds), user.scheduled, user.dead_letters),
        ", ".join(row.flags) or NOTHING,
    )


def _percent(part: float | None) -> str:
    return NOTHING if part is None else f"{part:.1%}"


def _rate(rate: float | None) -> str:
    return NOTHING if rate is None else f"{rate:.1f}"


class TopView:
    """What is on the screen, until somebody quits."""

    def __init__(self, queue: TaskQueue, interval: float, sort: Order) -> None:
        self._sampler = Sampler(queue)
        self._interval = interval
        self._sort = sort
        self._held = False
        self._trouble = ""
        self._snapshot: Snapshot | None = None

    async def run(self) -> None:
        console = make_console()
        with pressed_keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
            asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, keys.put_nowait, RESIZED)
            next_look = 0.0
            while True:
                if time.monotonic() >= next_look:
                    await self._look()
                    next_look = time.monotonic() + self._interval
                if self._snapshot is not None:
                    live.update(draw(self._snapshot, self._sort, console.size, self._note()), refresh=True)
                key = await _key(keys, next_look - time.monotonic())
                if key in ("q", "Q", END):
                    return
                self._press(key)

    async def _look(self) -> None:
        """An outage is shown, and waited out, once there was something to show."""
        if self._held:
            return
        try:
            self._snapshot = await self._sampler.look()
            self._trouble = ""
        except QueueUnavailable as error:
            if self._snapshot is None:
                raise
            self._trouble = str(error)

    def _press(self, key: str | None) -> None:
        if key in ("p", " "):
            self._held = not self._held
        else:
            self._sort = _ORDER_OF_KEY.get(key or "", self._sort)

    def _note(self) -> str:
        return self._trouble or ("held" if self._held else "")


async def _key(keys: asyncio.Queue[str], seconds: float) -> str | None:
    """The next key, or None when none is pressed in time."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            return await keys.get()
    except TimeoutError:
        return None


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
