"""What a type checker knows of the tenant controls. mypy checks this file; nothing runs it.

A line with ``type: ignore`` must be an error: mypy complains of an ignore that ignores nothing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, assert_type

from fairque import (
    EVERYBODY,
    Breaker,
    Certainty,
    Demand,
    Explanation,
    FairQueueConfig,
    Limit,
    LimitInfo,
    Listed,
    ListedByName,
    Metrics,
    Policy,
    QueueFull,
    Rate,
    Reason,
    Share,
    Shares,
    TaskQueue,
    TaskState,
    UsageHour,
    Waits,
    current_task,
    task,
)


async def a_policy_is_set_field_by_field(queue: TaskQueue, at: datetime) -> None:
    assert_type(await queue.set_policy("acme", weight=2, max_running=5, min_running=1), Policy)
    await queue.set_policy(EVERYBODY, rate="100/m burst 20", max_queued=10, overflow="drop_oldest")
    await queue.set_policy("acme", rate=Rate(100, per=60), paused=at, group="gold", breaker="5/60s/30s")
    await queue.set_policy("acme", breaker=Breaker(5), paused=True)
    await queue.set_policy("acme", weight=None, rate=None, paused=None, group=None, breaker=None, overflow=None)
    await queue.set_policy("acme", weight="2")  # type: ignore[arg-type]
    await queue.set_policy("acme", max_running=1.5)  # type: ignore[arg-type]
    await queue.set_policy("acme", rate=100)  # type: ignore[arg-type]
    await queue.set_policy("acme", overflow="drop")  # type: ignore[arg-type]
    await queue.set_policy("acme", limit=5)  # type: ignore[call-arg]
    await queue.set_policy("acme", 2)  # type: ignore[call-arg]


async def what_governs_is_read(queue: TaskQueue, config: FairQueueConfig) -> None:
    policy = await queue.get_policy("acme", defaults=False)
    assert_type(policy.weight, float | None)
    assert_type(policy.max_running, int | None)
    assert_type(policy.rate, Rate | None)
    assert_type(policy.overflow, Literal["reject", "drop_oldest"] | None)
    assert_type(policy.paused, bool | datetime | None)
    assert_type(policy.breaker, Breaker | None)
    policy.weight = 2  # type: ignore[misc]
    assert_type(await queue.policies(limit=5, after="acme"), ListedByName[Policy])
    assert_type(await queue.groups(), ListedByName[float])
    assert_type(await queue.limits(limit=5), Listed[LimitInfo])
    assert_type(await queue.get_group("gold"), float)
    await queue.apply_policies(config)
    await queue.set_group("gold")  # type: ignore[call-arg]


async def limits_are_declared_and_set(queue: TaskQueue, found: LimitInfo) -> None:
    @task(limits=[Limit("openai", max_running=50, rate="500/m"), "crm:{customer}"], max_running=5)
    async def enrich(customer: str) -> int:
        return len(customer)

    await queue.enqueue(enrich.options(limits=["openai", Limit("crm", shared=False)])("acme"), user_id="acme")
    await queue.enqueue(enrich("acme").options(limits=[]), user_id="acme")
    await queue.set_limit("openai", max_running=5, rate=Rate(5))
    await queue.set_limit("crm:{customer}", max_running=5, user_id="acme")
    await queue.set_limit("openai")
    await queue.clear_limit("openai", declared=True)
    assert_type(await queue.limits(after=found), Listed[LimitInfo])
    assert_type(found.max_running, int | None)
    assert_type(found.rate, Rate | None)
    Limit("openai", 50, "500/m", shared=True)
    Limit("openai", max_running="5")  # type: ignore[arg-type]
    Limit()  # type: ignore[call-arg]
    await queue.set_limit("openai", 5)  # type: ignore[call-arg]
    await queue.set_limit(max_running=5)  # type: ignore[call-arg]
    task(limits=[5])  # type: ignore[list-item]
    found.key = "other"  # type: ignore[misc]


async def users_are_paused(queue: TaskQueue, at: datetime) -> None:
    await queue.pause("acme", until=at)
    await queue.pause("acme", until=5)  # type: ignore[arg-type]
    await queue.resume("acme")


async def a_task_is_explained(queue: TaskQueue) -> None:
    found = await queue.explain("acme", "t")
    assert_type(found, Explanation)
    assert_type(found.state, TaskState | None)
    assert_type(found.waiting[0].reason, Reason)
    assert_type(found.waiting[0].until, float | None)
    assert_type(found.starts_in, float | None)
    assert_type(found.certainty, Certainty)


async def what_was_used_is_known(queue: TaskQueue, at: datetime) -> None:
    assert_type(await queue.usage("acme", at), list[UsageHour])
    shares = await queue.shares()
    assert_type(shares, Shares)
    assert_type(shares.users, tuple[Share, ...])
    assert_type(shares.users[0].verdict, Literal["", "noisy", "starved"])
    demand = await queue.demand(target_wait=5)
    assert_type(demand, Demand)
    assert_type(demand.slots_needed, int)
    metrics = (await queue.user("acme")).metrics
    assert_type(metrics, Metrics)
    assert_type(metrics.waits, Waits)
    assert_type(metrics.waits.p95, float)


@task(max_running=5, rate="10/s", cost=lambda pages: pages * 2.5)
async def show(pages: int) -> int:
    current_task().charge(2.5)
    current_task().charge("much")  # type: ignore[arg-type]
    return pages


def a_full_queue_says_when_to_come_back(error: QueueFull) -> None:
    assert_type(error.retry_after, float | None)
