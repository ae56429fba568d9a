"""Tasks that are put in by a transaction of your database: with its commit, or not at all.

::

    outbox = Outbox(queue)


    async def order(session: AsyncSession, customer: str, what: str) -> None:
        async with session.begin():
            session.add(Order(customer=customer, what=what))
            await outbox.enqueue(session, deliver(what), user_id=customer)


    relay = OutboxRelay(queue, engine)  # in one or more processes: fairque outbox myapp.tasks:relay

A row of the table ``fairque_outbox`` is written in your transaction, and a relay moves what was committed into the
queue. Each row makes one task, also where a relay dies between its steps.
"""

from __future__ import annotations

try:
    import sqlalchemy as _sqlalchemy  # noqa: F401
except ModuleNotFoundError as exc:
    raise ImportError(f"fairque.contrib.sqlalchemy needs {exc.name}: pip install 'fairque[sqlalchemy]'") from exc

from fairque.contrib.sqlalchemy.outbox import Outbox, SyncOutbox
from fairque.contrib.sqlalchemy.relay import OutboxRelay
from fairque.contrib.sqlalchemy.row import OutboxRow, metadata

__all__ = ["Outbox", "OutboxRelay", "OutboxRow", "SyncOutbox", "metadata"]
