"""Programs that write, keep the file open and ask for nothing, and creates that last: what is there when machines go.

No program may be started while one of them has a file open: its copy of the descriptor is closed, and so flushed.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import MakeCluster
from tests.support.cluster import Cluster, Node
from tests.support.commands import opened, refused
from tests.support.processes import wait_for

CHUNK = 64 * 1024
MIB = 1024 * 1024


def are_both(directory: Path, content: bytes) -> bool:
    try:
        return {(directory / name).read_bytes() for name in ("written", "appended")} == {content}
    except FileNotFoundError:
        return False


def drained(cluster: Cluster) -> list[int]:
    return [row["number"] for row in cluster.rest("GET", "/v1/nodes").json()["nodes"] if row["drained"]]


@pytest.mark.fault("C1")
def test_what_was_written_to_a_file_that_stays_open_is_seen_elsewhere_and_survives_the_mount(
    make_cluster: MakeCluster,
) -> None:
    """A log that a program writes line by line, without fsync, by its offset or by O_APPEND."""
    cluster = make_cluster()
    mount, other = cluster.mount("mnt", WRITE_BACK_SECONDS="1"), cluster.mount("other")
    with (
        opened(mount.path / "written", os.O_WRONLY | os.O_CREAT) as written,
        opened(mount.path / "appended", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as appended,
    ):
        lines = b""
        for number in range(3):
            line = b"line %d\n" % number
            lines += line
            os.write(written, line)
            os.write(appended, line)
            seen = partial(are_both, other.path, lines)
            wait_for(seen, "it is seen on the other mount")
        mount.kill()
        assert are_both(other.path, lines)
        for descriptor in (written, appended):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # Its close would fail.


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.fault("S4")
def test_what_could_not_be_stored_unasked_is_told_once_and_stored_when_the_nodes_are_back(cluster: Cluster) -> None:
    mount = cluster.mount("mnt", WRITE_BACK_SECONDS="1")
    with opened(mount.path / "f", os.O_RDWR | os.O_CREAT) as one, opened(mount.path / "f", os.O_WRONLY) as other:
        for node in cluster.nodes[:2]:
            node.pause()
        os.write(one, b"kept")
        wait_for(lambda: "in the background" in mount.process.log_tail(), "it could not be stored", 60)
        assert os.pread(one, 4, 0) == b"kept"
        for node in cluster.nodes[:2]:
            node.resume()
        cluster.wait_alive(3)
        for descriptor in (one, other):
            with refused(errno.EIO):
                os.fsync(descriptor)
            os.fsync(descriptor)
        assert cluster.read("/f") == b"kept"


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.fault("S19")
def test_what_was_stored_on_drained_nodes_and_not_committed_is_not_lost_with_them(make_cluster: MakeCluster) -> None:
    """A silent writer has full chunks on the nodes that only its mount knows of. All that have one of them are drained,
    called empty, and wiped; then the writer closes its file."""
    cluster = make_cluster(6, CHUNK_SIZE=str(CHUNK), DRAIN_GRACE_SECONDS="6")
    mount = cluster.mount("mnt", WRITE_BACK_SECONDS="600")
    content = os.urandom(CHUNK) + b"and a piece"
    holders: list[Node] = []
    with opened(mount.path / "f", os.O_WRONLY | os.O_CREAT) as descriptor:
        os.write(descriptor, content)
        wait_for(lambda: sum(bool(node.extents()) for node in cluster.nodes) == 3, "the full chunk is on its nodes")
        holders += [node for node in cluster.nodes if node.extents()]
        for node in holders:
            assert cluster.rest("POST", f"/v1/nodes/{node.number}/drain").status_code == 200
        wait_for(lambda: len(drained(cluster)) == len(holders), "they are called empty", 60)
        for node in holders:
            node.kill()
            for path in (node.data_dir / "extents").glob("*/*"):
                path.unlink()
    mount.remount()
    assert (mount.path / "f").read_bytes() == content
    for node in holders:
        node.start()


def begin_create(cluster: Cluster, content: bytes) -> subprocess.Popen[bytes]:
    """A `dcs create` of /f whose source has given so much and goes on to be open; three nodes have it."""
    process = cluster.start_dcs("create", "--chunk-size", "1MiB", "-", "/f")
    assert process.stdin is not None
    process.stdin.write(content)
    process.stdin.flush()
    copies = 3 * len(content) // MIB
    wait_for(lambda: sum(len(node.extents()) for node in cluster.nodes) == copies, "the chunks are on their nodes")
    return process


def drain_and_wipe(cluster: Cluster) -> Node:
    """Of a node that has something of it."""
    node = next(node for node in cluster.nodes if node.extents())
    assert cluster.rest("POST", f"/v1/nodes/{node.number}/drain").status_code == 200
    wait_for(lambda: drained(cluster) == [node.number], "it is called empty", 90)
    node.kill()
    for path in (node.data_dir / "extents").glob("*/*"):
        path.unlink()
    return node


@pytest.mark.timeout(180)
@pytest.mark.fault("S19")
def test_a_node_is_not_called_empty_while_a_create_with_a_slow_source_counts_on_it(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, DRAIN_GRACE_SECONDS="15")
    first, rest = os.urandom(4 * MIB), os.urandom(2 * MIB)
    with begin_create(cluster, first) as process:
        node = drain_and_wipe(cluster)
        _, said = process.communicate(rest, 60)
    assert (process.returncode, said) == (0, b"")
    assert Counter(replica.chunk for replica in cluster.replicas_of("/f")) == dict.fromkeys(range(6), 3)
    assert cluster.read("/f") == first + rest
    node.start()


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.fault("S19")
def test_a_create_that_slept_does_not_count_on_a_node_that_was_drained_meanwhile(make_cluster: MakeCluster) -> None:
    """As long as it sleeps nobody else knows what it has stored."""
    cluster = make_cluster(4, DRAIN_GRACE_SECONDS="31", SESSION_LEASE_SECONDS="600")
    first, rest = os.urandom(4 * MIB), os.urandom(2 * MIB)
    with begin_create(cluster, first) as process:
        process.send_signal(signal.SIGSTOP)
        node = drain_and_wipe(cluster)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(rest, 60)
    assert process.returncode == 0
    assert b"fewer replicas than wanted" in said
    cluster.wait_whole("/f")
    assert cluster.read("/f") == first + rest
    node.start()
