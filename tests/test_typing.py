"""The types of the public face, as mypy sees them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CASES = sorted((ROOT / "tests" / "typing").glob("*.py"))

pytest.importorskip("mypy", reason="mypy checks these files where it is installed (nox -s types)")
pytestmark = pytest.mark.timeout(180)


class Turned(ast.NodeTransformer):
    """Asserts of each type that it is another one, and loses the comments that forgive errors."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "assert_type":
            self.count += 1
            node.args[1] = ast.Name("AnotherOne")
        return node


def turn(case: Path, copy: Path) -> int:
    """Write a copy in which no promise holds, and count them."""
    turned = Turned()
    tree = ast.fix_missing_locations(turned.visit(ast.parse(case.read_text())))
    copy.write_text(f"{ast.unparse(tree)}\nclass AnotherOne: ...\n")
    assert turned.count > 3
    return turned.count + case.read_text().count("# type: ignore[")


def mypy(*files: Path) -> Counter[str]:
    """The lines of each file in which mypy finds errors, with the settings of the project."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *map(str, files)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode in (0, 1), ran.stderr
    found = {tuple(line.split(":")[:2]) for line in ran.stdout.splitlines() if ": error: " in line}
    return Counter(Path(file).name for file, _ in found)


def test_what_type_checkers_are_promised_holds_and_what_does_not_is_noticed(tmp_path: Path):
    """In one run of mypy, which reads the package but once."""
    copies = {case: tmp_path / f"turned_{case.stem}.py" for case in CASES}
    wanted = {copy.name: turn(case, copy) for case, copy in copies.items()}
    assert len(CASES) > 5
    found = mypy(*CASES, *copies.values())
    assert not found.keys() - wanted.keys()
    for name, errors in wanted.items():
        assert found[name] >= errors, name
