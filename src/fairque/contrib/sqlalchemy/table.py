"""What a relay asks the table for. Each function takes a connection, and is called within a transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, select, tuple_, union_all, update

from fairque.contrib.sqlalchemy.row import OutboxRow

__all__ = ["Waiting", "forget", "lock", "read_rows", "set_aside", "users_after"]

MOST_ERROR_TEXT = 2000
MOST_BYTES = 8 * 1024 * 1024
"""Of all rows of a step."""


class Waiting(NamedTuple):
    """A row that waits to be moved."""

    id: int
    user_id: str
    task_id: str
    receipt: str
    content: bytes

    def __repr__(self) -> str:  # without the arguments
        return f"<row {self.id} of {self.user_id!r}>"


def users_after(connection: Connection, queue: str, after: str, most: int) -> list[str]:
    """Users of whom something waits, in the order of their ids. Each costs one look into the index."""
    waits = OutboxRow.queue == queue, OutboxRow.is_refused.is_(False)
    first = select(func.min(OutboxRow.user_id).label("user_id")).where(*waits, OutboxRow.user_id > after)
    line = first.cte("line", recursive=True)
    following = select(func.min(OutboxRow.user_id)).where(*waits, OutboxRow.user_id > line.c.user_id).scalar_subquery()
    line = line.union_all(select(following).where(line.c.user_id.is_not(None)))
    found = select(line.c.user_id).where(line.c.user_id.is_not(None)).limit(most)
    return list(connection.scalars(found))


def can_lock(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def lock(connection: Connection, queue: str, users: Sequence[str]) -> list[str]:
    """Those of the users whom no other relay has, until the end of the transaction.

    Where the database has no such locks, two relays may read the same rows. The receipts make one task of each then as
    well: this spares work, and keeps the order of each user.
    """
    if not can_lock(connection):
        return list(users)
    numbers = {user: _lock_number(queue, user) for user in users}
    tried = connection.execute(
        select(*(func.pg_try_advisory_xact_lock(number).label(f"l{at}") for at, number in enumerate(numbers.values())))
    ).one()
    return [user for user, is_ours in zip(numbers, tried, strict=True) if is_ours]


def read_rows(connection: Connection, queue: str, users: Sequence[str], most: int) -> list[Waiting]:
    """The first rows of each user: of all together about so many, and so many bytes, but one of each at least."""
    each, weight = max(1, most // len(users)), MOST_BYTES // len(users)
    parts = [select(_first_rows(queue, user, each, weight)) for user in users]
    return [Waiting(*row) for row in connection.execute(union_all(*parts))]


def _first_rows(queue: str, user: str, most: int, weight: int):  # type: ignore[no-untyped-def]
    size = func.length(OutboxRow.content)
    before = (func.sum(size).over(order_by=OutboxRow.id) - size).label("before")
    line = OutboxRow.queue == queue, OutboxRow.is_refused.is_(False), OutboxRow.user_id == user
    first = (
        select(OutboxRow.id, OutboxRow.user_id, OutboxRow.task_id, OutboxRow.receipt, OutboxRow.content, before)
        .where(*line)
        .order_by(OutboxRow.id)
        .limit(most)
        .subquery()
    )
    columns = first.c.id, first.c.user_id, first.c.task_id, first.c.receipt, first.c.content
    return select(*columns).where(first.c.before < weight).order_by(first.c.id).subquery()


def forget(connection: Connection, rows: Collection[Waiting]) -> None:
    """Remove what was moved, if it is the same still: some databases give a new row the number of one that is gone."""
    if rows:
        same = tuple_(OutboxRow.id, OutboxRow.receipt).in_([(row.id, row.receipt) for row in rows])
        connection.execute(delete(OutboxRow).where(same))


def set_aside(connection: Connection, errors: Mapping[Waiting, str]) -> None:
    """They wait no longer, and stay with the reason."""
    for row, error in errors.items():
        same = OutboxRow.id == row.id, OutboxRow.receipt == row.receipt
        changes = update(OutboxRow).where(*same).values(is_refused=True, error=error[:MOST_ERROR_TEXT])
        connection.execute(changes)


def _lock_number(queue: str, user: str) -> int:
    digest = hashlib.blake2b(f"fairque outbox {len(queue)} {queue} {user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
