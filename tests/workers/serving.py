"""A program that is there for its worker: ``serving.py {"processes": …} {"concurrency": …}``.

The queue is that of ``tests.apps.served``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from fairque import TaskEvent, Worker
from tests.apps.served import queue


def tell(event: TaskEvent) -> None:
    print(f"hook {event.task_id}", flush=True)


async def main(how: dict[str, Any], options: dict[str, Any]) -> None:
    served = queue()
    await Worker(served, on_success=tell, **options).serve(**how)
    print(f"after, open {served.connector.is_open}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*map(json.loads, sys.argv[1:])))
