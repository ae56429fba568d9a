"""redis-py with no library on top: what the client itself allows on this machine.

A single enqueue is one trivial script, a bulk one is pipelined XADDs; the worker reads a hundred entries,
gives each its asyncio task, acks them with one command, and keeps no result.
"""
# ruff: noqa: ARG002

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from bodies import BODIES
from redis.asyncio import Redis
from redis.exceptions import ResponseError

STREAM, GROUP = "raw", "workers"
SCRIPT = "return redis.call('XADD', KEYS[1], '*', 'task', ARGV[1], 'argument', ARGV[2])"
AT_ONCE = 500


class Client:
    def __init__(self, url: str) -> None:
        self.redis = Redis.from_url(url, socket_timeout=None)

    async def open(self) -> None:
        self.sha = await self.redis.script_load(SCRIPT)
        with suppress(ResponseError):
            await self.redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)

    async def enqueue(self, task: str, argument: Any, user: str) -> None:
        await self.redis.evalsha(self.sha, 1, STREAM, task, msgspec.msgpack.encode(argument))

    async def enqueue_many(self, task: str, arguments: Sequence[Any], users: Sequence[str]) -> None:
        encode = msgspec.msgpack.encode
        for i in range(0, len(arguments), AT_ONCE):
            pipe = self.redis.pipeline(transaction=False)
            for argument in arguments[i : i + AT_ONCE]:
                pipe.xadd(STREAM, {"task": task, "argument": encode(argument)})
            await pipe.execute()

    @asynccontextmanager
    async def work(self, concurrency: int):
        running = asyncio.create_task(self._serve(concurrency))
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    async def _serve(self, concurrency: int) -> None:
        bodies = {name.encode(): body for name, body in BODIES.items()}
        decode = msgspec.msgpack.decode
        while True:
            read = await self.redis.xreadgroup(GROUP, "w", {STREAM: ">"}, count=concurrency, block=5_000)
            for _, entries in read or ():
                await asyncio.gather(*(bodies[e[b"task"]](decode(e[b"argument"])) for _, e in entries))
                await self.redis.xack(STREAM, GROUP, *(i for i, _ in entries))
