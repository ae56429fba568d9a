"""What policies cost: how long Redis is busy with the claim and the settlement of a task, without and with them."""

from typing import Any

from redis.asyncio import Redis

from fairque import Breaker
from fairque.models import TaskState
from fairque.redis.delivery import Delivery, Outcome
from fairque.settings import QueueSettings
from fairque.tasks.message import Record, encode_record

USERS = [f"user-{i}" for i in range(100)]
AT_ONCE = 25  # a quarter of the slots of a worker with 100
DAY_MS = 86_400_000


async def measure(client: Any, url: str, tasks: int) -> dict[str, float]:
    """`client` is that of fairque: the others have no policies."""
    figures = {}
    async with Redis.from_url(url) as redis:
        for name, govern in (("free", None), ("limits", _limits), ("all", _all)):
            await redis.flushall()
            for number, user in enumerate(USERS if govern else ()):
                await client.queue.set_policy(user, **govern(number))
            times = await _times(client, redis, tasks)
            figures |= {f"{step}_{name}": value for step, value in times.items()}
    return figures


def _limits(number: int) -> dict[str, Any]:
    """Such that each is looked at, and none of them holds anything back."""
    return {
        "weight": 1 + number % 3,
        "max_running": 50,
        "rate": "1000000/s burst 1000",
        "max_queued": 1_000_000,
        "breaker": Breaker(),
    }


def _all(number: int) -> dict[str, Any]:
    return _limits(number) | {"min_running": 1, "group": f"group-{number % 7}"}


async def _times(client: Any, redis: Redis, tasks: int) -> dict[str, float]:
    """Microseconds in scripts, for each task."""
    await client.enqueue_many("noop", range(tasks), USERS)
    store = client.queue.store()
    claimed, claiming, settling = 0, 0.0, 0.0
    while claimed < tasks:
        before = await _busy(redis)
        claim = await store.claim("bench", AT_ONCE, settings=QueueSettings(lease_ms=60_000))
        between = await _busy(redis)
        await store.settle("bench", [_finished(delivery) for delivery in claim.deliveries])
        claimed += len(claim.deliveries)
        claiming += between - before
        settling += await _busy(redis) - between
    await store.close()
    return {"claim": claiming / tasks, "settle": settling / tasks}


def _finished(of: Delivery) -> Outcome:
    record = Record("noop", of.attempt, of.queued_ms, of.started_ms, 0.1, "bench")
    return Outcome(of, "finished", DAY_MS, 0, encode_record(of.body, TaskState.FINISHED, record), run_ms=0.1)


async def _busy(redis: Redis) -> float:
    return float((await redis.info("commandstats")).get("cmdstat_fcall", {}).get("usec", 0))
