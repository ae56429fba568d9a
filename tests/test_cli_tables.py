"""Tables of the command line in terminals of any width."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import uuid
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from fairque import TaskQueue, Worker
from fairque.cli.short_ids import short_ids
from fairque.cli.table import Column, FittedTable, names, numbers, words
from tests.apps.served import greet, stumble
from tests.support.process import ROOT
from tests.support.servers import Server

UUIDS = [str(uuid.UUID(int=number * 2**100 + number, version=4)) for number in range(1, 6)]


def lines(columns: Sequence[Column], rows: Sequence[Sequence[object]], width: int, *, wraps: bool = True) -> list[str]:
    """As a terminal shows them."""
    console = Console(width=width, color_system=None, markup=False, emoji=False, highlight=False)
    rendered = console.render_lines(FittedTable(columns, rows, wraps=wraps), pad=False)
    return ["".join(segment.text for segment in line).rstrip() for line in rendered]


# Columns


def test_columns_of_the_least_worth_are_left_out_first_and_named() -> None:
    columns = (names("user"), numbers("cheap", 1), numbers("dear", 2), words("flags"))
    rows = [("acme", 1, 2, "paused")]
    assert lines(columns, rows, 80)[0].split() == ["user", "cheap", "dear", "flags"]
    shown = lines(columns, rows, 20)
    assert shown[0].split() == ["user", "dear", "flags"]
    assert shown[-2:] == ["no room for: cheap", "(--json has all)"]
    assert lines(columns, rows, 12)[0].split() == ["user", "flags"]


def test_a_column_in_which_nothing_is_goes_before_one_of_less_worth() -> None:
    columns = (names("user"), numbers("cheap", 1), numbers("dear", 2))
    assert lines(columns, [("acme", 1, 0), ("zoe", 3, 0)], 11)[0].split() == ["user", "cheap"]


def test_what_fits_after_a_dearer_column_has_gone_stays() -> None:
    columns = (names("user"), numbers("n", 1), numbers("enormous number", 2))
    assert lines(columns, [("acme", 1, "9" * 30)], 20)[0].split() == ["user", "n"]


def test_heads_are_stacked_before_anything_is_left_out() -> None:
    shown = lines((names("user"), numbers("most running", 1)), [("acme", 7)], 13)
    assert [line.split() for line in shown] == [["most"], ["user", "running"], ["acme", "7"]]


def test_ids_are_cut_for_columns_that_are_worth_more_than_whole_ids_only() -> None:
    columns = (names("user", whole=3), numbers("less", 2), numbers("more", 4))
    rows = [(each, 11, 22) for each in UUIDS]
    assert lines(columns, rows, 60)[1].split() == [UUIDS[0], "11", "22"]
    assert lines(columns, rows, 44)[1].split() == [UUIDS[0], "22"]
    assert lines(columns, rows, 40)[1].split()[1:] == ["11", "22"]


def test_the_long_id_of_one_user_takes_nothing_from_the_others() -> None:
    columns = (names("user", whole=5), numbers("queued"), numbers("wait", 4), words("flags"))
    rows = [("x" * 300, 1, "2 s", "-"), *((each, 1, "2 s", "-") for each in UUIDS)]
    shown = lines(columns, rows, 80)
    assert shown[0].split() == ["user", "queued", "wait", "flags"]
    assert [line.split()[0] for line in shown[2:]] == UUIDS
    assert "…" in shown[1]
    assert "x" * 300 in lines(columns, rows, 400)[1]


def test_words_are_wrapped_or_cut() -> None:
    columns, rows = (names("check"), words("what")), [("memory", "99 % of maxmemory is in use by now")]
    assert lines(columns, rows, 30) == ["check   what", "memory  99 % of maxmemory is", "        in use by now"]
    assert lines(columns, rows, 30, wraps=False)[1:] == ["memory  99 % of maxmemory is …"]


@given(
    cells=st.lists(st.tuples(st.text(max_size=60), st.integers(0, 10**12), st.text(max_size=60)), max_size=8),
    width=st.integers(40, 200),
)
def test_no_line_is_wider_than_the_terminal(cells: list[tuple[str, int, str]], width: int) -> None:
    columns = (names("user", whole=2), numbers("a number", 3), words("flags"))
    for wraps in (True, False):
        assert max(map(cell_len, lines(columns, cells, width, wraps=wraps))) <= width


# Ids


def test_ids_that_fit_are_whole() -> None:
    assert short_ids(["acme", *UUIDS], 36) == ["acme", *UUIDS]


def test_others_lose_their_middle() -> None:
    assert short_ids(["0f8b2c4e-aaaa-4f54-8799-7b6bdb3d1150", "acme"], 12) == ["0f8b2c…d1150", "acme"]


@pytest.mark.parametrize(
    "ids",
    [
        [f"customer-{number:06}-eu-west-production" for number in (122, 123, 124, 199)],
        [f"{'x' * number}y{'x' * (90 - number)}" for number in range(90)],
        [f"{'x' * number}y" for number in range(90)],
        [f"大阪府の利用者番号{number}番のご契約" for number in range(30)],
        [f"{'x' * 40}{first}{'x' * 40}{second}{'x' * 40}" for first in "abc" for second in "abc"],
    ],
)
@pytest.mark.parametrize("width", [12, 16, 24])
def test_one_can_tell_which_is_which(ids: list[str], width: int) -> None:
    shown = short_ids(ids, width)
    assert len(set(shown)) == len(ids)
    assert max(map(cell_len, shown)) <= width


@given(ids=st.lists(st.text(max_size=40), unique=True), width=st.integers(1, 45))
def test_no_id_is_wider_than_its_column(ids: list[str], width: int) -> None:
    assert all(cell_len(each) <= width for each in short_ids(ids, width))


# Commands, in a terminal


@pytest.mark.leaves_keys
async def test_commands_fit_80_columns_with_long_ids(server: Server, queue: TaskQueue) -> None:
    for user in UUIDS:
        await queue.enqueue(stumble("x"), user_id=user, task_id=f"task-of-{user}")
        await queue.enqueue(greet("x"), user_id=user, delay=600)
    await Worker(queue, scheduler=False).run_until_idle()
    for user in UUIDS:
        await queue.enqueue(greet("x"), user_id=user)
    for command, whole in (("users", True), ("info --stats", True), ("top --once --interval 0.1", False)):
        shown = await in_terminal(f"{command} --url {server.url} --queue {queue.name}")
        assert all(cell_len(line) <= 80 for line in shown), shown
        heads = next(line.split() for line in shown if line.startswith("user "))
        assert {"user", "queued", "wait", "dead", "flags"} <= set(heads), shown
        assert (UUIDS[0] in "\n".join(shown)) is whole
    shown = await in_terminal(f"dead list --url {server.url} --queue {queue.name}")
    assert [shown[0].split()[at] for at in (0, 1, -1)] == ["user", "id", "error"]
    assert len({line.split()[1] for line in shown[1:6]}) == 5


async def in_terminal(command: str) -> list[str]:
    """What a command writes to a terminal of 80 columns, as lines."""
    terminal, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairque", *command.split()),
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=other_end, stderr=other_end, env={**env, "TERM": "dumb"},
    )  # fmt: skip
    os.close(other_end)
    try:
        written = await asyncio.wait_for(asyncio.to_thread(_read, terminal), 40)
        assert await process.wait() == 0, written
        return [line.rstrip() for line in written.splitlines()]
    finally:
        os.close(terminal)


def _read(terminal: int) -> str:
    written = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            data = b""
        if not data:
            return written.decode()
        written += data
