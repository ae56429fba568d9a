"""What a relay asks the table for. Each function takes a connection, and is called within a transaction.

Statements are the same for any number of users, so that SQLAlchemy compiles them once. What comes first is found by
steps through the index, each to the smallest that is larger than the one before. A join would leave it to the planner
of the database whether it reads all rows of a user who has a million.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    bindparam,
    delete,
    func,
    literal,
    select,
    text,
    tuple_,
    update,
)

from fairque.contrib.sqlalchemy.row import OutboxRow

__all__ = ["Taken", "Waiting", "forget", "lock", "read_rows", "set_aside", "users_after"]

MOST_ERROR_TEXT = 2000
MOST_BYTES = 8 * 1024 * 1024
"""Of all rows of a step."""
_WAITS = OutboxRow.queue == bindparam("queue"), OutboxRow.is_refused.is_(False)


class Waiting(NamedTuple):
    """A row that waits to be moved."""

    id: int
    user_id: str
    task_id: str
    receipt: str
    content: bytes

    def __repr__(self) -> str:  # without the arguments
        return f"<row {self.id} of {self.user_id!r}>"


class Taken(NamedTuple):
    """Rows of a step, those of a user in their order, and the users for whom there was no room in it."""

    rows: list[Waiting]
    left: list[str]


class _Found(NamedTuple):
    id: int
    user_id: str
    size: int


def users_after(connection: Connection, queue: str, after: str, most: int) -> list[str]:
    """Users of whom something waits, in the order of their ids."""
    return list(connection.scalars(_USERS_AFTER, {"queue": queue, "after": after, "most": most}))


def _users_after() -> Select[Any]:
    first = select(func.min(OutboxRow.user_id).label("user_id")).where(*_WAITS, OutboxRow.user_id > bindparam("after"))
    line = first.cte("line", recursive=True)
    line = line.union_all(select(_user_behind(line)).where(line.c.user_id.is_not(None)))
    return select(line.c.user_id).where(line.c.user_id.is_not(None)).limit(bindparam("most"))


def _user_behind(line: CTE) -> ScalarSelect[Any]:
    return select(func.min(OutboxRow.user_id)).where(*_WAITS, OutboxRow.user_id > line.c.user_id).scalar_subquery()


def _first_rows() -> Select[Any]:
    """Number, user and size of the first rows of some users."""
    line = select(bindparam("first", type_=OutboxRow.user_id.type).label("user_id")).cte("line", recursive=True)
    line = line.union_all(select(_user_behind(line)).where(line.c.user_id < bindparam("last")))
    first = select(line.c.user_id, _next_id(OutboxRow.user_id >= line.c.user_id).label("id"), literal(1).label("place"))
    walk = first.where(line.c.user_id.in_(bindparam("users", expanding=True))).cte("walk", recursive=True)
    is_behind = tuple_(OutboxRow.user_id, OutboxRow.id) > tuple_(walk.c.user_id, walk.c.id)
    further = select(walk.c.user_id, _next_id(is_behind), walk.c.place + 1)
    walk = walk.union_all(further.where(_is_own(walk), walk.c.place < bindparam("each")))
    found = select(walk.c.id, walk.c.user_id, _of_row(walk.c.id, func.length(OutboxRow.content)))
    return found.where(_is_own(walk)).order_by(walk.c.user_id, walk.c.place)


def _next_id(condition: ColumnElement[bool]) -> ScalarSelect[Any]:
    """Of the line of all users, so that no planner takes it for a look at all ids: it may be of the next user."""
    line = select(OutboxRow.id).where(*_WAITS, condition).order_by(OutboxRow.user_id, OutboxRow.id)
    return line.limit(1).scalar_subquery()


def _is_own(walk: CTE) -> ColumnElement[bool]:
    return _of_row(walk.c.id, OutboxRow.user_id) == walk.c.user_id


def _of_row(number: ColumnElement[Any], what: Any) -> ScalarSelect[Any]:
    return select(what).where(OutboxRow.id == number).scalar_subquery()


_USERS_AFTER = _users_after()
_FIRST_ROWS = _first_rows()
_ROWS = select(OutboxRow.id, OutboxRow.user_id, OutboxRow.task_id, OutboxRow.receipt, OutboxRow.content).where(
    OutboxRow.id.in_(bindparam("ids", expanding=True))
)
_TRY_LOCKS = text("SELECT n, pg_try_advisory_xact_lock(n) FROM unnest(CAST(:numbers AS bigint[])) AS n")


def can_lock(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def lock(connection: Connection, queue: str, users: Sequence[str]) -> list[str]:
    """Those of the users whom no other relay has, until the end of the transaction.

    Where the database has no such locks, two relays may read the same rows. The receipts make one task of each then as
    well: this spares work, and keeps the order of each user.
    """
    if not can_lock(connection):
        return list(users)
    numbers = {_lock_number(queue, user): user for user in users}
    tried = connection.execute(_TRY_LOCKS, {"numbers": list(numbers)})
    ours = {numbers[number] for number, is_ours in tried if is_ours}
    return [user for user in users if user in ours]


def read_rows(connection: Connection, queue: str, users: Sequence[str], most: int) -> Taken:
    """The first rows of each user: of all together about so many, and `MOST_BYTES`, but one of the first user's."""
    bounds = {"first": users[0], "last": users[-1], "users": users, "each": max(1, most // len(users))}
    found = [_Found(*row) for row in connection.execute(_FIRST_ROWS, {"queue": queue, **bounds})]
    chosen = list(_within(found, MOST_BYTES, MOST_BYTES // len(users)))
    reached = {row.user_id for row in chosen}
    rows = {row.id: Waiting(*row) for row in connection.execute(_ROWS, {"ids": [row.id for row in chosen]})}
    left = {row.user_id for row in found} - reached
    return Taken([rows[row.id] for row in chosen if row.id in rows], [user for user in users if user in left])


def _within(found: Iterable[_Found], most: int, most_of_each: int) -> Iterator[_Found]:
    """Until there is no room for another user; of each as many as have so many bytes, but one at least."""
    total = 0
    for _, rows in groupby(found, key=attrgetter("user_id")):
        if total >= most:
            return
        own = 0
        for row in rows:
            is_first = own == 0
            own += row.size
            if own > most_of_each and not is_first:
                break
            yield row
        total += own


def forget(connection: Connection, rows: Collection[Waiting]) -> None:
    """Remove what was moved, if it is the same still: some databases give a new row the number of one that is gone."""
    if rows:
        same = OutboxRow.id.in_([row.id for row in rows]), OutboxRow.receipt.in_([row.receipt for row in rows])
        connection.execute(delete(OutboxRow).where(*same))


def set_aside(connection: Connection, errors: Mapping[Waiting, str]) -> None:
    """They wait no longer, and stay with the reason."""
    for row, error in errors.items():
        same = OutboxRow.id == row.id, OutboxRow.receipt == row.receipt
        changes = update(OutboxRow).where(*same).values(is_refused=True, error=error[:MOST_ERROR_TEXT])
        connection.execute(changes)


def _lock_number(queue: str, user: str) -> int:
    digest = hashlib.blake2b(f"fairque outbox {len(queue)} {queue} {user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
