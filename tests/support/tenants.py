"""Many tenants on one core: the work they put in, what governs them, and how soon one of them is served."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from fairque.limit import Limit, record_of
from fairque.policy import Rate, changes_of
from fairque.redis.delivery import Delivery, NewTask
from fairque.redis.keys import encode_user
from fairque.tasks.message import LimitKey, Message, encode_body, new_nonce
from tests.support.core import MAX_BODY, Core

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fairque import TaskQueue

_NO_ARGS = msgspec.Raw(b"\x90")
_BATCH = 1000


def numbered(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{at:05}" for at in range(count)]


def tasks_of(
    user_id: str,
    ids: Iterable[str],
    *,
    name: str = "t",
    cost: float = 1.0,
    priority: int = 3,
    at_ms: int = 0,
    needs: bytes = b"",
    keys: Sequence[LimitKey] = (),
) -> list[NewTask]:
    """`at_ms`: due then, in ms since the epoch; 0: now. `keys`: limit keys beside the name."""
    body = encode_body(Message([name, *keys] if keys else name, _NO_ARGS), new_nonce(), cost, priority, MAX_BODY)
    return [NewTask(user_id, id_, priority, str(at_ms or ""), body, needs) for id_ in ids]


async def put(core: Core, tasks: Sequence[NewTask]) -> None:
    for at in range(0, len(tasks), _BATCH):
        assert all(await core.enqueue_all(tasks[at : at + _BATCH]))


async def fill(core: Core, *user_ids: str, tasks: int = 100, **options: Any) -> None:
    """So many tasks for each of them; `options` as in `tasks_of`."""
    await put(core, [task for user_id in user_ids for task in tasks_of(user_id, numbered(tasks), **options)])


async def govern(core: Core, user_id: str, **fields: Any) -> None:
    whose = user_id if user_id == "*" else encode_user(user_id)
    await core.store.set_policy(whose, *changes_of(fields))


async def limit(core: Core, key: str, most: int | None = None, rate: Rate | None = None, *, of: str = "") -> None:
    """By hand; without numbers it is taken back. `of`: one user."""
    says = Limit("key", max_running=most, rate=rate)
    await core.store.set_limits([(record_of(key, of or None), says if says.says_how_much else None)], declared=False)


def whose(deliveries: Iterable[Delivery]) -> Counter[str]:
    return Counter(of.user_id for of in deliveries)


async def place_of(core: Core, user_id: str, most: int, **options: Any) -> int:
    """Which one of the services from now on is its first; ``most + 1`` where it is none of so many."""
    for place in range(1, most + 1):
        if user_id in await core.serve(1, **options):
            return place
    return most + 1


async def claims_until(core: Core, user_id: str, most: int, want: int, **options: Any) -> int:
    """Which one of the claims from now on is the first that gives a task of this user; nothing ends meanwhile."""
    for claim in range(1, most + 1):
        if user_id in whose(await core.take(want, **options)):
            return claim
    return most + 1


async def has_worker(queue: TaskQueue) -> bool:
    """Some worker has told of itself."""
    return any(worker.concurrency for worker in (await queue.stats()).workers)
