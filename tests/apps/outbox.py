"""The relay that ``fairque outbox`` runs in tests. Importing it connects to nothing."""

from __future__ import annotations

import os

from sqlalchemy import create_engine

from fairque.contrib.sqlalchemy import OutboxRelay
from tests.apps.served import queue

nothing = None


def relay() -> OutboxRelay:
    return OutboxRelay(queue(), create_engine(os.environ.get("OUTBOX_URL", "sqlite://")), interval=0.01)
