"""A key is broken while workers run. `nox -s storm` does it with every key of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.damage import Damage
from tests.support.under_load import break_under_load

if TYPE_CHECKING:
    from collections.abc import Callable

    from fairque.embedded.server import EmbeddedServer

WAYS: dict[str, Callable[[Damage, str], None]] = {"lost": Damage.delete, "of a wrong type": Damage.retype}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["normal:<u>", "normal-stream:<u>", "task:<u>:<id>", "policy:<u>", "ready", "leases"])
async def test_others_go_on_while_a_key_is_broken_and_all_after_a_repair(
    own_server: Callable[..., EmbeddedServer], form: str, way: str
) -> None:
    def break_one(damage: Damage) -> None:
        WAYS[way](damage, damage.forms[form][0])

    await break_under_load(own_server().url, break_one, of_one_user="<u>" in form)
