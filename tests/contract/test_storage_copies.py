"""Copies from node to node: what an order brings, what it finds damaged, and what it leaves alone."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from servers.protocol.limits import BLOCK_BYTES, KIB, MIB
from servers.storage.extent_file import parse_footer
from servers.storage.replicate import Pace
from tests.support.journaled_disk import JournaledDisk
from tests.support.storage_node import StorageNode, header_of


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[StorageNode]]:
    """Three of them, the last one slow to fetch."""
    made = [StorageNode(tmp_path_factory.mktemp(f"n{n}")) for n in range(2)]
    made.append(StorageNode(tmp_path_factory.mktemp("slow"), REPAIR_BYTES_PER_SECOND=str(MIB)))
    for node in made:
        node.start()
    yield made
    for node in made:
        assert node.temporary_files() == []
        node.close()


def order(node: StorageNode, *copies: tuple[str, int, list[str]], meant: str = "") -> dict[str, Any]:
    wanted = [{"extent": extent, "length": length, "sources": sources} for extent, length, sources in copies]
    answer = node.http.post("/v1/copies", json={"node": meant, "copies": wanted})
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def flip(node: StorageNode, extent: str, at: int) -> None:
    path = node.path_of(extent)
    assert path is not None
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("size", [1, 4 * KIB, BLOCK_BYTES + 1, 9 * MIB])
def test_a_copy_is_what_the_writer_stored(nodes: list[StorageNode], size: int) -> None:
    """Data, sums and the writer's words; on stable storage when the answer comes."""
    one, two, _ = nodes
    body, extent = random.Random(size).randbytes(size), f"c-{size:x}"
    one.put(extent, body)
    assert order(two, (extent, size, [one.address])) == {"stored": [extent], "failed": {}, "damaged": []}
    assert two.get(extent).content == body
    path = two.path_of(extent)
    assert path is not None
    raw = path.read_bytes()
    assert parse_footer(raw[-20_000:], len(raw)).header == header_of(body)
    assert two.statistics()["unsynced"] == 0
    assert two.http.post("/v1/extents/check", json={"extents": [extent], "data": True}).json()["extents"] == {
        extent: size
    }


def test_a_bad_source_is_named_and_the_next_one_taken(nodes: list[StorageNode]) -> None:
    """Flipped, too short, not there, away: none of it is stored as if it were the extent."""
    one, two, _ = nodes
    body = bytes(200_000)
    for extent in ("d-1", "d-2", "d-3", "d-4"):
        two.put(extent, body)
    one.put("d-1", body)
    flip(one, "d-1", 70_000)
    one.put("d-2", body[:100])
    sources = [one.address, two.address]
    target = nodes[2]
    away = "127.0.0.1:1"
    reply = order(target, ("d-1", 200_000, sources), ("d-2", 200_000, sources), ("d-3", 1, sources),
                  ("d-4", 1, [away, two.address]), ("d-5", 1, sources), ("d-6", 1, []))  # fmt: skip
    assert sorted(reply["stored"]) == ["d-1", "d-2", "d-3", "d-4"]
    assert sorted(reply["failed"]) == ["d-5", "d-6"]
    found = {(row["extent"], row["source"]) for row in reply["damaged"]}
    assert found == {(f"d-{n}", one.address) for n in (1, 2, 3, 5)} | {("d-5", two.address)}
    assert all(target.get(f"d-{n}").content == body for n in (1, 2, 3, 4))


def test_a_damaged_replica_is_replaced_where_it_is_and_a_good_one_kept(nodes: list[StorageNode]) -> None:
    one, two, _ = nodes
    body = bytes(100_000)
    for extent in ("e-1", "e-2"):
        one.put(extent, body)
        two.put(extent, body)
    flip(two, "e-1", 99_999)
    question = {"extents": ["e-1", "e-2", "e-3"], "data": True}
    assert two.http.post("/v1/extents/check", json=question).json()["extents"] == {
        "e-1": -1,
        "e-2": 100_000,
        "e-3": None,
    }
    puts = two.statistics()["puts"]
    assert order(two, ("e-1", 1, [one.address]), ("e-2", 1, [one.address]))["failed"] == {}
    assert two.get("e-1").content == body
    assert two.statistics()["puts"] == puts + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.fault("S10")
def test_what_rots_below_memory_is_no_good_copy(nodes: list[StorageNode], tmp_path: Path) -> None:
    """It is read from the disk itself wherever a copy has to be vouched for: before others are dropped, by fsck, by
    explain, when it is stored again or copied here."""
    with JournaledDisk(tmp_path / "data", 64 * MIB) as disk, ExitStack() as stack:
        node = StorageNode(tmp_path, RESERVE_BYTES="0")
        stack.callback(node.close)
        node.start()
        bodies = {f"a-{n}": random.Random(n).randbytes(size) for n, size in enumerate((4096, 5000, 70_000, MIB), 1)}
        for extent, body in bodies.items():
            assert node.put(extent, body, sync=True) == nodes[0].put(extent, body) == 201
            assert node.get(extent).content == body
            disk.rot(body)
            assert node.get(extent).content == body, "it is in memory still"
        question = {"extents": ["a-1"], "data": True}
        assert node.http.post("/v1/extents/check", json=question).json()["extents"] == {"a-1": -1}
        assert node.http.get("/v1/extents/a-2/description").json()["verified"] is False
        assert node.put("a-3", bodies["a-3"], sync=True) == 201, "not 200: it was not there"
        assert order(node, ("a-4", MIB, [nodes[0].address]))["stored"] == ["a-4"]
        assert node.statistics()["set_aside"] == 4
        question["extents"] = ["a-3", "a-4"]
        assert node.http.post("/v1/extents/check", json=question).json()["extents"] == {"a-3": 70_000, "a-4": MIB}


def test_an_order_for_another_node_is_not_obeyed(nodes: list[StorageNode]) -> None:
    wanted = {"node": "f" * 32, "copies": []}
    assert nodes[0].http.post("/v1/copies", json=wanted).status_code == 409


def test_copies_keep_to_their_bandwidth(nodes: list[StorageNode]) -> None:
    one, _, slow = nodes
    for n in range(4):
        one.put(f"f-{n:x}" if n else "f-0", random.Random(n).randbytes(MIB))
    order(slow, ("f-0", MIB, [one.address]))
    began = time.monotonic()
    order(slow, *((f"f-{n}", MIB, [one.address]) for n in (1, 2, 3)))
    assert time.monotonic() - began > 2


def test_a_pace_lets_pass_so_many_bytes_a_second() -> None:
    pace = Pace(100.0)
    assert [pace.take(50, now) for now in (10.0, 10.0, 10.5, 20.0)] == [0.0, 0.5, 0.5, 0.0]
