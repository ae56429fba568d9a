"""The command line. A command is a file of its own here, and `app` knows them all."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command in ``sys.argv`` and exit with its code."""
    try:
        # Late, so that a Ctrl-C while modules load is as quiet as any other.
        from fairque.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
