"""dcs while parts of the cluster fail: right bytes or one clear line, never wrong bytes, never a hang."""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeCluster
from tests.support.cluster import Cluster, Replica
from tests.support.processes import wait_for

MIB = 1024 * 1024
DATA = random.Random(11).randbytes(3 * MIB + 17)

Harm = Callable[[Cluster, Replica], None]
HARMS: dict[str, Harm] = {
    "one flipped bit": lambda cluster, replica: cluster.corrupt_chunk_on_disk(replica, at=replica.length - 1),
    "truncated": lambda cluster, replica: cluster.truncate_chunk_on_disk(replica),
    "emptied": lambda cluster, replica: cluster.truncate_chunk_on_disk(replica, 0),
    "deleted": lambda cluster, replica: cluster.delete_chunk_on_disk(replica),
}


def by_chunk(replicas: list[Replica]) -> dict[int, list[Replica]]:
    chunks: dict[int, list[Replica]] = {}
    for replica in replicas:
        chunks.setdefault(replica.chunk, []).append(replica)
    return chunks


@pytest.mark.parametrize("harm", HARMS)
def test_two_bad_replicas_of_each_chunk_go_unnoticed(shared_cluster: Cluster, harm: str) -> None:
    """The third is found, whichever it is, and damage that was met is counted."""
    name, met = f"/two {harm}", shared_cluster.damage_met()
    shared_cluster.write(name, DATA, "--chunk-size", "1MiB")
    for index, replicas in by_chunk(shared_cluster.replicas_of(name)).items():
        for replica in sorted(replicas, key=lambda r: (r.node + index) % 3)[:2]:
            HARMS[harm](shared_cluster, replica)
    assert shared_cluster.read(name) == DATA
    wait_for(lambda: shared_cluster.damage_met() > met, "the damage is counted")


@pytest.mark.parametrize("harm", HARMS)
def test_no_good_replica_is_an_error_that_names_the_chunk(shared_cluster: Cluster, tmp_path: Path, harm: str) -> None:
    """Never wrong bytes, never zeros, and what was there before is untouched."""
    name = f"/all {harm}"
    shared_cluster.write(name, DATA, "--chunk-size", "1MiB")
    bad = by_chunk(shared_cluster.replicas_of(name))[2]
    for replica in bad:
        HARMS[harm](shared_cluster, replica)
    (tmp_path / "copy").write_bytes(b"before")
    said = shared_cluster.dcs("read", name, tmp_path / "copy", expect=1).stderr.decode()
    assert said.startswith(f"dcs: {name}: no good replica of chunk 2, extent {bad[0].extent}: ")
    assert said.count("\n") == 1
    assert (tmp_path / "copy").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert DATA.startswith(shared_cluster.dcs("read", name, "-", expect=1).stdout)
    assert shared_cluster.damaged_nodes(bad[0].extent) == {replica.node for replica in bad}


def test_fewer_nodes_than_replicas_is_said(make_cluster: MakeCluster) -> None:
    """Before anything is stored."""
    cluster = make_cluster(nodes=2)
    said = cluster.dcs("create", "-", "/x", stdin=b"x", expect=1).stderr
    assert said == b"dcs: Fewer than 3 storage servers available\n"
    assert cluster.dcs("ls").stdout == b""


def test_a_node_that_is_gone_but_not_yet_missed_is_said(cluster: Cluster) -> None:
    """No file begins with fewer than three copies."""
    cluster.nodes[0].kill()
    said = cluster.dcs("create", "-", "/x", stdin=b"x", expect=1).stderr.decode()
    assert said.startswith("dcs: Fewer than 3 storage servers available")
    assert said.count("\n") == 1
    assert cluster.dcs("ls").stdout == b""


class Feed:
    """A `dcs create` from a pipe that a test feeds step by step."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._process = cluster.start_dcs("create", "--chunk-size", "1MiB", "-", name)
        self._random = random.Random(3)
        self.sum = hashlib.sha256()

    def feed(self, mebibytes: int) -> None:
        assert self._process.stdin is not None
        for _ in range(mebibytes):
            piece = self._random.randbytes(MIB)
            self.sum.update(piece)
            self._process.stdin.write(piece)
        self._process.stdin.flush()

    def finish(self, seconds: float = 60) -> tuple[int, bytes]:
        """The exit status and what was said."""
        with self._process as process:
            _, said = process.communicate(timeout=seconds)
            return process.returncode, said


def stored_on_all(cluster: Cluster) -> bool:
    return all(node.extents() for node in cluster.nodes if node.is_running)


def test_a_node_that_dies_during_create_is_replaced(make_cluster: MakeCluster) -> None:
    """With a fourth node every extent still gets its three copies, on living nodes or the dead one's disk."""
    cluster = make_cluster(nodes=4)
    upload = Feed(cluster, "/file")
    upload.feed(40)
    wait_for(lambda: stored_on_all(cluster), "the upload is under way")
    cluster.nodes[1].kill()
    upload.feed(40)
    assert upload.finish() == (0, b"")
    assert hashlib.sha256(cluster.read("/file")).hexdigest() == upload.sum.hexdigest()
    assert cluster.status()["under_replicated"] == 0
    assert len(cluster.replicas_of("/file")) == 3 * 80


def test_a_node_that_dies_during_create_and_cannot_be_replaced_is_told(cluster: Cluster) -> None:
    """Two copies are enough to go on with; a warning says so, and the metadata counts them for repair."""
    upload = Feed(cluster, "/file")
    upload.feed(40)
    wait_for(lambda: stored_on_all(cluster), "the upload is under way")
    cluster.nodes[2].kill()
    upload.feed(40)
    status, said = upload.finish()
    assert status == 0
    assert b"fewer replicas than wanted" in said
    assert cluster.status()["under_replicated"] > 0
    assert hashlib.sha256(cluster.read("/file")).hexdigest() == upload.sum.hexdigest()


def test_two_of_three_nodes_dying_during_create_is_an_error(cluster: Cluster) -> None:
    """After trying for a while; nothing is created."""
    upload = Feed(cluster, "/file")
    upload.feed(40)
    wait_for(lambda: stored_on_all(cluster), "the upload is under way")
    cluster.nodes[0].kill()
    cluster.nodes[2].kill()
    with contextlib.suppress(BrokenPipeError):  # It may have ended by then.
        upload.feed(20)
    status, said = upload.finish(90)
    assert status == 1
    assert said.startswith(b"dcs: Fewer than 3 storage servers available")
    assert cluster.dcs("ls").stdout == b""


def test_a_hung_node_delays_a_read_little(cluster: Cluster) -> None:
    """One wait of two seconds, then the others are asked."""
    cluster.write("/file", DATA * 4, "--chunk-size", "1MiB")
    cluster.nodes[0].pause()
    began = time.monotonic()
    assert cluster.read("/file") == DATA * 4
    assert time.monotonic() - began < 10
    cluster.nodes[0].resume()


def test_two_dead_nodes_go_unnoticed_by_a_reader(cluster: Cluster) -> None:
    cluster.write("/file", DATA, "--chunk-size", "1MiB")
    cluster.nodes[0].kill()
    cluster.nodes[1].kill()
    assert cluster.read("/file") == DATA


def test_no_node_at_all_is_said_in_time(cluster: Cluster) -> None:
    cluster.write("/file", b"x")
    for node in cluster.nodes:
        node.kill()
    began = time.monotonic()
    assert b"no good replica of chunk 0" in cluster.dcs("read", "/file", "-", expect=1).stderr
    assert time.monotonic() - began < 25


def test_a_naming_server_that_restarts_goes_unnoticed(cluster: Cluster) -> None:
    """Killed in the middle of an upload: operations wait and are answered once."""
    upload = Feed(cluster, "/file")
    upload.feed(30)
    cluster.naming.kill()
    upload.feed(30)
    cluster.naming.start()
    upload.feed(300)
    assert upload.finish() == (0, b"")
    assert hashlib.sha256(cluster.read("/file")).hexdigest() == upload.sum.hexdigest()
    cluster.wait_clean()


def test_redis_that_restarts_goes_unnoticed(cluster: Cluster) -> None:
    """Killed in the middle of an upload that commits meanwhile; nothing that was acknowledged is missing."""
    cluster.write("/before", b"kept")
    upload = Feed(cluster, "/file")
    upload.feed(200)
    cluster.redis.kill()
    upload.feed(150)
    cluster.redis.start()
    upload.feed(30)
    assert upload.finish() == (0, b"")
    assert hashlib.sha256(cluster.read("/file")).hexdigest() == upload.sum.hexdigest()
    assert cluster.read("/before") == b"kept"


def test_nobody_there_is_said_in_time(cluster: Cluster) -> None:
    """One line, for every command."""
    cluster.naming.stop()
    for command in (("ls",), ("status",), ("nodes",), ("create", "/dev/null", "/x"), ("read", "/x", "-")):
        began = time.monotonic()
        said = cluster.dcs(*command, expect=1).stderr
        assert said.startswith(b"dcs: ")
        assert said.count(b"\n") == 1
        assert time.monotonic() - began < 15
    assert cluster.dcs("fsck", expect=2).stdout.startswith(b"0 extents, 0 replicas on 0 nodes: unknown")


def test_a_redis_that_is_away_is_said_at_once(cluster: Cluster) -> None:
    cluster.redis.stop()
    wait_for(lambda: cluster.rest("GET", "/health").status_code == 503, "the naming server has noticed")
    said = cluster.dcs("status", expect=1).stderr.decode()
    assert said == f"dcs: No naming server works: {cluster.address}: redis is away\n"
    cluster.redis.start()
    wait_for(lambda: cluster.rest("GET", "/health").status_code == 200, "Redis is back")
    assert cluster.dcs_json("status")["naming_servers"] == [{"address": cluster.address, "state": "ok"}]


def test_a_naming_server_of_several_is_enough(cluster: Cluster) -> None:
    """A list of URLs: the first is not there."""
    urls = f"http://127.0.0.1:1,{cluster.naming_url}"
    cluster.dcs("--naming-url", urls, "create", "-", "/x", stdin=b"x")
    assert cluster.dcs("--naming-url", urls, "read", "/x", "-").stdout == b"x"


def test_a_wrong_or_missing_secret_is_said(cluster: Cluster) -> None:
    wrong = cluster.dcs("ls", expect=1, environment={"DCS_SECRET": "not the secret"})
    assert b"does not accept this cluster's secret" in wrong.stderr
    missing = cluster.dcs("ls", expect=1, environment={"DCS_SECRET": ""})
    assert b"No cluster secret" in missing.stderr


def test_another_server_is_told_from_a_naming_server(cluster: Cluster) -> None:
    address = cluster.nodes[0].address
    said = cluster.dcs("--naming-url", f"http://{address}", "ls", expect=1).stderr.decode()
    assert said == f"dcs: {address} is not a naming server\n"
