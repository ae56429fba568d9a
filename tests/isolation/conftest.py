from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import tests.support.core
from tests.support.core import Core
from tests.support.plugin import partitions_of, with_partitions
from tests.support.servers import Server
from tests.support.together import live_together


@pytest.fixture(autouse=True)
def _together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--partitions``: tests that drive a queue by hand do so in the partition in which all of their users live."""
    if (count := partitions_of(request)) > 1:
        live_together(monkeypatch)
        monkeypatch.setattr(tests.support.core, "Backend", with_partitions(count))


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core
