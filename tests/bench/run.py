"""The bench: fairque beside other asyncio task queues, on a private server on another core.

    python tests/bench/run.py [--quick] [--only ROW]... [--contenders a,b] [--server redis8] [--repeats N] [--json FILE]

Every run is a fresh process against an empty server, the contenders take turns, and the median counts.
Machines differ: read ratios, and the column of redis-py alone. Contenders that are not installed are left out.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from contenders import LABELS, version
from rich.console import Console
from rich.table import Table
from rows import ALL, ROWS, Figure, Row
from server import cores, pin, server

HERE = Path(__file__).parent
TIMEOUT = 180
Results = dict[str, list[dict[str, Any]]]  # by contender, one entry per run


def main() -> int:
    args = _arguments()
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server goes as well
    rows = [row for row in ROWS if not args.only or row.name in args.only]
    versions = {c: v for c in (*ALL, "raw") if (v := version(c)) and c in args.contenders}
    server_core, bench_core = cores()
    results: dict[str, Results] = {}
    with server(server_core, args.server) as url:
        about = _about(url, versions)
        pin(bench_core)
        for row in rows:
            results[row.name] = _run_row(row, url, versions, args, console)
    lines = [line for row in rows for line in _lines(row, results[row.name])]
    Console(width=None if sys.stdout.isatty() else 170).print(_table(lines, versions, about))
    if args.json:
        Path(args.json).write_text(json.dumps({"about": about, "figures": lines, "runs": results}, indent=1))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tasks, one run of each: does it work at all")
    names = [row.name for row in ROWS]
    parser.add_argument("--only", action="append", metavar="ROW", choices=names, help=f"of {', '.join(names)}")
    parser.add_argument("--contenders", type=lambda s: s.split(","), default=[*ALL, "raw"], metavar="A,B")
    of_path = "instead of a server that is on PATH"
    parser.add_argument("--server", choices=["redis8", "valkey"], default="", help=of_path)
    parser.add_argument("--repeats", type=int, metavar="N", help="runs of each, instead of 3")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there")
    return parser.parse_args()


def _about(url: str, versions: dict[str, str]) -> dict[str, Any]:
    with redis.Redis.from_url(url) as client:
        info = client.info("server")
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info['redis_version']}"
    about = {"server": name, "python": platform.python_version(), "cores": os.cpu_count(), "versions": versions}
    return about | {"load": round(os.getloadavg()[0], 1)}  # by others: with as many as there are cores, look again


def _run_row(row: Row, url: str, versions: dict[str, str], args: argparse.Namespace, console: Console) -> Results:
    repeats = args.repeats or (1 if args.quick else row.repeats)
    results: Results = {c: [] for c in row.contenders if c in versions}
    for _ in range(repeats):
        for contender, runs in results.items():
            with redis.Redis.from_url(url) as client:
                client.flushall()
                client.config_resetstat()
            started = time.monotonic()
            others = {} if contender in ("fairque", "raw") else row.others
            runs.append(_measure(row, contender, url, row.options | others | (row.quick if args.quick else {})))
            took = time.monotonic() - started
            console.print(f"[dim]{row.name} {contender} {took:.1f} s {runs[-1]}", highlight=False, soft_wrap=True)
    return results


def _measure(row: Row, contender: str, url: str, options: dict[str, Any]) -> dict[str, Any]:
    """One run in a process of its own; a failure is a result too."""
    command = [sys.executable, str(HERE / "child.py"), "measure", row.module, contender, url, json.dumps(options)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {TIMEOUT} s"}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the session opened above, with the worker it may have left
        process.communicate()
    if process.returncode or not out.strip():
        return {"error": (err.strip().splitlines() or ["no output"])[-1][:300]}
    figures = json.loads(out.splitlines()[0])
    return figures | (row.derive(figures) if row.derive else {})


def _lines(row: Row, results: Results) -> list[dict[str, Any]]:
    """The medians of a row's figures, and how fairque stands to what it should reach."""
    lines = []
    for figure in row.figures:
        medians = {
            contender: statistics.median(values)
            for contender, runs in results.items()
            if (values := [run[figure.key] for run in runs if figure.key in run])
        }
        reach, met = _verdict(figure, medians)
        line = {"row": row.name, "figure": figure.label, "unit": figure.unit, "median": medians}
        lines.append(line | {"reach": reach, "met": met})
    return lines


def _verdict(figure: Figure, medians: dict[str, float]) -> tuple[str, str]:
    """What to reach in words, and whether it is: `yes`, `no`, or `scaled`, for a machine slower than the one meant."""
    ours, saq = medians.get("fairque"), medians.get("saq")
    here = saq / figure.saq if saq and figure.saq else 1.0
    sign, goal = ("≤", figure.at_most) if figure.at_least is None else ("≥", figure.at_least)
    if goal is None:
        return "", ""
    wanted = f"{sign} {goal:,g}"
    if figure.times:
        sign, wanted = "≥", f"≥ {figure.times:g} × saq, aim {goal:,g}"
        goal, here = figure.times * (saq or 0), 1.0
    elif here != 1.0:
        wanted += f" (here {_cell(goal * here).strip()})"
    if ours is None or not goal:
        return wanted, ""
    reached = [ours >= g if sign == "≥" else ours <= g for g in (goal, goal * here)]
    return wanted, "yes" if reached[0] else "scaled" if reached[1] else "no"


def _table(lines: list[dict[str, Any]], versions: dict[str, str], about: dict[str, Any]) -> Table:
    title = f"{about['server']}, Python {about['python']}, {about['cores']} cores, load before {about['load']}; medians"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for contender, number in versions.items():
        table.add_column(f"{LABELS.get(contender, contender)}\n{number}", justify="right", no_wrap=True)
    table.add_column("× saq", justify="right")
    table.add_column("fairque should reach")
    table.add_column("met")
    for line in lines:
        cells = [_cell(line["median"].get(c)) for c in versions]
        table.add_row(f"{line['figure']}, {line['unit']}", *cells, _times(line["median"]), line["reach"], line["met"])
    table.caption = (
        "here: the figure to reach times what saq does here over what it did on the machine for which it was set; "
        "scaled: reached by that measure"
    )
    return table


def _times(medians: dict[str, float]) -> str:
    ours, saq = medians.get("fairque"), medians.get("saq")
    return f"{ours / saq:.2g}" if ours and saq else ""


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


if __name__ == "__main__":
    sys.exit(main())
