"""The bench is run by hand: what it uses of fairque must still be there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"
PROGRAMS = sorted(path.stem for path in BENCH.glob("*.py"))
ROWS = sorted(f"rows.{path.stem}" for path in (BENCH / "rows").glob("[!_]*.py"))


@pytest.mark.parametrize("module", [*PROGRAMS, *ROWS, "contenders.fairque", "contenders.raw"])
def test_a_part_of_the_bench_can_be_imported(module: str):
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(BENCH)!r}); import {module}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
