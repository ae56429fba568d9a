"""What a worker tells others of itself."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from fairque.models import UserGroup
from fairque.redis.keys import encode_user
from fairque.tasks.registry import registry
from fairque.version import __version__
from fairque.worker.assignment import shown

__all__ = ["describe_worker", "names_known", "new_worker_id"]

MOST_NAMES = 200


def new_worker_id() -> str:
    """Host, pid and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"


def describe_worker(concurrency: int, groups: Sequence[UserGroup]) -> dict[str, Any]:
    """What stays the same."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": __version__,
        "concurrency": concurrency,
        "started_at": time.time(),
        "users": shown(groups),
    }


def names_known() -> str:
    """The tasks that this process knows, for explanations; nothing where they are too many to tell."""
    return " ".join(map(encode_user, registry)) if len(registry) <= MOST_NAMES else ""
