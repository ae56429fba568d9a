"""A supervisor that adds up the metrics of its processes: ``summed.py PAGE HOW_MANY COMMAND…``. The page is written
again and again, and once more at the end.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from fairque.contrib.prometheus import Sum
from fairque.worker.logs import LogLevel, LogSettings, set_up_logging
from fairque.worker.supervisor import Supervisor


async def write(page: Path, sums: Sum, ended: asyncio.Event) -> None:
    while not ended.is_set():
        await asyncio.to_thread(tell, page, sums)
        await asyncio.sleep(0.1)


def tell(page: Path, sums: Sum) -> None:
    new = page.with_suffix(".new")
    new.write_bytes(sums.render())
    os.replace(new, page)  # noqa: PTH105


async def main(page: Path, processes: int, arguments: list[str]) -> int:
    set_up_logging(LogSettings(LogLevel.INFO, as_json=False))
    sums = Sum()
    ended = asyncio.Event()
    writing = asyncio.create_task(write(page, sums, ended))
    code = await Supervisor([arguments] * processes, reports=sums).run()
    ended.set()
    await writing  # or its thread would write over the last page
    tell(page, sums)
    return code


sys.exit(asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])))
