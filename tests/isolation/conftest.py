from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.core import Core
from tests.support.servers import Server


@pytest.fixture
async def core(server: Server, queue_name: str) -> AsyncIterator[Core]:
    async with Core(server.url, queue_name) as core:
        yield core
