"""See the docstring of the package."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fairque.embedded.server import EmbeddedServer
from tests.isolation.suite.attack import ATTACKS
from tests.isolation.suite.attacks import load
from tests.isolation.suite.raid import LARGE_RUN, SMALL_RUN, Cast, Measured, Size
from tests.isolation.suite.table import HEAD, row, write


def main() -> int:
    load()
    args = _arguments()
    size = replace(SMALL_RUN if args.small else LARGE_RUN, partitions=args.partitions)
    console = Console(width=None if sys.stdout.isatty() else 200)
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer() as server:
        measured = asyncio.run(_play(server.url, Path(directory), size, args))
    table = Table(*HEAD)
    for each in measured:
        table.add_row(*row(each))
    console.print(table)
    faults = [f"{each.attack.slug}: {fault}" for each in measured for fault in each.faults]
    for fault in faults:
        console.print(fault, markup=False)
    if args.write:
        write(args.write, measured)
    return 1 if faults else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="as in the ordinary run of the tests")
    parser.add_argument("--only", action="append", choices=list(ATTACKS), metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes, instead of 2 (small: 1)")
    parser.add_argument("--partitions", type=int, default=1, metavar="N", help="of the queue")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a markdown file for the table")
    return parser.parse_args()


async def _play(url: str, directory: Path, size: Size, args: argparse.Namespace) -> list[Measured]:
    measured = []
    chosen = args.only or list(ATTACKS)
    with Cast(url, directory, args.workers or size.workers) as cast:
        for slug in chosen:
            print(f"{slug} …", file=sys.stderr, flush=True)
            found = await cast.play(ATTACKS[slug], slug, size)
            print("   ", *row(found)[2:], *found.faults[:3], sep="  ", file=sys.stderr, flush=True)
            measured.append(found)
    return measured


if __name__ == "__main__":
    sys.exit(main())
