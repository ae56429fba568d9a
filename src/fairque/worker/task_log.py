"""Log lines about tasks: each names the task and its user, and has them as fields."""

from __future__ import annotations

import logging

from fairque.redis.delivery import Delivery
from fairque.tasks.message import name_in

__all__ = ["log_about", "log_fields"]

logger = logging.getLogger("fairque.worker")


def log_about(level: int, delivery: Delivery, text: str, *values: object, exc_info: bool = False) -> None:
    """A line that begins with ``task 'id' of user 'id'``; `text` and `values` are as for `logging.Logger.log`."""
    if logger.isEnabledFor(level):
        told = f"task %r of user %r {text}"
        named, extra = (delivery.id, delivery.user_id), log_fields(delivery)
        logger.log(level, told, *named, *values, exc_info=exc_info, extra=extra, stacklevel=2)


def log_fields(delivery: Delivery) -> dict[str, object]:
    """For ``extra``, for those who write lines as JSON. A record has a ``name`` already, that of its logger."""
    return {
        "user_id": delivery.user_id,
        "task_id": delivery.id,
        "task_name": name_in(delivery.body),
        "attempt": delivery.attempt,
    }
