"""Redis is lost with all it had: the storage nodes give the metadata back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.processes import wait_for

MIB = 1024 * 1024
EARLY = os.urandom(3 * MIB + 10)
LATE = os.urandom(2 * MIB + 7)
WRITES = [(n * 99_991 % (3 * MIB), os.urandom(3000 + 7 * n)) for n in range(150)] + [(3 * MIB, os.urandom(77))]
"""Places all over a file, many of them written twice."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A snapshot every second. One-megabyte chunks."""
    with Cluster(3, SNAPSHOT_INTERVAL_SECONDS="1", CHUNK_SIZE=str(MIB)) as made:
        yield made


def latest_snapshot(cluster: Cluster) -> int:
    rows = cluster.ask_redis("ZRANGE", "dcs:{main}:snapshots", "0", "-1").split()
    stored = {n for node in cluster.nodes for n in node.extents() if n.startswith("0-") and n.endswith("ffff")}
    complete = [int(row) for row in rows if f"0-{int(row) * 65536 + 65535:x}" in stored]
    return complete[-1] if complete else 0


def seq(cluster: Cluster) -> int:
    return int(cluster.ask_redis("HGET", "dcs:{main}:volume", "seq"))


def held_of_files(cluster: Cluster) -> dict[int, set[str]]:
    """By node; without the parts of snapshots, of which the older ones are let go of."""
    return {node.number: {n for n in node.extents() if not n.startswith("0-")} for node in cluster.nodes}


def lose_redis(cluster: Cluster) -> None:
    """Everything is off but the nodes; Redis is on again, and empty."""
    cluster.naming.stop()
    cluster.redis.stop()
    shutil.rmtree(cluster.directory / "redis")
    (cluster.directory / "redis").mkdir()
    cluster.redis.start()


def recover(cluster: Cluster, *options: str, expect: int = 0) -> str:
    done = cluster.dcs(
        "recover", "--redis-url", f"redis://127.0.0.1:{cluster.redis_port}/0", "--nodes",
        ",".join(node.address for node in cluster.nodes), *options, expect=expect,
    )  # fmt: skip
    return (done.stdout + done.stderr).decode()


@pytest.mark.timeout(200)
@pytest.mark.fault("M12")
def test_an_empty_redis_is_rebuilt_from_the_snapshot_and_the_replicas(cluster: Cluster) -> None:
    """What the snapshot has is as it was; what was written since is in /lost+found, also by a mount that is older than
    the snapshot; nothing is deleted meanwhile. Where Redis, volume or database are the wrong ones it is said."""
    cluster.dcs("mkdir", "/d")
    mount = cluster.mount("m")
    cluster.write("/d/early", EARLY)
    wanted = seq(cluster)
    wait_for(lambda: latest_snapshot(cluster) >= wanted, "a snapshot was taken")
    cluster.naming.environment["SNAPSHOT_INTERVAL_SECONDS"] = "0"
    cluster.naming.restart()
    cluster.wait_alive(3)
    cluster.write("/d/late", LATE)
    (mount.path / "mounted").write_bytes(EARLY)
    mount.kill()
    held = held_of_files(cluster)
    lose_redis(cluster)
    cluster.ask_redis("SET", "another", "volume")
    assert "keys that are not this volume's" in recover(cluster, expect=1)
    cluster.ask_redis("DEL", "another")
    assert "Say --volume main" in recover(cluster, "--volume", "other", expect=1)
    assert cluster.ask_redis("DBSIZE") == "0"
    elsewhere = f"redis://127.0.0.1:{cluster.redis_port}/1"
    assert "not in database 1 but in 0" in recover(cluster, "--redis-url", elsewhere, expect=1)
    cluster.ask_redis("FLUSHALL")
    said = recover(cluster)
    assert "Restored the snapshot" in said
    cluster.naming.start()
    cluster.wait_alive(3)
    assert not cluster.status()["safe_mode"]
    assert cluster.read("/d/early") == EARLY
    late, mounted = sorted("/lost+found/" + row["name"] for row in cluster.dcs_json("ls", "/lost+found"))
    assert late.startswith("/lost+found/late.")
    assert cluster.read(late) == LATE
    assert mounted.startswith("/lost+found/mounted.")
    assert cluster.read(mounted) == EARLY
    assert held_of_files(cluster) == held
    assert cluster.status()["deletions_held"]
    cluster.dcs("gc", "--resume")
    cluster.write("/d/after", b"it goes on")
    cluster.dcs("delete", late)
    cluster.wait_clean()
    assert cluster.read("/d/early") == EARLY


@pytest.mark.timeout(200)
@pytest.mark.fault("M12")
@pytest.mark.long
def test_without_any_snapshot_the_files_are_rebuilt_from_the_replicas(cluster: Cluster) -> None:
    """Also those that were written in pieces. A Redis that still has files is not touched."""
    mount = cluster.mount("other")
    cluster.write("/whole", LATE)
    pieces = bytearray(3 * MIB + 77)
    with (mount.path / "pieces").open("wb", buffering=0) as file:
        for at, data in WRITES:
            os.pwrite(file.fileno(), data, at)
            pieces[at : at + len(data)] = data
            if at % 3 == 0:
                os.fsync(file.fileno())
    mount.unmount()
    assert "nothing is changed" in recover(cluster, expect=1)
    lose_redis(cluster)
    recover(cluster, "--no-snapshot")
    cluster.naming.environment["SNAPSHOT_INTERVAL_SECONDS"] = "0"
    cluster.naming.start()
    cluster.wait_alive(3)
    content = {cluster.read("/lost+found/" + row["name"]) for row in cluster.dcs_json("ls", "/lost+found")}
    assert {LATE, bytes(pieces)} <= content
    cluster.write("/new", b"new")
    assert cluster.read("/new") == b"new"
    cluster.dcs("gc", "--resume")
    cluster.wait_clean()  # Of the snapshots that this metadata does not know nothing is left.
