"""What a cluster of the tests leaves behind, however it ends: nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cluster import Cluster, is_mounted


class OfTheTestItselfError(Exception):
    """A test that fails."""


@pytest.mark.parametrize("ends", ["well", "by failing"])
def test_no_process_mount_or_directory_is_left_of_a_cluster(ends: str) -> None:
    """And when it ended well, every extent on its nodes is one that a file shows."""
    pids: list[int] = []
    where = Path("/nowhere")
    try:
        with Cluster() as cluster:
            mount = cluster.mount()
            where = mount.path
            (where / "kept").write_bytes(b"k" * 100_000)
            (where / "gone").write_bytes(b"g" * 100_000)
            (where / "gone").unlink()
            pids = [p.pid for p in (*cluster.nodes, cluster.naming, cluster.redis, mount.process)]
            if ends == "by failing":
                raise OfTheTestItselfError
            mount.unmount()
            cluster.wait_clean()
            assert [len(node.extents()) for node in cluster.nodes] == [1, 1, 1]
    except OfTheTestItselfError:
        assert ends == "by failing"
    assert len(pids) == 6
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not is_mounted(where)
    assert not where.parent.exists()
