"""`OutboxRow`: a task in the database, from a transaction of the application until a relay has moved it."""

from __future__ import annotations

import os
from datetime import datetime

import msgspec
from sqlalchemy import BigInteger, DateTime, Index, Integer, LargeBinary, MetaData, String, Text, false, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fairque.redis.arguments import Rules
from fairque.redis.delivery import NewTask

__all__ = ["OutboxRow", "metadata", "new_receipt", "task_in"]

metadata = MetaData()
"""Has the table ``fairque_outbox`` alone: ``metadata.create_all(engine)`` makes it where there are no migrations."""
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(NewTask)


class _Base(DeclarativeBase):
    metadata = metadata


class OutboxRow(_Base):
    """A row of ``fairque_outbox``: a task that was committed, and is not in the queue yet.

    Attributes:
        id: Given by the database. The rows of a user are moved in this order.
        queue: The name of the queue that it is for.
        user_id: Whose task it is.
        task_id: Of the task.
        receipt: Names the row for ever. Where a call names no `task_id`, it is that as well.
        added_at: When the transaction that added it began (SQLite: when the row was added).
        content: The task, as its queue has it.
        is_refused: It was set aside, as it can never be put in as it is. To have it tried again, make this false.
        error: Why it was set aside.
    """

    __tablename__ = "fairque_outbox"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    queue: Mapped[str] = mapped_column(String(200))
    user_id: Mapped[str] = mapped_column(String(512))
    task_id: Mapped[str] = mapped_column(String(512))
    receipt: Mapped[str] = mapped_column(String(32))
    added_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    content: Mapped[bytes] = mapped_column(LargeBinary)
    is_refused: Mapped[bool] = mapped_column(default=False, server_default=false())
    error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index("fairque_outbox_line", "queue", "is_refused", "user_id", "id"),)

    @classmethod
    def of(cls, new: NewTask, queue: str, receipt: str) -> OutboxRow:
        return cls(queue=queue, user_id=new.user_id, task_id=new.task_id, receipt=receipt, content=_encode(new))

    def __repr__(self) -> str:  # without the arguments
        return f"<OutboxRow {self.user_id!r} {self.task_id!r}>"


def new_receipt() -> str:
    """No two rows have the same, in whichever database they are, also one that was brought back from a backup."""
    return os.urandom(12).hex()


def task_in(content: bytes, receipt: str, by_ms: int) -> NewTask:
    """To be put in by this moment. Raises `msgspec.MsgspecError` for what is no task."""
    new = _decoder.decode(content)
    return new._replace(rules=msgspec.structs.replace(new.rules or Rules(), nonce=receipt, receipt_by_ms=by_ms))
