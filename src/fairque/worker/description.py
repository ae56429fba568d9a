"""What a worker tells others of itself, in its entry in Redis."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from fairque.everybody import EVERYONE
from fairque.models import UserGroup
from fairque.redis.assignment import assignments_of
from fairque.redis.keys import encode_user
from fairque.tasks.registry import registry
from fairque.version import __version__
from fairque.worker.options import WorkerOptions

__all__ = ["describe_worker", "names_known"]

MOST_NAMES = 500


def describe_worker(options: WorkerOptions) -> dict[str, Any]:
    """What stays the same."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": __version__,
        "concurrency": options.concurrency,
        "started_at": time.time(),
        "users": _shown(options.groups),
        "handles": int(options.handler is not None),
        "serves": " ".join(assignment.name for assignment in assignments_of(options.groups)),
    }


def names_known(options: WorkerOptions) -> str:
    """The tasks that it has functions for; nothing where they are too many to tell, or a handler may know any."""
    if options.handler is not None or len(registry) > MOST_NAMES:
        return ""
    return " ".join(map(encode_user, registry))


def _shown(groups: Sequence[UserGroup]) -> str:
    """Encoded users, or ``*``."""
    return " ".join(encode_user(user) for group in groups for user in group) if all(groups) else EVERYONE
