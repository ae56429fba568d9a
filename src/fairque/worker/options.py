"""`WorkerOptions`: what was chosen for a worker, checked."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping

import msgspec

from fairque.checks import check_count, check_id, check_seconds
from fairque.errors import InvalidInput
from fairque.everybody import EVERYBODY, Everybody, check_user
from fairque.middleware import RunMiddleware
from fairque.models import UserGroup
from fairque.worker.handler import TaskHandler
from fairque.worker.hooks import Hook

__all__ = ["WorkerOptions", "new_worker_id", "user_groups"]

MAX_USERS = 1000
_LEAST_SECONDS = {
    "poll_interval": 0.01,
    "shutdown_timeout": 0.0,
    "unknown_task_patience": 0.0,
    "cancel_grace": 0.0,
    "task_timeout": 0.001,
    "stall_timeout": 0.1,
}
_MAY_BE_NONE = ("task_timeout", "stall_timeout")


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a `Worker`, which explains them. Raises `InvalidInput` for one that breaks a rule.

    Attributes:
        groups: Whom it serves, first to last: assigned users, then steal targets; an empty group is everyone.
        hooks: By event, see `Hooks`.
        run_middleware: The first one outermost.
    """

    worker_id: str
    concurrency: int
    groups: list[UserGroup]
    handler: TaskHandler | None
    poll_interval: float
    shutdown_timeout: float
    stall_timeout: float | None
    max_deliveries: int
    unknown_task_patience: float
    cancel_grace: float
    max_leftover_threads: int
    scheduler: bool
    task_timeout: float | None
    max_tasks_per_child: int | None
    hooks: Mapping[str, Hook | None]
    run_middleware: tuple[RunMiddleware, ...] = ()

    def __post_init__(self) -> None:
        check_id("worker_id", self.worker_id)
        check_count("concurrency", self.concurrency, 1, 10_000)
        check_count("max_deliveries", self.max_deliveries, 1, 1_000)
        if self.max_tasks_per_child is not None:
            check_count("max_tasks_per_child", self.max_tasks_per_child, 1, 1_000_000)
        check_count("max_leftover_threads", self.max_leftover_threads, 1, 10_000)
        for name, least in _LEAST_SECONDS.items():
            given = getattr(self, name)
            if given is not None or name not in _MAY_BE_NONE:
                msgspec.structs.force_setattr(self, name, check_seconds(name, given, least))


def new_worker_id() -> str:
    """Host, pid and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"


def user_groups(assigned: Iterable[str | Everybody], targets: Iterable[str | Everybody]) -> list[UserGroup]:
    """The groups of users that are served, first to last; an empty one is everyone. Raises `InvalidInput`."""
    groups: list[UserGroup] = []
    for name, users in (("assigned_users", assigned), ("steal_targets", targets)):
        named = _named(name, users)
        if named is EVERYBODY:
            groups.append(())
            break  # includes whoever could follow
        if named:
            groups.append(named)
    if not groups:
        raise InvalidInput("a worker needs assigned_users or steal_targets")
    return groups


def _named(name: str, users: Iterable[str | Everybody]) -> list[str] | Everybody:
    if isinstance(users, str):
        raise InvalidInput(f"{name} must be a list of user ids, not the str {users!r}")
    given = list(users)
    named = [check_user(f"an entry of {name}", user) for user in given if user is not EVERYBODY]
    if len(named) > MAX_USERS:
        raise InvalidInput(f"{name} has {len(named)} entries, the limit is {MAX_USERS}; use EVERYBODY for all")
    return named if len(named) == len(given) else EVERYBODY
