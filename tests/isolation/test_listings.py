"""What is broken of one user keeps nobody else's from being told, in all that tells of many."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fairque import FindingKind, Task, TaskQueue
from tests.support.resp import RespClient

pytestmark = [pytest.mark.partitions(1, 4), pytest.mark.damages, pytest.mark.leaves_keys()]
BROKEN, OTHER = "eve", "bob"


def break_policy(queue: TaskQueue, *command: str) -> None:
    key = f"{queue.reader.keys_of(BROKEN).prefix}policy:{BROKEN}"
    with RespClient(queue.connector.url) as client:
        client.execute("DEL", key)
        client.execute(command[0], key, *command[1:])


async def policies(queue: TaskQueue) -> list[str]:
    return list(await queue.policies())


async def users(queue: TaskQueue) -> list[str]:
    return [user.user_id for user in await queue.users()]


async def health(queue: TaskQueue) -> list[str]:
    return [OTHER] if (await queue.health()).stats.users_known else []


async def check(queue: TaskQueue) -> list[str]:
    found = (await queue.check()).findings
    named = {each.kind for each in found if each.key == f"policy:{BROKEN}"}
    return [OTHER] if named & {FindingKind.WRONG_TYPE, FindingKind.CORRUPT} else []


async def move_of_a_group(queue: TaskQueue) -> list[str]:
    """There is none where there are no partitions."""
    if queue.settings.partitions > 1:
        await queue.set_policy(OTHER, group="plan")
        assert await queue.move_group("plan", 3) == 1
    return [OTHER]


TELLS: list[Callable[[TaskQueue], Awaitable[list[str]]]] = [policies, users, health, check, move_of_a_group]


@pytest.mark.parametrize("command", [("RPUSH", "x"), ("SET", "junk"), ("SET", "\x01")], ids=["type", "junk", "number"])
@pytest.mark.parametrize("tells", TELLS, ids=lambda tells: tells.__name__)
async def test_a_policy_that_is_broken_keeps_nobody_elses_from_being_told(
    queue: TaskQueue, tells: Callable[[TaskQueue], Any], command: tuple[str, ...]
) -> None:
    for user_id in (BROKEN, OTHER):
        await queue.set_policy(user_id, weight=2)
        await queue.enqueue(Task.create(payload={}), user_id=user_id)
    break_policy(queue, *command)
    assert OTHER in await tells(queue)
