"""What the processes of the bench run: `measure` prints figures as JSON, `work` is a worker that another leads."""

import importlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

try:
    from uvloop import run
except ImportError:
    from asyncio import run


async def measure(row: str, contender: str, url: str, options: str) -> None:
    from contenders import load

    client = load(contender, url)
    await client.open()
    figures = await importlib.import_module(f"rows.{row}").measure(client, url, **json.loads(options))
    print(json.dumps(figures), flush=True)
    os._exit(0)  # how well each of them closes is not what is measured


async def work(contender: str, url: str, concurrency: str) -> None:
    from other import serve

    await serve(contender, url, int(concurrency))


if __name__ == "__main__":
    run({"measure": measure, "work": work}[sys.argv[1]](*sys.argv[2:]))
