"""Whose word counts when several tell who the primary of Redis is."""

from __future__ import annotations

import pytest

from servers.naming.redis_primary import Primary, Sighting, judge, read_cluster, read_sentinel, slot_of
from servers.naming.redis_url import Endpoint
from servers.protocol.errors import TryAgain

OLD, NEW = Endpoint("old", 1), Endpoint("new", 1)


@pytest.mark.parametrize(
    ("sightings", "primary"),
    [
        ([Sighting(OLD, 1, 3)] * 3, Primary(OLD, is_by_majority=True)),
        ([Sighting(OLD, 1, 3)] * 2, Primary(OLD, is_by_majority=True)),
        ([Sighting(OLD, 1, 3)], Primary(OLD, is_by_majority=False)),
        ([Sighting(OLD, 1, 3), Sighting(NEW, 2, 3)], Primary(NEW, is_by_majority=False)),
        ([Sighting(OLD, 1, 3), Sighting(NEW, 2, 3), Sighting(NEW, 2, 3)], Primary(NEW, is_by_majority=True)),
        ([Sighting(OLD, 1, 1)], Primary(OLD, is_by_majority=True)),
    ],
)
def test_the_latest_decision_counts_and_a_majority_is_told_apart(sightings: list[Sighting], primary: Primary) -> None:
    assert judge(sightings) == primary


def test_a_sentinel_tells_the_primary_its_epoch_and_its_peers() -> None:
    fields = {"name": "dcs", "ip": "10.0.0.7", "port": "6379", "config-epoch": "4", "num-other-sentinels": "2"}
    assert read_sentinel(fields) == Sighting(Endpoint("10.0.0.7", 6379), 4, 3)


NODES = """\
a1 10.0.0.1:7001@17001 master - 0 1 1 connected 0-5460
b2 10.0.0.2:7002@17002,host2 myself,master - 0 0 7 connected 5461 5463-10922 [93-<-a1]
c3 10.0.0.3:7003@17003 master,fail - 1 2 3 disconnected 10923-16383 [93->-b2]
d4 :7004@17004 slave a1 0 1 1 connected
e5 :7005@17005 master - 0 1 9 connected 5462
"""


@pytest.mark.parametrize(
    ("slot", "sighting"),
    [
        (0, Sighting(Endpoint("10.0.0.1", 7001), 1, 4)),
        (93, Sighting(Endpoint("10.0.0.1", 7001), 1, 4)),
        (5461, Sighting(Endpoint("10.0.0.2", 7002), 7, 4)),
        (5462, Sighting(Endpoint("asked", 7005), 9, 4)),
        (16383, Sighting(Endpoint("10.0.0.3", 7003), 3, 4)),
    ],
)
def test_a_cluster_node_tells_who_has_a_slot(slot: int, sighting: Sighting) -> None:
    """A slot on its way is its old owner's; a node without an address of its own is where it was asked."""
    assert read_cluster(NODES, slot, "asked") == sighting


def test_a_slot_that_nobody_has_is_an_error() -> None:
    with pytest.raises(TryAgain, match="slot 7"):
        read_cluster(NODES.splitlines()[1], 7, "asked")


def test_the_slot_of_a_volume_is_that_of_its_name() -> None:
    """As `CLUSTER KEYSLOT` has it: CRC16 of what stands in the braces."""
    assert slot_of(b"dcs:{main}") == 12501
