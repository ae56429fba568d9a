"""Every key of the table lost, and of a wrong type, while workers run: others go on, and a repair brings all back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fairque.doctor.rows import ROWS
from tests.storm.test_keys import FOR_A_MOMENT, TELLING
from tests.support.damage import Damage
from tests.support.under_load import break_under_load

if TYPE_CHECKING:
    from collections.abc import Callable

    from fairque.embedded.server import EmbeddedServer

RARE = FOR_A_MOMENT | {"claimed:<w>": "claimed:w", "damaged": "damaged", "damage": "damage"}
"""What `everything` does not have: it is there, and something else."""
FORMS = [row.form for row in ROWS if row.form not in RARE and row.kind != "any"]
WAYS: dict[str, Callable[[Damage, str], None]] = {"lost": Damage.delete, "of a wrong type": Damage.retype}
CASES = [(form, way) for form in FORMS for way in WAYS] + [(form, "put there") for form in RARE]


def is_of_one_user(form: str) -> bool:
    return "<u>" in form


@pytest.mark.parametrize(("form", "way"), CASES, ids=map("-".join, CASES))
async def test_others_go_on_while_a_key_is_broken_and_all_after_a_repair(
    own_server: Callable[..., EmbeddedServer], form: str, way: str
) -> None:
    def break_one(damage: Damage) -> None:
        if form in RARE:
            damage.put_there(RARE[form])
        else:
            WAYS[way](damage, damage.forms[form][0])

    await break_under_load(own_server().url, break_one, of_one_user=is_of_one_user(form), telling=form in TELLING)
