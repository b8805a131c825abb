"""Replicas that are damaged on the disk: right bytes or EIO, never wrong bytes; damage is counted, and repaired."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator

import pytest

from tests.support.cluster import Cluster, Mount, Replica
from tests.support.commands import MIB, opened, refused
from tests.support.fault_table import stall_noted
from tests.support.processes import wait_for

SIZE = 3 * MIB + 100


def flip(cluster: Cluster, replica: Replica) -> None:
    cluster.corrupt_chunk_on_disk(replica, at=70_000)


def flip_in_footer(cluster: Cluster, replica: Replica) -> None:
    cluster.corrupt_chunk_on_disk(replica, at=replica.length + 2)


def truncate(cluster: Cluster, replica: Replica) -> None:
    cluster.truncate_chunk_on_disk(replica)


def cut_one_byte(cluster: Cluster, replica: Replica) -> None:
    cluster.truncate_chunk_on_disk(replica, replica.path.stat().st_size - 1)


def delete(cluster: Cluster, replica: Replica) -> None:
    cluster.delete_chunk_on_disk(replica)


Hurt = Callable[[Cluster, Replica], None]
HURTS = [flip, flip_in_footer, truncate, cut_one_byte, delete]


@pytest.fixture(scope="module")
def beside(mount: Mount) -> bytes:
    """Of the file /beside, which nobody hurts."""
    data = os.urandom(SIZE)
    (mount.path / "beside").write_bytes(data)
    return data


@pytest.fixture
def content(mounted: Cluster, mount: Mount, request: pytest.FixtureRequest) -> Iterator[bytes]:
    """Of the file /victim, which no cache of the mount holds; gone after the test."""
    data = os.urandom(SIZE)
    (mount.path / "victim").write_bytes(data)
    mount.remount()
    mounted.all_replicas_of("/victim")
    yield data
    (mount.path / "victim").unlink()


@pytest.mark.parametrize("hurt", HURTS, ids=lambda hurt: hurt.__name__)
@pytest.mark.fault("S9", "S10", "S12")
def test_a_damaged_replica_is_not_believed_and_is_repaired(
    mounted: Cluster, mount: Mount, content: bytes, hurt: Hurt
) -> None:
    # A new mount asks the first of the nodes first.
    met = mounted.damage_met()
    replica = mounted.replicas_of("/victim")[0]
    hurt(mounted, replica)
    with stall_noted():
        found = (mount.path / "victim").read_bytes()
    assert found == content
    wait_for(lambda: mounted.damage_met() > met, "the damage is counted")
    mounted.wait_whole("/victim")


@pytest.mark.parametrize("hurt", HURTS, ids=lambda hurt: hurt.__name__)
def test_one_good_replica_of_three_is_enough(mounted: Cluster, mount: Mount, content: bytes, hurt: Hurt) -> None:
    replicas = mounted.replicas_of("/victim")
    assert len(replicas) == 3
    for replica in replicas[:2]:
        hurt(mounted, replica)
    assert (mount.path / "victim").read_bytes() == content


@pytest.mark.parametrize("hurt", HURTS, ids=lambda hurt: hurt.__name__)
@pytest.mark.fault("S11")
def test_with_all_replicas_damaged_reading_is_an_error_and_never_wrong(
    mounted: Cluster, mount: Mount, beside: bytes, content: bytes, hurt: Hurt
) -> None:
    """The blocks that are still whole somewhere may be read; those that are not give EIO. Other files are read as
    before, and `dcs status` tells."""
    replicas = mounted.replicas_of("/victim")
    for replica in replicas:
        hurt(mounted, replica)
    with opened(mount.path / "victim", os.O_RDONLY) as descriptor:
        with stall_noted(), refused(errno.EIO):
            at = 0
            while piece := os.pread(descriptor, 65536, at):
                assert piece == content[at : at + len(piece)]
                at += len(piece)
        with refused(errno.EIO):
            os.pread(descriptor, 65536, SIZE // 2 if hurt is truncate else 65536)
    everywhere = {replica.node for replica in replicas}
    wait_for(lambda: mounted.damaged_nodes(replicas[0].extent) == everywhere, "the damage is counted")
    wait_for(lambda: mounted.status()["missing"] > 0, "it is known that nothing good is left")
    assert (mount.path / "beside").read_bytes() == beside
    assert re.search(rb"replicas .*\d+ missing, \d+ damaged\n", mounted.dcs("status").stdout)
    mounted.dcs("fsck", "--data", expect=1)
