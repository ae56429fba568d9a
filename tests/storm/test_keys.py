"""Every key of the table lost, and of a wrong type, one at a time: found, and mended. Run by ``nox -s storm``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import pytest

from fairque import TaskQueue
from fairque.doctor.rows import ROWS
from fairque.embedded.server import EmbeddedServer
from tests.support.damage import HARMLESS, Damage
from tests.support.everything import everything

FOR_A_MOMENT = {
    "swept": "swept",
    "sweep-lines": "sweep-lines",
    "uncounted": "uncounted",
    "suspects": "suspects",
    "limit-rate:<k>": "limit-rate::fetch",
    "kept:<k>": "kept::fetch",
    "keeper:<u>": "keeper:acme",
    "weighed": "weighed",
    "weighing-spaces": "weighing-spaces",
    "left:<g>": "left:plan",
    "assignments-ended": "assignments-ended",
    "schedules-broken": "schedules-broken",
}
"""What `everything` does not have, with a name of each."""
FORMS = [row.form for row in ROWS if row.form not in FOR_A_MOMENT and row.kind != "any"]
MOST = 8
"""Keys of one form."""


TELLING = {"announcements", "announcements:<u>", "informed:<u>:<id>"}


@pytest.fixture
async def whole(own_server: Callable[..., EmbeddedServer], form: str) -> AsyncIterator[tuple[TaskQueue, Damage]]:
    async with everything(own_server().url, "storm", telling=form in TELLING) as queue:
        with Damage(queue.connector.url, queue.keys.prefix) as damage:
            yield queue, damage


@contextmanager
def broken(damage: Damage, name: str, how: Callable[[Damage, str], None]) -> Iterator[None]:
    damage.undo()
    how(damage, name)
    yield
    damage.undo()


@pytest.mark.parametrize("form", FORMS)
async def test_a_lost_key_is_found_and_mended_or_harmless(whole: tuple[TaskQueue, Damage], form: str) -> None:
    queue, damage = whole
    messages = damage.messages()
    for name in damage.forms[form][:MOST]:
        with broken(damage, name, Damage.delete):
            assert (await queue.check()).findings or form in HARMLESS, name
            repaired = await queue.check(repair=True)
            assert repaired.sound, (name, repaired.unmended)
            assert repaired.totals_compared
            assert (await queue.check()).findings == (), name
            assert damage.messages() >= messages - {name}, "nothing else is lost"


@pytest.mark.parametrize("form", FORMS)
async def test_a_key_of_a_wrong_type_is_found_and_mended(whole: tuple[TaskQueue, Damage], form: str) -> None:
    queue, damage = whole
    messages = damage.messages()
    for name in damage.forms[form][:MOST]:
        with broken(damage, name, Damage.retype):
            found = await queue.check()
            assert ("wrong-type", name) in {(finding.kind, finding.key) for finding in found.findings}
            repaired = await queue.check(repair=True)
            assert repaired.sound, (name, repaired.unmended)
            assert repaired.totals_compared
            assert (await queue.check()).findings == (), name
            assert damage.messages() == messages, "nothing is lost"


@pytest.mark.parametrize("form", FOR_A_MOMENT)
async def test_what_should_be_there_for_a_moment_is_no_other_thing(whole: tuple[TaskQueue, Damage], form: str) -> None:
    queue, damage = whole
    messages, name = damage.messages(), FOR_A_MOMENT[form]
    damage.put_there(name)
    found = await queue.check()
    assert ("wrong-type", name) in {(finding.kind, finding.key) for finding in found.findings}
    assert (await queue.check(repair=True)).sound
    assert (await queue.check()).findings == ()
    assert damage.messages() == messages
