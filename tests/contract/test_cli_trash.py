"""dcs trash and dcs restore."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.processes import wait_for


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Removed files are kept for a day."""
    with Cluster(2, REPLICATION_FACTOR="2", TRASH_DAYS="1", TRASH_FREE_SHARE_MIN="0") as made:
        yield made


def test_a_removed_file_is_shown_and_restored(cluster: Cluster) -> None:
    """Its bytes are kept on the nodes, and shown apart."""
    cluster.write("/f", b"precious" * 100)
    cluster.dcs("delete", "/f")
    cluster.dcs("read", "/f", "-", expect=1)
    time.sleep(4)  # Longer than all graces: that something does not happen is no fact to wait for.
    assert cluster.status()["trash_bytes"] == 800
    assert b"/f" in cluster.dcs("trash").stdout
    assert b"1 files" in cluster.dcs("status").stdout
    assert cluster.dcs("restore", "/f").stdout == b"/f\n"
    assert cluster.read("/f") == b"precious" * 100
    cluster.dcs("restore", "/f", expect=1)
    assert cluster.status()["trash"] == 0
    cluster.dcs("fsck")


def test_of_two_the_last_removed_comes_back_and_a_taken_name_stays(cluster: Cluster) -> None:
    for content in (b"first", b"second"):
        cluster.write("/twice", content)
        cluster.dcs("delete", "/twice")
        time.sleep(1.1)  # The trash tells seconds.
    cluster.write("/twice", b"third")
    assert b"File exists" in cluster.dcs("restore", "/twice", expect=1).stderr
    cluster.dcs("restore", "/twice", "--to", "/twice.old")
    assert cluster.read("/twice.old") == b"second"
    assert cluster.read("/twice") == b"third"


def test_a_removed_tree_comes_back(cluster: Cluster) -> None:
    """With the directories that are gone, too; a mount removes it."""
    mount = cluster.mount()
    top = mount.path / "top"
    (top / "sub").mkdir(parents=True)
    (top / "a").write_bytes(b"A")
    (top / "sub" / "b").write_bytes(b"B" * 5000)
    mount.remount()  # A file that is open as it is removed is not kept.
    for path in (top / "sub" / "b", top / "a"):
        path.unlink()
    (top / "sub").rmdir()
    top.rmdir()
    assert list(mount.path.glob("top*")) == []
    done = cluster.dcs("restore", "/top").stdout.split()
    assert done == [b"/top/a", b"/top/sub/b"]
    assert cluster.read("/top/sub/b") == b"B" * 5000
    mount.unmount()


def test_the_trash_is_emptied_for_good(cluster: Cluster) -> None:
    cluster.write("/gone", b"x" * 1000)
    replicas = cluster.replicas_of("/gone")
    cluster.dcs("delete", "/gone")
    cluster.dcs("trash", "--empty")
    wait_for(lambda: not any(replica.path.exists() for replica in replicas), "its extent is deleted")
    cluster.dcs("restore", "/gone", expect=1)
    assert cluster.status()["trash_bytes"] == 0
