"""A relay in a process of its own: ``relay.py REDIS QUEUE DATABASE [STEP before|after]``.

With a step, it kills itself there, the first time it comes by with something to do.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from fairque import TaskQueue
from fairque.contrib.sqlalchemy import OutboxRelay
from fairque.contrib.sqlalchemy import relay as relays


def die_at(owner: Any, name: str, when: str) -> None:
    whole = getattr(owner, name)

    def fatal(*args: Any, **kwargs: Any) -> Any:
        if name == "confirm" and not args[0]:
            return whole(*args, **kwargs)
        if when == "before":
            die()
        returned = whole(*args, **kwargs)
        return dying(returned) if inspect.iscoroutine(returned) else die()

    async def dying(call: Any) -> None:
        await call
        die()

    setattr(owner, name, fatal)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(redis: str, queue_name: str, database: str, step: str = "", when: str = "") -> None:
    async with TaskQueue(redis, name=queue_name) as queue:
        if step:
            die_at(relays if step.startswith("_") else queue.reader, step, when)
        engine = create_async_engine(database) if "async" in database else create_engine(database)
        print("moves", flush=True)
        await OutboxRelay(queue, engine, interval=0.01).run()


asyncio.run(main(*sys.argv[1:]))
