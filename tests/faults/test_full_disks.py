"""Disks fill up: ENOSPC in time, nothing damaged, and deleting helps."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.cluster import Cluster, Mount, Node
from tests.support.commands import MIB, opened, pattern, sha256_of, write_pattern
from tests.support.fault_table import stall_noted
from tests.support.processes import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount small disks")
DISK_BYTES = 96 * MIB
FULL_BYTES = 3 * MIB
ENOSPC_SECONDS_MAX = 5.0


@pytest.fixture(scope="module")
def small() -> Iterator[Cluster]:
    """Three nodes with a disk of 96 MiB each."""
    with Cluster(nodes=0, CHUNK_SIZE=str(MIB), SESSION_LEASE_SECONDS="25") as cluster:
        for index in (1, 2, 3):
            cluster.limit_disk(index, DISK_BYTES)
            cluster.add_node()
        yield cluster
        for mount in cluster.mounts:
            mount.unmount()
        cluster.wait_clean()


@pytest.fixture(scope="module")
def mount(small: Cluster) -> Mount:
    return small.mount()


def free_bytes(node: Node) -> int:
    found = os.statvfs(node.data_dir)
    return found.f_bavail * found.f_frsize


def wait_full(cluster: Cluster) -> float:
    """When on every disk there was nothing left but the reserve, of about 1 MiB, and room for two chunks at most."""
    wait_for(lambda: all(free_bytes(node) < FULL_BYTES for node in cluster.nodes), "the disks are full", 100)
    return time.monotonic()


def write_until_full(mount: Mount, name: str) -> int | None:
    """Writes twice what fits, or until it fails; the errno."""
    descriptor = os.open(mount.path / name, os.O_WRONLY | os.O_CREAT)
    try:
        try:
            for piece in pattern(2 * DISK_BYTES):
                with stall_noted():
                    os.write(descriptor, piece)
            with stall_noted():
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno
    return None


@pytest.mark.timeout(200)
@pytest.mark.fault("S14")
def test_full_disks_are_told_and_deleting_makes_room_again(small: Cluster, mount: Mount) -> None:
    """ENOSPC at the latest at fsync, and soon; what was there before is whole; df tells the truth all the while; rm
    works and writing works again."""

    def room() -> int:
        found = os.statvfs(mount.path)
        return found.f_bavail * found.f_frsize

    def is_true() -> bool:
        return abs(room() - sum(map(free_bytes, small.nodes)) / 3) < 0.05 * DISK_BYTES

    wait_for(is_true, "df tells of empty disks", 10)
    digest = write_pattern(mount.path / "before", 20 * MIB, sync=True)
    wait_for(is_true, "df tells of what was written", 10)
    with ThreadPoolExecutor(1) as beside:
        full_at = beside.submit(wait_full, small)
        assert write_until_full(mount, "too-much") == errno.ENOSPC
        assert time.monotonic() - full_at.result() < ENOSPC_SECONDS_MAX
    with opened(mount.path / "one-more", os.O_WRONLY | os.O_CREAT) as descriptor:
        os.write(descriptor, b"small")
    (mount.path / "one-more").unlink()
    wait_for(lambda: is_true() and room() < 0.05 * DISK_BYTES, "df shows that the disks are full", 10)
    (mount.path / "too-much").unlink()
    wait_for(lambda: room() > 40 * MIB, "the deleted file's space is free again", 60)
    again = write_pattern(mount.path / "again", 30 * MIB, sync=True)
    mount.remount()
    assert sha256_of(mount.path / "before") == digest
    assert sha256_of(mount.path / "again") == again
    (mount.path / "again").unlink()
    (mount.path / "before").unlink()


@pytest.mark.timeout(200)
@pytest.mark.fault("S14")
def test_one_full_disk_of_three_goes_unnoticed(small: Cluster, mount: Mount) -> None:
    """Two nodes have room: they take what is written."""
    filler = small.nodes[0].data_dir / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(MIB))
                file.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC
            os.close(os.dup(file.fileno()))
            file.raw.close()
    digest = write_pattern(mount.path / "with-one-full", 20 * MIB, sync=True)
    mount.remount()
    assert sha256_of(mount.path / "with-one-full") == digest
    filler.unlink()
    (mount.path / "with-one-full").unlink()
