"""dcs status, nodes, explain, fsck: the truth about the cluster, in tables and in JSON."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import httpx
import pytest
from crc32c import crc32c

from tests.conftest import MakeCluster
from tests.support.cluster import SECRET, Cluster, Node
from tests.support.processes import wait_for

MIB = 1024 * 1024


def test_status_has_what_scripts_rely_on(shared_cluster: Cluster) -> None:
    shared_cluster.write("/status", b"12345")
    status = shared_cluster.dcs_json("status")
    assert {"files", "extents", "bytes", "under_replicated", "missing", "damaged", "deletions_pending"} <= set(status)
    assert len(status["nodes"]) == 3
    for node in status["nodes"]:
        assert {"id", "address", "state", "used_bytes", "free_bytes"} <= set(node)
        assert node["state"] == "alive"
    text = shared_cluster.dcs("status").stdout.decode()
    for node in shared_cluster.nodes:
        assert node.address in text


def test_status_tells_of_the_naming_servers_own_work(shared_cluster: Cluster) -> None:
    """The slowest requests first, and every kind of error."""
    shared_cluster.write("/worked", b"12345")
    status = shared_cluster.dcs_json("status")
    batches = next(row for row in status["requests"] if row["verb"] == "ops_batch")
    assert batches["count"] > batches["failures"] == 0
    assert batches["half_ms"] <= batches["most_ms"]
    slowest = [row["most_ms"] for row in status["requests"] if row["most_ms"] is not None]
    assert slowest == sorted(slowest, reverse=True)
    assert {"redis_timeout", "redis_away", "too_few_nodes"} <= set(status["errors"])
    text = shared_cluster.dcs("status").stdout.decode()
    assert all(words in text for words in ("slowest requests", "errors", "since the naming server started"))


def test_nodes_lists_them_with_what_they_report(shared_cluster: Cluster) -> None:
    rows = shared_cluster.dcs_json("nodes")
    assert sorted(row["address"] for row in rows) == sorted(node.address for node in shared_cluster.nodes)
    headings, *lines = shared_cluster.dcs("nodes").stdout.decode().splitlines()
    assert headings.split() == [
        "node", "address", "state", "used", "free", "total", "disks", "replicas", "errors", "scrubbed", "store",
        "stored", "read", "rack", "uuid", "slowest",
    ]  # fmt: skip
    assert sum("alive" in line and " ms " in line for line in lines) == 3


def test_explain_shows_each_replica_and_its_file(shared_cluster: Cluster) -> None:
    """The file is on the disk where it says, begins with the data, and the CRC32C is that of the data."""
    data = os.urandom(2 * MIB + 100)
    shared_cluster.write("/explained", data, "--chunk-size", "1MiB")
    found = shared_cluster.dcs_json("explain", "explained")
    assert (found["path"], found["size"], found["chunk_size"]) == ("/explained", len(data), MIB)
    assert [chunk["index"] for chunk in found["chunks"]] == [0, 1, 2]
    for chunk in found["chunks"]:
        (segment,) = chunk["segments"]
        part = data[chunk["index"] * MIB :][: segment["length"]]
        assert len({replica["node"] for replica in segment["replicas"]}) == 3
        for replica in segment["replicas"]:
            assert replica["state"] == "ok"
            assert Path(replica["path"]).read_bytes().startswith(part)
            assert replica["crc32c"] == f"{crc32c(part):08x}"
    text = shared_cluster.dcs("explain", "/explained").stdout.decode()
    assert all(str(replica.path) in text for replica in shared_cluster.replicas_of("/explained"))


def test_explain_of_what_has_no_chunks(shared_cluster: Cluster) -> None:
    shared_cluster.write("/hollow", b"")
    assert shared_cluster.dcs_json("explain", "/hollow")["chunks"] == []
    assert shared_cluster.dcs_json("explain", "/")["inode"] == 1


def test_explain_shows_what_is_wrong(cluster: Cluster) -> None:
    """A damaged replica, a missing one, and a node that cannot be asked."""
    cluster.write("/harmed", b"x" * 1000)
    damaged, missing, away = cluster.replicas_of("/harmed")
    cluster.corrupt_chunk_on_disk(damaged)
    cluster.delete_chunk_on_disk(missing)
    cluster.node(away.node).kill()
    (chunk,) = cluster.dcs_json("explain", "/harmed")["chunks"]
    states = {replica["node"]: replica["state"] for replica in chunk["segments"][0]["replicas"]}
    assert states == {damaged.node: "damaged", missing.node: "missing", away.node: "unknown"}


def put_unknown_extent(node: Node, extent: str = "7fffffff-1") -> None:
    answer = httpx.put(
        f"http://{node.address}/v1/extents/{extent}", content=b"nobody knows me", trust_env=False,
        headers={"authorization": f"Bearer {SECRET}"},
    )  # fmt: skip
    assert answer.status_code == 201


def test_fsck_of_a_whole_volume_is_clean(cluster: Cluster) -> None:
    """Also while deleted files wait for their end, and with every replica's data verified."""
    for name in ("/a", "/b", "/c"):
        cluster.write(name, os.urandom(5000), "--chunk-size", "1KiB")
    cluster.dcs("delete", "/b")
    cluster.dcs("fsck")
    cluster.dcs("fsck", "--wait", "60", "--data")
    found = cluster.dcs_json("fsck")
    assert (found["verdict"], found["extents"], found["replicas"]) == ("clean", 10, 30)
    assert (found["deletions_pending"], found["in_flight"], found["surplus"]) == (0, 0, 0)


def test_fsck_finds_a_missing_replica_and_a_missing_extent(cluster: Cluster) -> None:
    cluster.write("/a", b"a")
    cluster.write("/b", b"b")
    first = cluster.replicas_of("/a")[0]
    cluster.delete_chunk_on_disk(first)
    lost = cluster.replicas_of("/b")
    for replica in lost:
        cluster.delete_chunk_on_disk(replica)
    found = cluster.dcs_json("fsck", expect=1)
    assert found["missing_extents"] == [lost[0].extent]
    missing = {(row["extent"], row["node"]) for row in found["missing_replicas"]}
    assert missing == {(replica.extent, replica.node) for replica in (first, *lost)}
    assert b"missing extent: " + lost[0].extent.encode() in cluster.dcs("fsck", expect=1).stdout


def test_fsck_finds_a_truncated_replica(cluster: Cluster) -> None:
    cluster.write("/a", b"a" * 1000)
    replica = cluster.replicas_of("/a")[1]
    cluster.truncate_chunk_on_disk(replica)
    (found,) = cluster.dcs_json("fsck", expect=1)["damaged"]
    assert (found["extent"], found["node"]) == (replica.extent, replica.node)


def test_fsck_with_data_finds_a_flipped_bit(cluster: Cluster) -> None:
    """Without, it compares only what is listed."""
    cluster.write("/a", b"a" * 1000)
    replica = cluster.replicas_of("/a")[2]
    cluster.corrupt_chunk_on_disk(replica, at=500)
    cluster.dcs("fsck")
    (found,) = cluster.dcs_json("fsck", "--data", expect=1)["damaged"]
    assert (found["extent"], found["node"]) == (replica.extent, replica.node)


def test_fsck_finds_what_metadata_does_not_know_and_waits_for_its_end(cluster: Cluster) -> None:
    put_unknown_extent(cluster.nodes[1])
    (found,) = cluster.dcs_json("fsck", expect=1)["garbage"]
    assert (found["extent"], found["node"]) == ("7fffffff-1", cluster.nodes[1].number)
    cluster.dcs("fsck", "--wait", "60")
    assert cluster.nodes[1].extents() == set()


def test_fsck_with_a_node_that_cannot_be_asked_is_unknown(cluster: Cluster) -> None:
    """Never clean, whether it was killed or hangs."""
    cluster.write("/a", b"a")
    cluster.nodes[0].kill()
    found = cluster.dcs_json("fsck", expect=2)
    assert found["verdict"] == "unknown"
    assert len(found["unknown"]) == 1
    cluster.nodes[0].start()
    wait_for(lambda: cluster.dcs("fsck", expect=None).returncode == 0, "the node can be asked again")


@pytest.mark.parametrize(
    ("command", "begins", "number"),
    [
        ("nodes", b"node ", signal.SIGINT),
        ("status", b"naming servers ", signal.SIGTERM),
        ("status --json", b"{", signal.SIGINT),
    ],
)
def test_what_is_watched_is_shown_again_until_a_signal(
    shared_cluster: Cluster, command: str, begins: bytes, number: signal.Signals
) -> None:
    """The whole of it, in JSON a whole document each time."""
    with shared_cluster.start_dcs(*command.split(), "--watch") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        shown: list[bytes] = []
        while len(shown) < 2:
            line = process.stdout.readline()
            assert line, "it has ended"
            shown = [*shown, line] if line.startswith(begins) else [*shown[:-1], shown[-1] + line]
        process.send_signal(number)
        assert process.wait(10) in (128 + number, -number)  # The same to a shell.
        assert process.stderr.read() == b""
    assert all(node.address.encode() in shown[0] for node in shared_cluster.nodes)
    if "--json" in command:
        assert [node["state"] for node in json.loads(shown[0])["nodes"]] == ["alive"] * 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shared_cluster: Cluster, shell: str) -> None:
    environment = {
        "_DCS_COMPLETE": f"complete_{shell}", "COMP_WORDS": "dcs cr", "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "dcs cr", "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    assert b"create" in shared_cluster.dcs(environment=environment, expect=None).stdout


def test_fsck_has_repaired_what_it_finds(make_cluster: MakeCluster) -> None:
    """Damage in the data, which only --data sees, and a replica that is gone are told to the naming server; with --wait
    all copies are good when it returns."""
    cluster, data = make_cluster(3), os.urandom(100_000)
    cluster.write("/hurt", data)
    flipped, gone, _ = cluster.replicas_of("/hurt")
    cluster.corrupt_chunk_on_disk(flipped, at=70_000)
    cluster.delete_chunk_on_disk(gone)
    found = cluster.dcs_json("fsck", "--data", "--repair", "--wait", "60")
    assert (found["verdict"], found["reported"]) == ("clean", 2)
    assert cluster.states_of("/hurt") == [["ok"] * 3]
    assert cluster.read("/hurt") == data
