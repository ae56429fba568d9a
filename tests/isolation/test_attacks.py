"""The isolation suite in small: what one tenant does through the API costs another no more than is documented.

``nox -s isolation`` runs it in its full size.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.isolation.suite.attack import ATTACKS
from tests.isolation.suite.attacks import load
from tests.isolation.suite.raid import SMALL_RUN, Cast
from tests.support.servers import Server

load()
pytestmark = pytest.mark.leaves_keys()


@pytest.fixture(scope="session")
def cast(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    with Cast(server.url, tmp_path_factory.mktemp("isolation"), SMALL_RUN.workers).running() as cast:
        yield cast


@pytest.mark.parametrize("slug", ATTACKS)
async def test_a_quiet_user_waits_no_longer_than_is_documented_for(cast: Cast, queue_name: str, slug: str) -> None:
    measured = await cast.play(ATTACKS[slug], queue_name, SMALL_RUN)
    assert measured.faults == []
    assert measured.under_attack, "nothing was measured"
