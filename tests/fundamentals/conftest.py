from __future__ import annotations

from collections.abc import Iterator

import pytest

from fairque.tasks.registry import registry


@pytest.fixture(autouse=True)
def _tasks_of_one_test() -> Iterator[None]:
    """Tests define their tasks where they use them; the names are free again afterwards."""
    before = dict(registry)
    yield
    registry.clear()
    registry.update(before)
