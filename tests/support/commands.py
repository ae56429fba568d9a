"""How many commands a call costs the server, those of its scripts included."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from tests.support.resp import RespClient

if TYPE_CHECKING:
    from fairque import TaskQueue

__all__ = ["commands_of"]

_OWN = {
    "info",
    "config|resetstat",
    "fcall",
    "fcall_ro",
    "ping",
    "ssubscribe",
    "client|setinfo",
    "client|setname",
    "hello",
}
"""What the look costs, what wraps the commands of a script, and what connections say of themselves."""


async def commands_of(queue: TaskQueue, call: Callable[[], Awaitable[Any]]) -> dict[str, int]:
    """By command. The server must be the test's own, with nothing else under way; the scripts become known first."""
    await call()
    with RespClient(queue.connector.url) as client:
        client.execute("CONFIG", "RESETSTAT")
        await call()
        text = client.execute("INFO", "commandstats").decode()
    found = re.findall(r"^cmdstat_([^:]+):calls=(\d+)", text, re.MULTILINE)
    return {name: int(calls) for name, calls in found if name not in _OWN}
