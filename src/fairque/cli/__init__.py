"""The command line: `commands` has what users type, `screens` what is drawn, the modules here what both need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["info", "main"]


def main() -> NoReturn:
    """Run the command in ``sys.argv`` and exit with its code."""
    _run(sys.argv[1:])


def info() -> NoReturn:
    """``fairque-info``: the command ``fairque info`` under a name of its own."""
    _run(["info", *sys.argv[1:]])


def _run(arguments: Sequence[str]) -> NoReturn:
    try:
        # Late, so that a Ctrl-C while modules load is as quiet as any other.
        from fairque.cli.app import run

        code = run(arguments)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
