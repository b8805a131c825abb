"""The mount's extents on real storage nodes, which are killed, stopped and damaged on their disks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from fusefs.chunks.client import StoredExtent
from fusefs.chunks.limits import Limits
from servers.protocol.errors import AccessDenied, ExtentDamaged
from servers.protocol.ids import NodeNumber, extent_text
from servers.protocol.limits import MIB
from servers.protocol.placement import NodeView
from tests.support.cluster import Node
from tests.support.extent_user import ExtentUser
from tests.support.processes import base_environment, free_port, is_healthy

pytestmark = pytest.mark.anyio

SECRET = "secret-of-three-nodes"


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class ThreeNodes(ExtentUser):
    def __init__(self, directory: Path) -> None:
        self.nodes = [self._make_node(directory, number) for number in (1, 2, 3)]
        for node in self.nodes:
            node.start(wait=False)
        for node in self.nodes:
            node.wait_ready()
        room = 1 << 40
        views = [
            NodeView(NodeNumber(n.number), _uuid_of(n), n.address, "alive", room, 0, room, n.name) for n in self.nodes
        ]
        super().__init__(views, SECRET, Limits())

    @staticmethod
    def _make_node(directory: Path, number: int) -> Node:
        port = free_port()
        address, data_dir = f"127.0.0.1:{port}", directory / f"node{number}"
        environment = {
            **base_environment(), "PORT": str(port), "DATA_DIR": str(data_dir), "NAMING_URL": "", "DCS_SECRET": SECRET,
        }  # fmt: skip
        command = [sys.executable, "-m", "servers.storage"]
        node = Node(f"node{number}", command, environment, directory / f"node{number}.log", lambda: is_healthy(address))
        node.number, node.data_dir, node.address = number, data_dir, address
        return node

    def path_of(self, stored: StoredExtent, number: int) -> Path:
        path = self.nodes[number - 1].path_of(extent_text(stored.extent))
        assert path is not None
        return path

    async def close(self) -> None:
        await self.transport.close()
        for node in self.nodes:
            node.stop()


def _uuid_of(node: Node) -> str:
    return (node.data_dir / "node.uuid").read_text().strip()


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[ThreeNodes]:
    three = ThreeNodes(tmp_path)
    try:
        yield three
    finally:
        await three.close()


@pytest.mark.parametrize("length", [1, 65_536, 65_537, 8 * MIB])
async def test_what_was_stored_comes_back(three: ThreeNodes, length: int) -> None:
    data = os.urandom(length)
    for sync in (False, True):
        stored = await three.store(data, sync=sync)
        assert sorted(stored.nodes) == [1, 2, 3]
        assert await three.fetch(stored) == data
        assert await three.fetch(stored, length - 1, length) == data[-1:]
    assert await three.client.barrier(stored.nodes) == {1, 2, 3}
    assert three.damage == []


async def test_more_than_there_is_is_damage(three: ThreeNodes) -> None:
    stored = await three.store(b"x" * 65_536)
    for start, end in ((0, 65_537), (65_536, 65_537), (10 * MIB, 10 * MIB + 1)):
        with pytest.raises(ExtentDamaged):
            await three.fetch(stored, start, end)


async def test_right_bytes_with_one_replica_flipped_one_truncated_and_one_deleted(three: ThreeNodes) -> None:
    """Two of three at a time; all three is an error and never other bytes."""
    data = os.urandom(MIB)

    def flip(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(300_000)
            byte = file.read(1)[0]
            file.seek(300_000)
            file.write(bytes([byte ^ 16]))

    def truncate(path: Path) -> None:
        os.truncate(path, path.stat().st_size - 1)

    harms: list[Callable[[Path], None]] = [flip, truncate, Path.unlink]
    for good in (1, 2, 3):
        stored = await three.store(data)
        three.damage.clear()
        damaged = [n for n in (1, 2, 3) if n != good]
        for number, harm in zip(damaged, (harms[good - 1], harms[good % 3]), strict=True):
            harm(three.path_of(stored, number))
        for _ in range(6):
            # The one that was slow lately is read last: so the damaged ones are read at all.
            three.replicas.measured(NodeNumber(good), 10.0, trio.current_time())
            assert await three.fetch(stored) == data
        assert {number for _, number, _ in three.damage} == set(damaged)
        truncate(three.path_of(stored, good))
        began = time.monotonic()
        with pytest.raises(ExtentDamaged):
            await three.fetch(stored)
        assert time.monotonic() - began < 2
        assert {number for _, number, _ in three.damage} == {1, 2, 3}


async def test_one_node_killed_in_the_middle_of_storing_goes_unnoticed(three: ThreeNodes) -> None:
    """And what was stored while it was away is read when it is back and the two others are gone."""
    contents = [os.urandom(2 * MIB) for _ in range(12)]
    stored: dict[int, StoredExtent] = {}

    async def store(index: int) -> None:
        stored[index] = await three.store(contents[index])

    async with trio.open_nursery() as nursery:
        for index in range(len(contents)):
            nursery.start_soon(store, index)
            if index == 5:
                await trio.sleep(0.02)
                three.nodes[1].kill()
    assert all(len(s.nodes) >= 2 for s in stored.values())
    for index, s in stored.items():
        assert await three.fetch(s) == contents[index]
    three.nodes[1].start()
    three.nodes[0].kill()
    for index, s in stored.items():
        assert await three.fetch(s) == contents[index]
    assert three.damage == []


async def test_a_stopped_node_costs_one_stall_for_writers_and_readers(three: ThreeNodes) -> None:
    stored = await three.store(b"before")
    three.nodes[0].pause()
    began = time.monotonic()
    during = await three.store(os.urandom(8 * MIB))
    assert time.monotonic() - began < 3.5
    assert sorted(during.nodes) == [2, 3]
    began = time.monotonic()
    for _ in range(5):
        await three.store(os.urandom(MIB))
        assert await three.fetch(stored) == b"before"
    assert time.monotonic() - began < 3
    three.nodes[0].resume()


async def test_a_node_with_another_secret_is_not_asked_for_long(three: ThreeNodes) -> None:
    await three.transport.close()
    stranger = ExtentUser(list(three.replicas.candidates_for_writing(0, 0)), "wrong", Limits(read_deadline_seconds=0.5))
    try:
        with pytest.raises(AccessDenied):
            await stranger.transport.request(three.nodes[0].address, "GET", "/v1/space")
    finally:
        await stranger.transport.close()
