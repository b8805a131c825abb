"""The disks of a storage node: what rots is found, what fails is taken out, what is full is gone around."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from servers.protocol.limits import BLOCK_BYTES, MIB
from tests.support.naming_stub import NamingStub
from tests.support.processes import wait_for
from tests.support.storage_node import AUTHORIZATION, StorageNode

QUICK = {"SCRUB_PERIOD_SECONDS": "2", "RECOUNT_PERIOD_SECONDS": "1", "RESERVE_BYTES": "0"}
SIZE = 3 * BLOCK_BYTES + 100

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
MakeNode = Callable[..., StorageNode]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[MakeNode]:
    """A node with so many disks, `disks[0]` and on, not started yet."""
    made: list[StorageNode] = []

    def make(disks: int = 1, **settings: str) -> StorageNode:
        roots = [tmp_path / f"disk{number}" for number in range(disks)]
        node = StorageNode(tmp_path, DATA_DIR=",".join(map(str, roots)), **{**QUICK, **settings})
        node.disks = roots
        made.append(node)
        return node

    yield make
    for node in made:
        node.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int, int], Path]]:
    """A file system of so many bytes where the disk of this number will be."""
    mounted: list[Path] = []

    def mount(number: int, size: int) -> Path:
        path = tmp_path / f"disk{number}"
        path.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "dcs-test", path], check=True, timeout=30)
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True, timeout=30)


def replica(node: StorageNode, extent: str) -> Path:
    return next(path for root in node.disks for path in (root / "extents").glob(f"*/{extent}"))


def set_aside(node: StorageNode) -> set[str]:
    return {path.name.partition(".")[0] for root in node.disks for path in (root / "damaged").iterdir()}


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def space(node: StorageNode) -> dict[str, Any]:
    found: dict[str, Any] = node.http.get("/v1/space").json()
    return found


def disk_states(node: StorageNode) -> list[str]:
    return [disk["state"] for disk in space(node)["disks"]]


def store_many(node: StorageNode, count: int, size: int = SIZE) -> dict[str, bytes]:
    bodies = {f"7-{number:x}": os.urandom(size) for number in range(1, count + 1)}
    for extent, body in bodies.items():
        assert node.put(extent, body) == 201
    return bodies


@pytest.mark.fault("S10")
def test_the_scrub_finds_every_damage_without_a_read(make_node: MakeNode) -> None:
    """In the data, the sums, the map, the trailer, a lost tail: set aside, in no listing, all others untouched."""
    node = make_node(disks=2)
    node.start()
    bodies = store_many(node, 40)
    node.http.post("/v1/barrier")
    chance = random.Random(5)
    hurt = chance.sample(sorted(bodies), 10)
    for extent in hurt:
        path = replica(node, extent)
        if chance.random() < 0.2:
            os.truncate(path, path.stat().st_size - 1)
        else:
            flip(path, chance.randrange(path.stat().st_size))
    wait_for(lambda: set_aside(node) == set(hurt), "the scrub has found all damage", 30)
    assert dict(node.inventory()) == {extent: SIZE for extent in bodies if extent not in hurt}
    assert node.statistics()["gets"] == 0
    assert node.http.post("/v1/extents/check", json={"extents": [hurt[0]]}).json()["extents"] == {hurt[0]: -1}
    kept = [path for root in node.disks for path in (root / "extents").rglob("*") if path.is_file()]
    # A file that was cut is subtracted as it was found.
    assert space(node)["used_bytes"] == pytest.approx(sum(path.stat().st_size for path in kept), abs=10)
    assert sum(disk["set_aside"] for disk in space(node)["disks"]) == 10


def test_what_is_left_of_a_damaged_replica_is_served_and_no_wrong_byte(make_node: MakeNode) -> None:
    node = make_node(SCRUB_PERIOD_SECONDS="1000")
    node.start()
    body = store_many(node, 1)["7-1"]
    flip(replica(node, "7-1"), BLOCK_BYTES + 5)
    answer = node.http.post("/v1/extents/check", json={"extents": ["7-1", "7-2"], "data": True})
    assert answer.json()["extents"] == {"7-1": -1, "7-2": None}
    assert set_aside(node) == {"7-1"}
    assert node.get("7-1", range=f"bytes=0-{BLOCK_BYTES - 1}").content == body[:BLOCK_BYTES]
    assert node.get("7-1", range=f"bytes={2 * BLOCK_BYTES}-").content == body[2 * BLOCK_BYTES :]
    for part in ({}, {"range": f"bytes={BLOCK_BYTES}-{BLOCK_BYTES}"}):
        assert node.get("7-1", **part).status_code == 500
    assert node.put("7-1", body) == 201, "storing it again repairs"
    assert node.get("7-1").content == body
    flip(replica(node, "7-1"), SIZE + 3)
    node.restart()
    assert node.get("7-1", range="bytes=0-9").content == body[:10]
    assert len(list((node.disks[0] / "damaged").iterdir())) == 2
    assert node.inventory() == []


def test_the_scrub_goes_on_where_it_was_and_tells_when_it_is_late(make_node: MakeNode) -> None:
    node = make_node(SCRUB_PERIOD_SECONDS="3600")
    node.start()
    store_many(node, 3)
    cursor = node.disks[0] / "scrub"
    node.stop()
    completed = 1_700_000_000
    cursor.write_text(f"7-2 {completed} {completed}\n")
    node.environment["SCRUB_PERIOD_SECONDS"] = "1000"
    node.start()
    (disk,) = space(node)["disks"]
    assert (disk["scrubbed_s"], disk["scrub_late"]) == (completed, True)
    node.stop()
    node.environment["SCRUB_PERIOD_SECONDS"] = "2"
    node.start()
    wait_for(lambda: space(node)["disks"][0]["scrubbed_s"] > completed, "the pass is complete")
    assert not space(node)["disks"][0]["scrub_late"]


def test_replicas_that_went_away_are_noticed(make_node: MakeNode) -> None:
    """Without a read: what the node says it holds is what lies there."""
    node = make_node(disks=2)
    node.start()
    store_many(node, 20)
    before = space(node)["held"]
    assert before.startswith("20:")
    replica(node, "7-5").unlink()
    wait_for(lambda: space(node)["held"].startswith("19:"), "the loss is noticed")
    assert space(node)["used_bytes"] == sum(
        path.stat().st_size for root in node.disks for path in (root / "extents").rglob("*") if path.is_file()
    )
    held = space(node)["held"]
    node.restart()
    assert space(node)["held"] == held


def test_stores_are_spread_over_the_disks_and_found_again(make_node: MakeNode) -> None:
    node = make_node(disks=3)
    node.start()
    bodies = store_many(node, 60, 300)
    assert all(len(list((root / "extents").glob("*/*"))) > 5 for root in node.disks)
    assert space(node)["total_bytes"] == shutil.disk_usage(node.disks[0]).total, "one file system counts once"
    node.restart()
    assert dict(node.inventory(limit=7)) == dict.fromkeys(bodies, 300)
    assert all(node.get(extent).content == body for extent, body in bodies.items())
    assert all(node.put(extent, body) == 200 for extent, body in bodies.items())


@only_root
@pytest.mark.fault("S14")
def test_a_full_disk_is_gone_around_and_a_full_node_says_so(
    make_node: MakeNode, small_disk: Callable[[int, int], Path]
) -> None:
    small_disk(0, 6 * MIB)
    small_disk(1, 20 * MIB)
    node = make_node(disks=2)
    node.start()
    stored = 0
    while node.put(f"7-{stored + 1:x}", os.urandom(MIB)) == 201:
        stored += 1
    assert 22 <= stored <= 26
    assert node.put("8-1", os.urandom(MIB)) == 507
    assert space(node)["free_bytes"] < 2.2 * MIB
    for number in range(1, stored + 1):
        replica(node, f"7-{number:x}").unlink()
    node.restart()  # It has the files open, which keeps their space.
    assert node.put("8-1", os.urandom(MIB)) == 201


@pytest.mark.fault("S15")
def test_a_read_only_disk_serves_what_it_has_and_takes_nothing(make_node: MakeNode) -> None:
    """Until it can be written again. The kernel makes a file system read-only under its users; mount(8) may not."""
    node = make_node()
    node.start()
    body = store_many(node, 1)["7-1"]
    tmp = node.disks[0] / "tmp"
    refused = ("-P", str(tmp / "00/7-2.0"), "-P", str(tmp / "probe"))
    node.restart_with(*refused, "-e", "trace=openat", "-e", "inject=openat:error=EROFS:when=1..5")
    assert node.put("7-2", body) == 503
    assert disk_states(node) == ["read-only"]
    assert space(node)["free_bytes"] == 0
    assert node.put("7-2", body) == 503
    assert node.get("7-1").content == body
    assert dict(node.inventory()) == {"7-1": SIZE}
    wait_for(lambda: disk_states(node) == ["good"], "it is used again once it can be")
    assert node.put("7-2", body) == 201


def reported(stub: NamingStub) -> list[str]:
    """What the node itself has found damaged, report by report."""
    return [found["extent"] for found in map(json.loads, list(stub.reports)) if found.get("verified")]


@pytest.mark.fault("S10", "S15")
def test_what_rots_on_a_read_only_disk_is_reported_where_it_is(make_node: MakeNode) -> None:
    with NamingStub() as stub:
        node = make_node(NAMING_URL=stub.url)
        node.start()
        store_many(node, 3)
        hurt = replica(node, "7-2")
        node.restart_with("-P", str(hurt), "-e", "trace=renameat2", "-e", "inject=renameat2:error=EROFS")
        flip(hurt, 5)

        wait_for(lambda: reported(stub), "the scrub has found it, and it is reported", 30)
        before = node.statistics()["damaged"]
        wait_for(lambda: node.statistics()["damaged"] > before, "it is found again", 30)
        assert set(reported(stub)) == {"7-2"}
        assert len(reported(stub)) == 1
        assert set_aside(node) == set()


@pytest.mark.fault("S10", "S15")
def test_what_was_set_aside_before_its_disk_became_read_only_is_reported_once(make_node: MakeNode) -> None:
    """And holds up no other report, though the disk does not keep it that it was reported."""
    with NamingStub() as stub:
        node = make_node(NAMING_URL=stub.url)
        node.start()
        store_many(node, 3)
        paths = [word for n in (1, 2, 3) for word in ("-P", str(node.disks[0] / f"damaged/7-{n}.0.new"))]
        node.restart_with(*paths, "-e", "trace=rename", "-e", "inject=rename:error=EROFS")
        for n in (1, 2, 3):
            flip(replica(node, f"7-{n}"), 5)

        wait_for(lambda: len(reported(stub)) >= 3, "all are reported", 30)
        assert "is read-only" in node.log.read_text()
        heard = len(stub.reports)
        wait_for(lambda: len(stub.reports) >= heard + 3, "the node has had time for more reports")
        assert sorted(reported(stub)) == ["7-1", "7-2", "7-3"]
        assert set_aside(node) == {"7-1", "7-2", "7-3"}


@pytest.mark.fault("S10")
def test_a_damaged_replica_is_kept_until_its_extent_is_said_to_be_healed(make_node: MakeNode) -> None:
    """No answer is no permission, and neither is one that does not name it."""
    with NamingStub() as stub:
        node = make_node(NAMING_URL=stub.url, DAMAGED_GRACE_SECONDS="1")
        node.start()
        store_many(node, 2)
        for extent in ("7-1", "7-2"):
            flip(replica(node, extent), 5)
        wait_for(lambda: set_aside(node) == {"7-1", "7-2"}, "the scrub has set them aside", 30)
        wait_for(lambda: stub.asked_healed >= 1, "it is asked, and does not answer", 30)

        def left_with(healed: list[str]) -> set[str]:
            asked, stub.healed = stub.asked_healed, healed
            wait_for(lambda: stub.asked_healed >= asked + 2 or not set_aside(node), "it was asked and heard", 30)
            return set_aside(node)

        assert left_with([]) == {"7-1", "7-2"}
        assert left_with(["7-2", "7-3"]) == {"7-1"}
        assert space(node)["disks"][0]["set_aside"] == 1


@pytest.mark.fault("S13")
def test_a_disk_that_errs_twice_is_taken_out(make_node: MakeNode) -> None:
    """One error is an accident. What lies on a failed disk counts as lost, and is served as long as it can be read."""
    node = make_node(disks=2)
    failing = node.disks[0] / "extents"
    node.start()
    bodies = store_many(node, 30, 300)
    there = {path.name for path in failing.glob("*/*")}
    node.http.post("/v1/barrier")
    buckets = [word for number in range(256) for word in ("-P", str(failing / f"{number:02x}"))]
    node.restart_with(*buckets, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1..2")
    statuses = [node.put(f"8-{number:x}", b"new", sync=True) for number in range(1, 41)]
    assert statuses.count(503) == 2
    assert statuses[-1] == 201
    assert disk_states(node) == ["failed", "good"]
    assert space(node)["disks"][0]["errors"] == 2
    listed = {extent for extent, _ in node.inventory() if extent.startswith("7-")}
    assert listed == set(bodies) - there
    sample = min(there)
    assert node.get(sample).content == bodies[sample]
    assert node.put(sample, bodies[sample]) == 201, "a good copy beside the one that counts as lost"
    assert node.http.post("/v1/extents/check", json={"extents": [sample]}).json()["extents"] == {sample: 300}


@pytest.mark.fault("S17")
def test_too_few_descriptors_send_writers_elsewhere_and_break_nothing(make_node: MakeNode) -> None:
    """S17: with 64 of them and a crowd of connections a store is done or refused; it works again when they leave."""
    node = make_node()
    node._command = ["prlimit", "--nofile=64:64", "--", *node._command]
    node.start()
    host, _, port = node.address.rpartition(":")
    crowd = [socket.create_connection((host, int(port)), timeout=10) for _ in range(80)]
    outcomes: list[int | None] = []
    for number in range(1, 40):
        try:
            outcomes.append(httpx.put(
                f"http://{node.address}/v1/extents/9-{number:x}", content=b"x", trust_env=False, timeout=2,
                headers={"authorization": AUTHORIZATION},
            ).status_code)  # fmt: skip
        except httpx.TransportError:
            outcomes.append(None)
        if number == 2:
            for connection in crowd:
                connection.close()
    assert set(outcomes) <= {201, 503, None}
    assert set(outcomes[:2]) <= {503, None}, "the crowd took all descriptors"
    assert 201 in outcomes
    assert node.is_running
    wait_for(lambda: node.put("9-ff", b"y") in (200, 201), "it takes extents again")
    assert disk_states(node) == ["good"]
    assert {extent for extent, length in node.inventory() if length != 1} == set()


@pytest.mark.fault("S12")
@pytest.mark.parametrize("kept", ["", "node.uuid"], ids=["nothing is kept", "its node's name is kept"])
def test_an_emptied_disk_ends_the_node_and_begins_another(make_node: MakeNode, kept: str) -> None:
    node = make_node()
    node.start()
    store_many(node, 3, 300)
    before = space(node)["uuid"]
    for path in node.disks[0].iterdir():
        if path.name != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    wait_for(lambda: not node.is_running, "a node without disks has ended")
    assert node.exit_status == 1
    node.start()
    assert space(node)["uuid"] != before
    assert node.inventory() == []


@pytest.mark.fault("S18")
def test_disks_of_two_nodes_are_not_mixed_and_none_is_used_twice(make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node(disks=2)
    node.start()
    other = StorageNode(tmp_path / "other", DATA_DIR=str(tmp_path / "disk1"))
    (tmp_path / "other").mkdir()
    with pytest.raises(AssertionError, match="another storage node uses"):
        other.start()
    node.stop()
    other.environment["DATA_DIR"] = str(tmp_path / "disk9")
    other.start()
    other.stop()
    node.environment["DATA_DIR"] = f"{tmp_path / 'disk0'},{tmp_path / 'disk9'}"
    with pytest.raises(AssertionError, match="mixes disks of two nodes"):
        node.start()
    node.environment["DATA_DIR"] = f"{tmp_path / 'disk0'},{tmp_path / 'disk0'}"
    with pytest.raises(AssertionError, match="names one directory twice"):
        node.start()
    other.close()
