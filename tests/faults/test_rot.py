"""What rots on the disks of storage nodes, or goes away from them, is noticed without any reader."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusefs.metadata.session import NODES_SECONDS
from tests.support.cluster import Cluster, Mount, Node, Replica
from tests.support.fault_table import note_stall
from tests.support.processes import wait_for

FILES = 60
SIZE = 70_000
HURT = 100
SEED = int(os.environ.get("DCS_TEST_SEED", "1"))


@pytest.fixture(scope="module")
def rotting() -> Iterator[Cluster]:
    """Four nodes that look after their disks all the time."""
    with Cluster(
        4, SCRUB_PERIOD_SECONDS="5", RECOUNT_PERIOD_SECONDS="3", SESSION_LEASE_SECONDS="25", DEAD_AFTER_SECONDS="8",
        REPAIR_WAIT_SECONDS="2",
    ) as cluster:  # fmt: skip
        yield cluster


@pytest.fixture(scope="module")
def contents(rotting: Cluster) -> tuple[Mount, dict[str, bytes]]:
    mount = rotting.mount()
    contents = {f"f{number}": os.urandom(SIZE) for number in range(FILES)}
    for name, data in contents.items():
        (mount.path / name).write_bytes(data)
    mount.remount()
    return mount, contents


def set_aside(cluster: Cluster) -> set[tuple[str, int]]:
    """The damaged replicas that the nodes have found and keep, whatever was healed meanwhile."""
    return {
        (path.name.partition(".")[0], node.number)
        for node in cluster.nodes
        for path in (node.data_dir / "damaged").iterdir()
    }


def reported(cluster: Cluster) -> bool:
    """Whether the naming server knows all of them."""
    return not [path for node in cluster.nodes for path in (node.data_dir / "damaged").glob("*.new")]


def is_healed(cluster: Cluster) -> bool:
    status = cluster.status()
    return status["damaged"] == status["under_replicated"] == status["missing"] == 0


def hurt_some(cluster: Cluster, replicas: list[Replica], count: int) -> set[tuple[str, int]]:
    """So many, in the data, the footer or by cutting; one of each extent stays good."""
    chance, left = random.Random(SEED), Counter(r.extent for r in replicas)
    hurt: set[tuple[str, int]] = set()
    for replica in chance.sample(replicas, len(replicas)):
        if len(hurt) < count and left[replica.extent] > 1:
            left[replica.extent] -= 1
            hurt.add((replica.extent, replica.node))
            size = replica.path.stat().st_size
            kind = chance.choice(("data", "footer", "cut"))
            if kind == "cut":
                cluster.truncate_chunk_on_disk(replica, size - 1)
            else:
                at = chance.randrange(replica.length) if kind == "data" else chance.randrange(replica.length, size)
                cluster.corrupt_chunk_on_disk(replica, at)
    assert len(hurt) == count
    return hurt


@pytest.mark.fault("S9", "S10")
def test_the_scrub_finds_a_hundred_damages_and_all_are_healed(
    rotting: Cluster, contents: tuple[Mount, dict[str, bytes]]
) -> None:
    """S9, S10: no client reads; every file is right afterwards."""
    mount, files = contents
    hurt = hurt_some(rotting, [r for name in files for r in rotting.all_replicas_of(f"/{name}")], HURT)
    wait_for(lambda: set_aside(rotting) == hurt, "the scrub has found all damage, and nothing else", 60)
    wait_for(lambda: reported(rotting), "all of it was reported", 60)
    wait_for(lambda: is_healed(rotting), "all of it is healed", 60)
    rotting.dcs("fsck", "--data")
    for name, data in files.items():
        assert (mount.path / name).read_bytes() == data


@pytest.mark.fault("S12")
def test_replicas_that_went_away_are_missed(rotting: Cluster, contents: tuple[Mount, dict[str, bytes]]) -> None:
    """S12: files are deleted on a node's disk; the node notices by itself and is asked for each of its extents."""
    (mount, _), data = contents, os.urandom(SIZE)
    (mount.path / "gone").write_bytes(data)
    mount.remount()
    replica = rotting.all_replicas_of("/gone")[0]
    rotting.delete_chunk_on_disk(replica)
    said = f"{replica.extent} on node {replica.node} is missing".encode()
    wait_for(lambda: said in rotting.naming.log.read_bytes(), "it is missed", 60)
    assert (mount.path / "gone").read_bytes() == data


@pytest.fixture
def slow_node(rotting: Cluster) -> Iterator[Node]:
    """Each of its fsyncs takes 0.8 s."""
    node = rotting.nodes[0]
    node.restart_with("-e", "trace=fsync,fdatasync,syncfs", "-e", "inject=fsync,fdatasync,syncfs:delay_enter=800000")
    rotting.wait_alive(4)
    yield node
    node.restart_with()


@pytest.mark.fault("S16")
def test_a_slow_disk_makes_nobody_wait_long(
    rotting: Cluster, contents: tuple[Mount, dict[str, bytes]], slow_node: Node
) -> None:
    """S16: closing is quick all the same, syncing is true, the node is not dead."""
    (mount, _), took, before = contents, [], slow_node.extents()
    for number in range(30):
        descriptor = os.open(mount.path / f"slow{number}", os.O_RDWR | os.O_CREAT)
        os.write(descriptor, os.urandom(SIZE))
        if number % 10 == 0:
            os.fsync(descriptor)
        began = time.monotonic()
        os.close(descriptor)
        took.append(time.monotonic() - began)
    rows = {row["number"]: row["state"] for row in rotting.rest("GET", "/v1/nodes").json()["nodes"]}
    assert rows[slow_node.number] == "alive"
    note_stall(max(took))
    assert max(took) < 1.5
    wait_for(lambda: slow_node.extents() - before, "the slow node has stored some of it")


@pytest.mark.long
@pytest.mark.timeout(150)
@pytest.mark.fault("S16")
def test_a_slow_node_is_given_less_and_not_nothing(
    rotting: Cluster, contents: tuple[Mount, dict[str, bytes]], slow_node: Node
) -> None:
    """S16: of four nodes each would get three in four extents; the slow one gets clearly fewer than the others."""
    place = contents[0].path / "weighted"
    place.mkdir()

    def write_synced(number: int) -> None:
        with (place / str(number)).open("wb") as file:
            file.write(os.urandom(5000))
            file.flush()
            os.fsync(file.fileno())

    def store_ms(of: Node) -> int:
        rows = rotting.rest("GET", "/v1/nodes").json()["nodes"]
        return max(row["store_ms"] for row in rows if row["address"] == of.address)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write_synced, range(32)))
        wait_for(lambda: store_ms(slow_node) > 300, "the naming server knows that the node is slow")
        time.sleep(2 * NODES_SECONDS)  # The mount looks at the table of nodes so often.
        before = {node.number: node.extents() for node in rotting.nodes}
        list(threads.map(write_synced, range(100, 200)))
    taken = {node: len(node.extents() - before[node.number]) for node in rotting.nodes}
    others = [count for node, count in taken.items() if node is not slow_node]
    assert 0 < taken[slow_node] < 0.6 * sum(others) / 3, [f"{node.name}: {count}" for node, count in taken.items()]


@pytest.mark.fault("S12")
def test_an_emptied_disk_makes_a_new_node(rotting: Cluster, contents: tuple[Mount, dict[str, bytes]]) -> None:
    """S12: under the old name there is no false "I have it", and what it had is copied anew."""
    mount, files = contents
    node = rotting.nodes[-1]
    old, had = node.number, node.extents()
    assert had
    node.stop()
    shutil.rmtree(node.data_dir)
    node.start()

    def is_new() -> bool:
        rows = rotting.rest("GET", "/v1/nodes").json()["nodes"]
        states = {row["number"]: row["state"] for row in rows if row["address"] == node.address}
        return len(states) == 2 and states.pop(old) == "dead" and set(states.values()) == {"alive"}

    wait_for(is_new, "the node has another number, and the old one is dead", 60)
    mount.remount()
    name = random.Random(SEED).choice(sorted(files))
    assert (mount.path / name).read_bytes() == files[name]

    def copies() -> Counter[str]:
        return Counter(extent for node in rotting.nodes for extent in node.extents())

    wait_for(lambda: all(copies()[extent] >= 3 for extent in had), "what it had has three copies again", 60)
    wait_for(lambda: is_healed(rotting), "nothing is missed", 60)


@pytest.mark.long
@pytest.mark.fault("S16")
def test_a_node_whose_files_take_long_to_open_can_tell_what_it_holds(cluster: Cluster) -> None:
    """S16: `dcs fsck` asks for little at a time, so that the node can answer in time."""
    mount = cluster.mount()
    for number in range(400):
        (mount.path / f"{number}").write_bytes(b"x")
    mount.unmount()
    node = cluster.nodes[0]
    node.restart()  # It has none of them open.
    cluster.wait_alive(3)
    delay = ["-e", "trace=openat", "-e", "inject=openat:delay_enter=30000"]
    with subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", *delay, "-p", str(node.pid)]) as strace:
        try:
            wait_for(lambda: "TracerPid:\t0" not in Path(f"/proc/{node.pid}/status").read_text(), "strace is there")
            began = time.monotonic()
            assert cluster.dcs_json("fsck")["extents"] == 400
            assert time.monotonic() - began > 10, "the files were opened, and that took long"
        finally:
            strace.terminate()
