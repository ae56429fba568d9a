"""The types of the public face, as mypy sees them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CASES = ROOT / "tests" / "typing"

pytest.importorskip("mypy", reason="mypy checks these files where it is installed (nox -s types)")
pytestmark = pytest.mark.timeout(180)


def mypy(*arguments: str | Path) -> str:
    """What mypy says, with the settings of the project."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode in (0, 1), ran.stderr
    return ran.stdout


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


def test_what_type_checkers_are_promised_holds():
    assert mypy(CASES).startswith("Success: no issues found")


@pytest.mark.parametrize("case", sorted(CASES.glob("*.py")), ids=lambda path: path.stem)
def test_a_promise_that_does_not_hold_is_noticed(case: Path, tmp_path: Path):
    turned = Turned()
    tree = ast.fix_missing_locations(turned.visit(ast.parse(case.read_text())))
    copy = tmp_path / f"turned_{case.stem}.py"
    copy.write_text(f"{ast.unparse(tree)}\nclass AnotherOne: ...\n")
    errors = {line.split(":")[1] for line in mypy(copy).splitlines() if ": error: " in line}
    forgiven = case.read_text().count("# type: ignore[")
    assert turned.count > 3
    assert len(errors) >= turned.count + forgiven
