"""`Streams`: runs generators, and sends what they yield.

A generator fills its outflow. One sender for all of a partition empties what has gathered.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Generator
from functools import partial
from typing import Any

from fairque.errors import FairqueError
from fairque.models import FailureKind, Streamed
from fairque.redis.delivery import Delivery
from fairque.redis.places import UserElsewhere
from fairque.redis.store import Store
from fairque.tasks.failure import Failure, encode_result
from fairque.tasks.function import TaskFunction
from fairque.worker.chunk_sender import ChunkSender, final
from fairque.worker.outflow import Outflow
from fairque.worker.running_task import RunningTask
from fairque.worker.threads import Threads

__all__ = ["Streams"]

LONGEST_TURN = 0.005
"""Seconds after which an async generator that waits for nothing lets others on the loop go first."""


class Streams:
    """Made on the loop of the worker.

    Args:
        store: Connections for chunks alone, as they may be many.
        worker_id: Of the worker.
    """

    def __init__(self, store: Store, worker_id: str) -> None:
        self._store = store
        self._senders = [ChunkSender(part, worker_id, self._find) for part in store.parts]

    def _find(self, delivery: Delivery, elsewhere: UserElsewhere) -> ChunkSender:
        places = self._store.places
        places.learn_all(elsewhere.moved)
        return self._senders[places.of(delivery.user.decode())]

    async def run(self, run: RunningTask, function: TaskFunction[Any, Any], threads: Threads) -> Streamed[Any]:
        """Run a generator to its end, which is when Redis has all that it yielded."""
        outflow = Outflow(run.delivery, self._senders[run.delivery.partition].note)
        try:
            try:
                if function.run_in == "loop":
                    await self._pump(outflow, function.body(*run.args, **run.kwargs))
                else:
                    await threads.run(run.delivery, partial(self._drain, run, outflow, function))
            except Exception:  # what was yielded before it is told as well
                with contextlib.suppress(Exception):
                    await outflow.flush()
                raise
            await outflow.flush()
        finally:
            outflow.fail(FairqueError("this run is over: what it yields counts no more"))
        return Streamed(outflow.many)

    async def _pump(self, outflow: Outflow, chunks: AsyncGenerator[Any, None]) -> None:
        began = time.monotonic()
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                await outflow.put(self._encoded(chunk))
                if time.monotonic() - began > LONGEST_TURN:
                    await asyncio.sleep(0)
                    began = time.monotonic()

    def _drain(self, run: RunningTask, outflow: Outflow, function: TaskFunction[Any, Any]) -> None:
        chunks: Generator[Any, None, Any] = function.body(*run.args, **run.kwargs)
        with contextlib.closing(chunks):
            for chunk in chunks:
                outflow.put_from_thread(self._encoded(chunk))
                if run.canceled:
                    return

    def _encoded(self, chunk: Any) -> bytes:
        encoded, limit = encode_result(chunk, "what it yields"), self._store.settings.max_message_bytes
        if isinstance(encoded, Failure):
            raise final(encoded)
        if len(encoded) > limit:
            text = f"a chunk has {len(encoded):,} bytes, the limit is {limit:,} (max_message_bytes)"
            raise final(Failure(FailureKind.ERROR, "ChunkTooLarge", text))
        return encoded

    async def stop(self) -> None:
        """Nothing runs any more."""
        for sender in self._senders:
            await sender.stop()
