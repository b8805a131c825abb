"""A node ends without a word and has lost what it had not synced: found without a reader, and healed.

What a loss of power does to replicas that a node stored last, their names gone, is done by hand while it is down.
`test_power_loss.py` cuts the power itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from servers.protocol.limits import MIB
from tests.support.cluster import Cluster, Mount, Node
from tests.support.processes import wait_for

CHUNK_BYTES = MIB
HEALED_SECONDS = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """At the end every node has what the metadata says."""
    with Cluster(SESSION_LEASE_SECONDS="25", CHUNK_SIZE=str(CHUNK_BYTES)) as cluster:
        yield cluster
        cluster.dcs("fsck")


@pytest.fixture(scope="module")
def mount(cluster: Cluster) -> Mount:
    return cluster.mount()


def told(cluster: Cluster, node: Node) -> int:
    """How many replicas the node has, by its last word."""
    row = next(row for row in cluster.rest("GET", "/v1/nodes").json()["nodes"] if row["number"] == node.number)
    return sum(disk["replicas"] for disk in row["disks"])


def start_without(node: Node, kept: set[str]) -> set[str]:
    """The node, which was killed, starts with these extents only. Returns what it lost."""
    lost = node.extents() - kept
    for extent in lost:
        path = node.path_of(extent)
        assert path is not None
        path.unlink()
    node.start()
    return lost


def wait_healed(cluster: Cluster, node: Node, lost: set[str]) -> None:
    """The node has again what it lost, without anybody's reading it."""

    def is_healed() -> bool:
        status = cluster.status()
        is_known = status["damaged"] == status["under_replicated"] == status["missing"] == 0
        return lost <= node.extents() and is_known

    try:
        wait_for(is_healed, f"{node.name} has {sorted(lost)} again", HEALED_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}: {cluster.status()}\n{cluster.log_tails()}") from None


@pytest.mark.fault("S8")
def test_what_a_node_took_and_lost_before_it_could_tell_is_missed(cluster: Cluster, mount: Mount) -> None:
    """It comes back with what it held when it was heard last, though it has taken and lost more since."""
    node = cluster.nodes[0]
    kept = node.extents()
    wait_for(lambda: told(cluster, node) == len(kept), "the node has told of all it has")
    (mount.path / "told").write_bytes(os.urandom(3 * CHUNK_BYTES))
    node.kill()
    lost = start_without(node, kept)
    assert lost
    wait_healed(cluster, node, lost)


@pytest.mark.fault("S8")
@pytest.mark.parametrize("sync", [True, False], ids=["fsync", "close"])
def test_what_a_node_lost_before_it_was_committed_is_missed(cluster: Cluster, mount: Mount, sync: bool) -> None:
    """Uploaded while the program writes on, lost by one node, and committed when that node is long back."""
    mount.remount()  # Of the node that was killed before, a new mount thinks nothing bad.
    node = cluster.nodes[1]
    kept = {each: each.extents() for each in cluster.nodes}
    with (mount.path / f"open-{sync}").open("wb", buffering=0) as file:
        file.write(os.urandom(2 * CHUNK_BYTES + 1))  # The last byte is not uploaded yet.
        wait_for(lambda: all(len(n.extents() - kept[n]) >= 2 for n in cluster.nodes), "two chunks are on every node")
        node.kill()
        asked = f"node {node.number} was asked for each of its extents".encode()
        before = cluster.naming.log.read_bytes().count(asked)
        lost = start_without(node, kept[node])
        wait_for(lambda: cluster.naming.log.read_bytes().count(asked) > before, "the naming server has asked the node")
        if sync:
            os.fsync(file.fileno())
    wait_healed(cluster, node, lost)
