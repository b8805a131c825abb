"""One disk of a node fails: it is taken out, what it had is healed elsewhere, and the node's other disk goes on."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import MakeCluster
from tests.support.cluster import Cluster, Node
from tests.support.commands import opened
from tests.support.fault_table import note_stall
from tests.support.processes import wait_for

FILES = 40
LATER_FILES = 24
"""So few that the node syncs those on each disk one by one, and not with the whole file system."""
SIZE = 20_000


def extents_on(disk: Path) -> set[str]:
    return {path.name for path in (disk / "extents").glob("*/*")}


def disk_states(cluster: Cluster, node: Node) -> list[str]:
    row = next(row for row in cluster.status()["nodes"] if row["id"] == node.number)
    return [disk["state"] for disk in row["disks"]]


def write_synced(path: Path, data: bytes) -> float:
    """How long it took."""
    began = time.monotonic()
    with opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
        os.write(descriptor, data)
        os.fsync(descriptor)
    return time.monotonic() - began


@pytest.mark.long
@pytest.mark.timeout(200)
@pytest.mark.fault("S13")
def test_what_lay_on_a_disk_that_fails_is_healed_and_nobody_notices(make_cluster: MakeCluster) -> None:
    """Its fsyncs fail twice after files were written: no error, also to who asks for a sync, and soon there are three
    good copies of everything again."""
    cluster = make_cluster(0)
    failing, other = (cluster.directory / name for name in ("failing", "other"))
    hurt, *others = cluster.add_nodes({"DATA_DIR": f"{failing},{other}"}, {}, {}, {})
    mount = cluster.mount()
    contents = {f"f{number}": os.urandom(SIZE) for number in range(FILES + LATER_FILES + 1)}
    first, later, last = (names := list(contents))[:FILES], names[FILES:-1], names[-1]
    for name in first:
        (mount.path / name).write_bytes(contents[name])
    mount.remount()
    lost = extents_on(failing)
    assert lost
    buckets = [word for number in range(256) for word in ("-P", str(failing / "extents" / f"{number:02x}"))]
    hurt.restart_with(*buckets, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1..2")
    cluster.wait_alive(4)
    mount.remount()
    for name in later:
        (mount.path / name).write_bytes(contents[name])
    note_stall(write_synced(mount.path / last, contents[last]))
    wait_for(lambda: disk_states(cluster, hurt) == ["failed", "good"], "the disk is taken out", 60)

    def copies() -> Counter[str]:
        disks = [other, *(node.data_dir for node in others)]
        return Counter(extent for disk in disks for extent in extents_on(disk))

    wait_for(lambda: all(copies()[extent] >= 3 for extent in lost), "what it had has three other copies", 60)
    cluster.dcs("fsck", "--data", "--wait", "60")
    status = cluster.status()
    assert status["under_replicated"] == status["missing"] == status["damaged"] == 0
    wait_for(lambda: set(copies().values()) == {3}, "no copy is one too many", 60)
    mount.remount()
    before = len(extents_on(other))
    for number in range(LATER_FILES):
        (mount.path / f"after{number}").write_bytes(contents[last])
    assert len(extents_on(other)) > before, "the other disk of the node goes on"
    for name, content in contents.items():
        assert (mount.path / name).read_bytes() == content
