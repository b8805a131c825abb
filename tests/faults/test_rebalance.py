"""A node is added to full ones: it gets its share by itself, and nobody notices."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster, Node
from tests.support.commands import MIB, sha256_of, write_pattern
from tests.support.copies_watch import CopiesWatch
from tests.support.processes import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount small disks")
DISK_BYTES = 96 * MIB
FILES = 14
FILE_BYTES = 5 * MIB


@pytest.fixture
def full() -> Iterator[Cluster]:
    with Cluster(nodes=0, CHUNK_SIZE=str(MIB), REBALANCE_INTERVAL_SECONDS="1") as cluster:
        for index in (1, 2, 3, 4):
            cluster.limit_disk(index, DISK_BYTES)
        for _ in range(3):
            cluster.add_node()
        yield cluster


def held_bytes(node: Node) -> int:
    return sum(path.stat().st_size for path in (node.data_dir / "extents").glob("*/*"))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_node_that_is_added_to_full_ones_gets_its_share(full: Cluster) -> None:
    """Until no node is fuller than the mean by ten points; each extent has three copies all the while and after it."""
    mount = full.mount()
    digests = {
        f"f{number}": write_pattern(mount.path / f"f{number}", FILE_BYTES, seed=number) for number in range(FILES)
    }
    for name in digests:
        full.all_replicas_of(f"/{name}")
    mean = 3 * FILES * FILE_BYTES / 4

    def is_even() -> bool:
        return all(abs(held_bytes(node) - mean) < 0.11 * DISK_BYTES for node in full.nodes if node is not added)

    def copies() -> list[int]:
        held = [node.extents() for node in full.nodes]
        return [sum(extent in some for some in held) for extent in set[str]().union(*held)]

    with CopiesWatch(full, asked=3):
        added = full.add_node()
        wait_for(is_even, "the others have given", 120)
        assert held_bytes(added) > 0.5 * mean
        wait_for(lambda: copies() == [3] * FILES * (FILE_BYTES // MIB), "surplus copies are gone, and no other", 60)
    mount.remount()
    for name, digest in digests.items():
        assert sha256_of(mount.path / name) == digest
    full.wait_clean()
