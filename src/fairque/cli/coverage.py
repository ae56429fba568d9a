"""Whom the workers of a configuration do not serve, or not as one would think."""

from __future__ import annotations

from collections.abc import Iterator

from fairque import FairQueueConfig
from fairque.models import EVERYONE

__all__ = ["gaps"]


def gaps(config: FairQueueConfig) -> list[str]:
    """A sentence for each."""
    return [*_unserved(config), *_without_effect(config)]


def _unserved(config: FairQueueConfig) -> Iterator[str]:
    assigned = {user for worker in config.workers for user in worker.assigned_users}
    targets = {user for worker in config.workers for user in worker.steal_targets}
    if not config.workers:
        yield "there are no workers: nobody is served by this configuration"
    elif EVERYONE not in assigned | targets:
        yield (
            f"only the {len(assigned | targets)} users that are listed are served, tasks of anyone else wait for ever: "
            "give a worker '*' among its assigned_users or steal_targets"
        )
    if EVERYONE not in assigned:
        for user in sorted(targets - assigned - {EVERYONE}):
            yield f"user {user!r} is a steal target but assigned to no worker: served only when others have nothing"


def _without_effect(config: FairQueueConfig) -> Iterator[str]:
    for name, worker in zip(config.worker_names(), config.workers, strict=True):
        if EVERYONE in worker.assigned_users:
            if len(worker.assigned_users) > 1:
                yield f"worker {name!r}: '*' in assigned_users is everyone, the other entries do nothing"
            if worker.steal_targets:
                yield f"worker {name!r}: steal_targets do nothing, because its assigned_users are everyone"
