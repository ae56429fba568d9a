"""The isolation suite in small: what one tenant does through the API costs another no more than is documented.

``nox -s isolation`` runs it in its full size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fairque import TaskQueue
from fairque.redis.partitions import partition_of
from tests.isolation.suite.attack import ATTACKER, ATTACKS
from tests.isolation.suite.attacks import load
from tests.isolation.suite.bounds import Rivals
from tests.isolation.suite.log import Service, services_before
from tests.isolation.suite.quiet import QUIET
from tests.isolation.suite.raid import SMALL_RUN, Cast, Size
from tests.isolation.suite.tasks import nap
from tests.support.plugin import partitions_of
from tests.support.servers import Server

load()
pytestmark = [pytest.mark.leaves_keys(), pytest.mark.timeout(300)]  # processes die, and wait for leases


@pytest.fixture(scope="session")
def cast(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    with Cast(server.url, tmp_path_factory.mktemp("isolation"), SMALL_RUN.workers) as cast:
        yield cast


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Size:
    return replace(SMALL_RUN, partitions=partitions_of(request))


def marks(slug: str) -> list[pytest.MarkDecorator]:
    breaks = ATTACKS[slug].run.__module__.endswith(".damage")
    return [pytest.mark.damages] if breaks else []


SAMPLE = [pytest.param(slug, marks=marks(slug), id=slug) for slug, attack in ATTACKS.items() if attack.is_sample]


@pytest.mark.parametrize("slug", SAMPLE)
async def test_a_quiet_user_waits_no_longer_than_is_documented_for(
    cast: Cast, size: Size, queue_name: str, slug: str
) -> None:
    measured = await cast.play(ATTACKS[slug], queue_name, size)
    assert measured.faults == []
    assert measured.under_attack, "nothing was measured"


KINDS = """
one-huge-backlog many-user-ids ever-new-user-ids a-bomb-of-many-ids tiny-costs retries-without-delay purging
cancelling-masses reading-without-end a-weight-that-changes workers-that-are-killed
"""
"""Some of each."""
BESIDE_KINDS = "one-huge-backlog tiny-costs a-bomb-of-due-tasks a-weight-that-changes corrupt-bodies"
"""Of one user: these wait for no more than in a queue without partitions."""
BESIDE, ELSEWHERE = 4, 5
"""Of so many partitions, attacker and quiet user live in the same one, or in two."""


def test_the_attacker_lives_beside_the_quiet_user_and_elsewhere() -> None:
    assert partition_of(ATTACKER, BESIDE) == partition_of(QUIET, BESIDE)
    assert partition_of(ATTACKER, ELSEWHERE) != partition_of(QUIET, ELSEWHERE)


@pytest.mark.parametrize(
    ("slug", "partitions"),
    [
        *(pytest.param(slug, BESIDE, marks=marks(slug)) for slug in BESIDE_KINDS.split()),
        *((slug, ELSEWHERE) for slug in KINDS.split()),
    ],
)
async def test_a_quiet_user_of_a_queue_with_partitions_waits_no_longer_than_is_documented_for(
    cast: Cast, queue_name: str, slug: str, partitions: int
) -> None:
    """``nox -s isolation -- --partitions 5`` plays all that can be done in such a queue."""
    size = replace(SMALL_RUN, partitions=partitions, beside=partitions == BESIDE)
    measured = await cast.play(ATTACKS[slug], queue_name, size)
    assert measured.faults == []
    assert measured.under_attack, "nothing was measured"


# Whether it would notice


async def test_a_wait_that_is_too_long_is_noticed(cast: Cast, size: Size, queue: TaskQueue, queue_name: str) -> None:
    await queue.set_policy(QUIET, weight=0.01)
    measured = await cast.play(ATTACKS["one-huge-backlog"], queue_name, size)
    told = f"services of others before task 1 of a call, {measured.bound()} at most"
    assert any(told in fault for fault in measured.faults)


async def test_a_task_that_is_gone_is_noticed(cast: Cast, size: Size, queue: TaskQueue, queue_name: str) -> None:
    await queue.enqueue(nap(), user_id=ATTACKER)
    measured = await cast.play(ATTACKS["one-huge-backlog"], queue_name, size)
    assert any("tasks were put in, and" in fault for fault in measured.faults), "one more than it knows of"


def service(user_id: str, claimed_ms: int) -> Service:
    return Service(user_id, f"{user_id} {claimed_ms}", 0, claimed_ms, 0.0)


def test_services_are_counted_in_the_order_of_the_claims_over_all_workers() -> None:
    of = service(QUIET, 20)
    own = [service(ATTACKER, 10), service(ATTACKER, 11), service(ATTACKER, 20), of, service(ATTACKER, 20)]
    other = [service(ATTACKER, 12), service(QUIET, 13), service(ATTACKER, 20), service(ATTACKER, 21)]
    assert services_before(of, 10, [own, other]) == 3, "not that of the moment, nor what may have come after it"


def test_the_bound_follows_from_the_rule() -> None:
    assert Rivals().services() == 2
    assert Rivals(users=10).services(kth=3) == 40
    assert Rivals(users=10, fresh=True).services(kth=3) == 70
    assert Rivals(weight=10).services() == 11
    assert Rivals(cost=0.01).services() == 101
    assert Rivals(cost=1000).services() == 2, "a costly task is one service all the same"
