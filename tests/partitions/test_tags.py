"""Where partitions lie among the slots of a cluster."""

from __future__ import annotations

import pytest
from redis.crc import key_slot

from fairque import ConfigError, TaskQueue
from fairque.redis.keys import Keys, queue_of
from fairque.redis.partitions import SLOTS, queue_in_tag, tags_of


@pytest.mark.parametrize("count", [2, 3, 4, 16, 64, 256])
def test_the_slots_of_partitions_lie_evenly(count: int) -> None:
    slots = [key_slot(Keys("default", (at, count)).state.encode()) for at in range(count)]
    apart = SLOTS / count
    assert max(abs(slot - (at + 0.5) * apart) for at, slot in enumerate(slots)) < apart / 2
    assert slots == sorted(slots)


@pytest.mark.parametrize("name", ["default", "orders", "mail queue", "ü"])
@pytest.mark.parametrize("nodes", [3, 8])
def test_nodes_that_share_the_slots_have_as_many_partitions_each(name: str, nodes: int) -> None:
    """Within 1 of the mean; by plain names, of 16 on 3 nodes one had 8."""
    has = [0] * nodes
    for at in range(64):
        has[key_slot(Keys(name, (at, 64)).state.encode()) * nodes // SLOTS] += 1
    assert all(abs(count - 64 / nodes) <= 1 for count in has)


def test_tags_are_the_same_for_ever() -> None:
    assert tags_of("default", 4) == ("default/0~5", "default/1~29", "default/2~9", "default/3~32")


def test_the_queue_of_a_key_is_known_of_any_partition() -> None:
    assert queue_of(Keys("a/b", (3, 4)).state.encode()) == "a/b"
    assert queue_of(Keys("a/b").state.encode()) == "a/b"
    assert queue_in_tag("a/3~") == "a/3~"


@pytest.mark.parametrize("name", ["a/3~17", "a/b/0~0"])
def test_no_queue_has_the_name_of_a_partition(name: str) -> None:
    with pytest.raises(ConfigError, match="must not end like that of a partition"):
        TaskQueue(name=name)


@pytest.mark.parametrize("count", [0, 1025, 1.5, "4"])
def test_a_number_of_partitions_that_cannot_be_is_refused(count: object) -> None:
    with pytest.raises(ValueError, match="partitions must be"):
        TaskQueue(partitions=count)  # type: ignore[arg-type]
