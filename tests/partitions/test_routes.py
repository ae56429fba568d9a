"""Where calls go in a queue with partitions, and how the answers of several become one."""

from __future__ import annotations

import msgspec
import pytest

from fairque.metrics import metrics_in
from fairque.redis import arguments
from fairque.redis.arguments import Arguments
from fairque.redis.commands import scripts_of_core
from fairque.redis.merges.measures import merged_metrics, merged_usage
from fairque.redis.merges.schedules import merged_page
from fairque.redis.partitions import partition_of
from fairque.redis.routes import ROUTES, is_routed
from fairque.testing import arguments as arguments_of_tests

HOUR_MS = 3_600_000


def kinds_of(module: object) -> dict[str, type[Arguments]]:
    kinds = (each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Arguments))
    return {kind.script: kind for kind in kinds if kind is not Arguments}


KINDS = kinds_of(arguments)


@pytest.mark.parametrize("script", scripts_of_core())
def test_each_script_says_where_it_goes(script: str) -> None:
    assert is_routed(KINDS[script]), f"say in routes.py to which partitions {script} goes, and how answers are merged"


@pytest.mark.parametrize("script", sorted(kinds_of(arguments_of_tests)))
def test_each_script_of_the_helpers_for_tests_says_where_it_goes(script: str) -> None:
    assert is_routed(kinds_of(arguments_of_tests)[script])


def test_no_route_is_left_over() -> None:
    assert ROUTES.keys() <= {*KINDS, *kinds_of(arguments_of_tests)}


def test_a_user_lives_in_the_same_partition_for_ever() -> None:
    assert [partition_of(user, 64) for user in ("anna", "bert", "%2Fcarl", "0")] == [12, 18, 17, 53]


def test_users_are_spread_evenly() -> None:
    counts = [0] * 16
    for n in range(16_000):
        counts[partition_of(f"user-{n}", 16)] += 1
    assert max(counts) < 1150
    assert min(counts) > 850


# Measures


def blob(at: float, age: float, hour: tuple[float, float, float] = (0, 0, 0), **waits: int) -> bytes:
    flat = [part for bucket, count in waits.items() for part in (int(bucket[1:]), count)]
    return msgspec.msgpack.encode([1, 2, 3, 4, 5.0, 6e6, 10.0, 2e6, 8.0, at, age, *hour, *flat])


def test_metrics_of_one_partition_are_those_of_the_queue() -> None:
    of_one = blob(1_000_000, 5000, b2=3)
    assert metrics_in(merged_metrics([b"", of_one]), 1_000_500) == metrics_in(of_one, 1_000_500)
    assert merged_metrics([b"", b""]) == b""


def test_metrics_of_partitions_add_up_as_of_one_moment() -> None:
    now = 10 * HOUR_MS + 90_000
    parts = [blob(now - 60_000, 1000, b2=3, b5=1), blob(now, 80_000, b2=1)]
    both, each = metrics_in(merged_metrics(parts), now), [metrics_in(part, now) for part in parts]
    assert (both.finished, both.failed, both.cost, both.busy_seconds) == (2, 4, 10.0, 12.0)
    assert both.recent_cost == pytest.approx(sum(part.recent_cost for part in each))
    assert both.recent_services == pytest.approx(sum(part.recent_services for part in each))
    assert both.waits.counts[2] == 4
    assert both.waits.counts[5] == 1


def test_the_hour_that_goes_on_counts_with_what_was_used_in_it_elsewhere() -> None:
    day, hour = 20_000, 20_000 * 24 + 7
    late, early = blob(hour * HOUR_MS + 5, 0, (4, 4.0, 4e6)), blob(hour * HOUR_MS - 5, 0, (2, 2.0, 2e6))
    written = [b"6", msgspec.msgpack.encode([1, 1.0, 1e6])]
    merged = merged_usage([day], [[1, late, []], [2, early, written]])
    assert merged[0] == 2
    assert metrics_in(merged[1], hour * HOUR_MS + 5).hour_tasks == 4
    told = dict(zip(merged[2][::2], merged[2][1::2], strict=True))
    assert {name: msgspec.msgpack.decode(row) for name, row in told.items()} == {b"6": [3, 3, 3e6]}


# Pages


def row(user: str, name: str) -> list[object]:
    return [name.encode(), b"", [b"user", user.encode()]]


def test_a_page_of_schedules_ends_where_that_of_a_partition_does() -> None:
    asked = arguments.Schedules([], "", "", 3)
    first = [1, b"c:3", row("a", "1"), row("b", "2"), row("c", "3")]
    second = [2, b"", row("b", "1"), row("d", "1")]
    page = merged_page(asked, [first, second])
    assert page == [2, b"b:2", row("a", "1"), row("b", "1"), row("b", "2")]
    last = merged_page(arguments.Schedules([], "", "b:2", 3), [[1, b"", row("c", "3")], [1, b"", row("d", "1")]])
    assert last == [1, b"", row("c", "3"), row("d", "1")]
