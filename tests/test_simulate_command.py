"""``fairque simulate``, as a user runs it."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fairque.cli.app import run
from tests.support.process import WorkerProcess

Start = Callable[..., Awaitable[WorkerProcess]]
ROWS = "".join("0,flood,1\n" for _ in range(40)) + "0.5,ann,1\n0.5,bob,1\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(f"time,user,duration\n{ROWS}")
    return path


class Said:
    """Runs the command in this process; what it said, and how it ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
        self.code = run(["simulate", *map(str, arguments)])
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def simulate(capsys: pytest.CaptureFixture[str], trace: Path) -> Callable[..., Said]:
    return lambda *arguments: Said(capsys, trace, *arguments)


async def test_it_runs_as_a_command_of_its_own(worker_process: Start, trace: Path) -> None:
    process = await worker_process("fairque", "simulate", str(trace), "--workers=1")
    assert await process.wait() == 0, process.output
    assert "42 tasks of 3 users" in process.output


async def test_it_needs_no_matplotlib_but_for_a_plot(worker_process: Start, trace: Path, tmp_path: Path) -> None:
    script = tmp_path / "without.py"
    script.write_text(
        "import sys; sys.modules['matplotlib'] = None\n"
        "from fairque.cli.app import run\n"
        f"assert run(['simulate', {str(trace)!r}]) == 0\n"
        f"sys.exit(run(['simulate', {str(trace)!r}, '--plot', {str(tmp_path / 'p.svg')!r}]))\n"
    )
    process = await worker_process(str(script))
    assert await process.wait() == 1, process.output
    assert process.lines[-2:] == ["error: a plot needs matplotlib", "hint: pip install 'fairque[plot]'"]


def test_the_tables_compare_policies_and_show_users(simulate: Callable[..., Said]) -> None:
    said = simulate("--workers=1", "--policy=fair,fifo,round-robin", "--users=2")
    lines = [line.split() for line in said.out.splitlines() if line.strip()]
    rows = {line[0]: line for line in lines if line[0] in ("fair", "fifo", "round-robin") and len(line) > 1}
    assert rows["fair"][1:3] == ["1.5", "s"]
    assert rows["fifo"][1:3] == ["39.5", "s"]
    assert [line[0] for line in lines].count("flood") == 3
    assert "and 1 user more" in said.out
    assert (said.code, said.err) == (0, "")


def test_json_and_csv_have_everybody(simulate: Callable[..., Said], tmp_path: Path) -> None:
    said = simulate("--workers=1", "--json", "--csv", tmp_path / "users.csv", "--users=0")
    fair, fifo = json.loads(said.out)["policies"]
    assert (fair["policy"], fair["tasks"], fair["seconds"]) == ("fair", 42, 42.0)
    assert fair["slowdown_median"] < fifo["slowdown_median"]
    with (tmp_path / "users.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["policy"], row["user"]) for row in rows] == [
        (policy, user) for policy in ("fair", "fifo") for user in ("flood", "ann", "bob")
    ]
    assert [float(row["wait_mean"]) for row in rows[:3]] == [user["wait_mean"] for user in fair["users"]]


@pytest.mark.parametrize("option", [(), ("--weights=flood=100",)])
def test_a_first_task_waits_for_a_round_whatever_the_weights(
    simulate: Callable[..., Said], option: tuple[str, ...]
) -> None:
    [report] = json.loads(simulate("--workers=1", "--policy=fair", "--json", *option).out)["policies"]
    waits = {user["user"]: user["wait_mean"] for user in report["users"]}
    assert waits["ann"] == pytest.approx(1.5, abs=1)


def test_weights_decide_who_waits(simulate: Callable[..., Said], trace: Path) -> None:
    rows = "".join(f"0,{user},1\n" for user in ("heavy", "light") for _ in range(20))
    trace.write_text(f"time,user,duration\n{rows}")
    weighted = simulate("--workers=1", "--policy=fair", "--json", "--weights=heavy=100")
    [report] = json.loads(weighted.out)["policies"]
    waits = {user["user"]: user["wait_mean"] for user in report["users"]}
    assert waits["heavy"] < 11
    assert waits["light"] > 28


def test_seconds_can_be_charged_instead_of_tasks(simulate: Callable[..., Said], trace: Path) -> None:
    rows = "0,long,10\n" * 5 + "0,short,1\n" * 20
    trace.write_text(f"time,user,duration\n{rows}")
    options = "--workers=1", "--policy=fair", "--json"
    last = {}
    for charge in ("cost", "seconds"):
        [report] = json.loads(simulate(*options, "--charge", charge).out)["policies"]
        last[charge] = {user["user"]: user["wait_p99"] for user in report["users"]}["short"]
    assert last["seconds"] < last["cost"] < 70


def test_a_faster_trace_waits_longer_and_a_limit_takes_a_part(simulate: Callable[..., Said], trace: Path) -> None:
    trace.write_text("time,user,duration\n" + "".join(f"{at},ann,2\n" for at in range(0, 40, 2)))
    options = "--workers=1", "--policy=fifo", "--json"
    [as_it_was] = json.loads(simulate(*options).out)["policies"]
    [fast] = json.loads(simulate(*options, "--speed=2").out)["policies"]
    [part] = json.loads(simulate(*options, "--speed=2", "--limit=5").out)["policies"]
    assert (as_it_was["wait_worst"], fast["wait_worst"], part["wait_worst"]) == (0.0, 9.5, 2.0)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
@pytest.mark.parametrize(("name", "begins"), [("plot.png", b"\x89PNG"), ("plot.SVG", b"<?xml")])
def test_the_plot_is_a_picture_and_the_same_each_time(
    simulate: Callable[..., Said], tmp_path: Path, name: str, begins: bytes
) -> None:
    pictures = set()
    for _ in range(2):
        assert simulate("--policy=fair,fifo,round-robin", "--plot", tmp_path / name).code == 0
        pictures.add((tmp_path / name).read_bytes())
    [picture] = pictures
    assert picture.startswith(begins)
    if begins == b"<?xml":
        assert all(policy in picture.decode() for policy in ("fair", "fifo", "round-robin"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--policy=lifo",), "a policy is one of fair, fifo, round-robin, not 'lifo'"),
        (("--weights=zoe=2",), "there is no user 'zoe' in the trace"),
        (("--weights=flood",), "'flood' weighs nobody"),
        (("--weights=flood=many",), "the weight of 'flood' must be a number, not 'many'"),
        (("--weights=flood=-1",), "the weight of 'flood' must be a number from 1e-06"),
        (("--plot=plot.pdf",), "'plot.pdf' is no name for a plot"),
        (("--csv=/nowhere/at/all.csv",), "/nowhere/at/all.csv cannot be written: No such file"),
        (("--format=swf",), "line 1: 1 fields, the Standard Workload Format has 18"),
        (("--workers=0",), "'--workers'"),
        (("--charge=money",), "'--charge'"),
    ],
)
def test_a_mistake_is_said_in_a_line_with_a_hint(
    simulate: Callable[..., Said], options: tuple[str, ...], error: str
) -> None:
    said = simulate(*options)
    first, second = said.err.splitlines()
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("hint: ")
    assert said.code == 2


def test_lines_that_were_left_out_are_counted(simulate: Callable[..., Said], trace: Path) -> None:
    known, unknown = (f"1 0 -1 {run} 1 -1 -1 -1 -1 -1 1 7 -1 -1 -1 -1 -1 -1\n" for run in (5, -1))
    trace.write_text(known + unknown)
    assert "left out 1 line without a run time" in simulate().out
    assert json.loads(simulate("--json").out)["left_out"] == {"without a run time": 1}
