"""Power is lost under storage nodes: what they had not synced is gone, what they had confirmed is there."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
import threading
import time
from collections.abc import Iterator, Sized
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest

from servers.protocol.ids import extent_session, parse_extent_text
from servers.protocol.limits import MIB
from tests.support.caller import Caller
from tests.support.cluster import Cluster, Mount, Node
from tests.support.delete_orders import give, order_of
from tests.support.fault_table import note_stall
from tests.support.journaled_disk import JournaledDisk
from tests.support.manifest import Manifest
from tests.support.naming_stub import NamingStub
from tests.support.processes import wait_for
from tests.support.storage_node import StorageNode
from tests.support.writing_program import WritingProgram

pytestmark = pytest.mark.long

DISK_BYTES = 1024 * MIB
ROUNDS = 3
STABLE_MIN = 6
TRIES = 5
CHUNK_BYTES = MIB
"""Uploaded long before a node syncs by itself, also on a busy machine."""
CHUNKS = 2
SYNCED_SECONDS = 6.0
STALL_SECONDS_MAX = 5.0
OUTAGE_SECONDS_MAX = 15.0
"""Of all nodes at once, on a busy machine: their restart, and what a mount takes to notice."""


class Storer(threading.Thread):
    """Stores with and without a sync, and asks for barriers, until the node fails it."""

    def __init__(self, node: StorageNode, who: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._node, self._who, self._chance = node, who, random.Random(seed)
        self.stable: dict[str, bytes] = {}
        """Synced by itself, or stored before a barrier began that has ended well."""
        self.stored: dict[str, bytes] = {}

    def run(self) -> None:
        for number in itertools.count(1):
            extent, sync = f"{self._who:x}-{number:x}", self._chance.random() < 0.4
            body = self._chance.randbytes(self._chance.choice((100, 5_000, 70_000, 600_000)))
            try:
                if self._node.put(extent, body, sync=sync) != 201:
                    return
                (self.stable if sync else self.stored)[extent] = body
                if self._chance.random() < 0.1:
                    if self._node.http.post("/v1/barrier").status_code != 200:
                        return
                    self.stable |= self.stored
                    self.stored.clear()
            except httpx.TransportError:
                return


def has_so_many(storers: list[Storer], count: int) -> bool:
    return sum(len(storer.stable) for storer in storers) >= count


def is_as_long(found: Sized, count: int) -> bool:
    return len(found) >= count


def check(node: StorageNode, storer: Storer) -> int:
    """How many were only stored, and are lost; they can be stored again. What is served is whole."""
    listed, lost = dict(node.inventory()), 0
    for extent, body in storer.stable.items():
        assert listed[extent] == len(body)
        assert node.get(extent).content == body, f"{extent} was on stable storage"
    for extent, body in storer.stored.items():
        answer = node.get(extent)
        if answer.status_code != 200:
            assert answer.status_code in (404, 500), answer.text
            lost += 1
            assert node.put(extent, body, sync=True) == 201
            answer = node.get(extent)
        assert answer.content == body
    return lost


@pytest.mark.fault("S8")
def test_what_a_node_confirmed_survives_a_loss_of_power(tmp_path: Path) -> None:
    """Synced, one by one or by a barrier: there, byte for byte. Only stored: there, or known not to be."""
    seed, lost = random.randrange(1 << 30), 0
    print(f"seed {seed}")
    with JournaledDisk(tmp_path / "data", DISK_BYTES) as disk, ExitStack() as stack:
        node = StorageNode(tmp_path)
        stack.callback(node.close)
        node.start()
        for number in range(ROUNDS):
            storers = [Storer(node, 16 * (number + 1) + who, seed + 16 * number + who) for who in range(3)]
            for storer in storers:
                storer.start()
            wait_for(partial(has_so_many, storers, STABLE_MIN), "the node has confirmed something")
            time.sleep(random.Random(seed + number).uniform(0.3, 1.5))
            disk.lose_power()
            node.kill()
            for storer in storers:
                storer.join(30)
            disk.come_back()
            node.start()
            assert node.temporary_files() == []
            lost += sum(check(node, storer) for storer in storers)
    assert lost, "nothing was lost: the power was on all the time"


@pytest.mark.fault("S8")
def test_what_a_node_deleted_does_not_come_back_after_a_loss_of_power(tmp_path: Path) -> None:
    """It would be garbage, and much garbage at once is not collected before an operator says so."""
    with JournaledDisk(tmp_path / "data", DISK_BYTES) as disk, NamingStub() as naming, ExitStack() as stack:
        node = StorageNode(tmp_path, NAMING_URL=naming.url)
        stack.callback(node.close)
        node.start()
        extents = [f"1-{number:x}" for number in range(1, 41)]
        assert {node.put(extent, b"x" * 5000, sync=True) for extent in extents} == {201}
        wait_for(lambda: node.http.get("/v1/space").json()["node"] == 42, "the node was told what time it is")
        for some in (extents[:20], extents[20:25]):
            assert give(node, order_of(node, *some)).json() == {"failed": []}
        disk.lose_power()
        node.kill()
        disk.come_back()
        node.start()
        assert sorted(extent for extent, _ in node.inventory()) == sorted(extents[25:])


@pytest.fixture(scope="module")
def disks() -> list[JournaledDisk]:
    return []


@pytest.fixture(scope="module")
def powered(disks: list[JournaledDisk]) -> Iterator[Cluster]:
    """Three nodes, each on a disk of its own."""
    with Cluster(nodes=0) as cluster:
        for index in (1, 2, 3):
            disk = JournaledDisk(cluster.directory / f"node{index}", DISK_BYTES)
            disks.append(cluster.cleanups.enter_context(disk))
            cluster.add_node()
        yield cluster
        for mount in cluster.mounts:
            mount.unmount()
        wait_whole(cluster)


@pytest.fixture(scope="module")
def mount(powered: Cluster) -> Mount:
    return powered.mount()


def wait_whole(powered: Cluster) -> None:
    """Every replica that the metadata knows is there and right, without anybody's asking for repair."""

    said = b""

    def is_whole() -> bool:
        nonlocal said
        found = powered.dcs("fsck", "--data", expect=None)
        said = found.stdout
        return found.returncode == 0

    try:
        wait_for(is_whole, "every replica is whole", 90)
    except AssertionError as error:
        raise AssertionError(f"{error}: {said.decode()}\n{powered.log_tails()}") from None


def power_cycle(powered: Cluster, disks: list[JournaledDisk], nodes: list[Node]) -> None:
    """All of them lose power at once, and start again."""
    pairs = [(node, disk) for node, disk in zip(powered.nodes, disks, strict=True) if node in nodes]
    for _, disk in pairs:
        disk.lose_power()
    for node, _ in pairs:
        node.kill()
    for node, disk in pairs:
        disk.come_back()
        node.start(wait=False)
    for node, _ in pairs:
        node.wait_ready()


@pytest.mark.fault("S8")
def test_a_node_that_loses_power_goes_unnoticed_and_gets_back_what_it_lost(
    powered: Cluster, disks: list[JournaledDisk], mount: Mount
) -> None:
    """A program that writes all the while meets no error; every byte is right and has three copies again."""
    (mount.path / "one").mkdir()
    manifest = powered.directory / "promises"
    with WritingProgram(mount.path / "one", manifest, seed=3) as program:
        for node in powered.nodes:
            program.must_go_on()
            power_cycle(powered, disks, [node])
            powered.wait_alive(3)
            # The next one is to lose nothing that only it has: copies are made anew, and synced within 5 s.
            wait_for(lambda: not powered.status()["under_replicated"], "what was lost is copied", 90)
            time.sleep(SYNCED_SECONDS)
        program.must_go_on()
    note_stall(program.stall_seconds)
    assert program.stall_seconds < STALL_SECONDS_MAX
    wait_whole(powered)
    mount.remount()
    promised = Manifest()
    promised.read(manifest)
    promised.check(mount.path / "one", promised.names)


@pytest.mark.fault("S8")
def test_what_fsync_confirmed_survives_when_all_nodes_lose_power(
    powered: Cluster, disks: list[JournaledDisk], mount: Mount
) -> None:
    """A stall and no error, and every synced byte is there."""
    synced: dict[str, str] = {}
    longest, end = 0.0, threading.Event()
    errors: list[str] = []
    (mount.path / "all").mkdir()

    def write(caller: Caller) -> None:
        nonlocal longest
        for number in itertools.count():
            data = os.urandom(random.choice((100, 70_000, 2 * MIB)))
            descriptor = caller.do("open", mount.path / "all" / str(number), os.O_WRONLY | os.O_CREAT)
            caller.do("write", descriptor, data)
            called = caller.call("fsync", descriptor)
            longest = max(longest, called.seconds)
            if called.errno:
                errors.append(os.strerror(called.errno))
            synced[str(number)] = hashlib.sha256(data).hexdigest()
            caller.do("close", descriptor)
            if end.is_set():
                return

    with Caller() as caller:
        thread = threading.Thread(target=write, args=(caller,), daemon=True)
        thread.start()
        for _ in range(2):
            wait_for(partial(is_as_long, synced, len(synced) + 3), "some files are synced", OUTAGE_SECONDS_MAX)
            power_cycle(powered, disks, powered.nodes)
            powered.wait_alive(3)
        end.set()
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []
    note_stall(longest)
    assert longest < OUTAGE_SECONDS_MAX
    mount.remount()
    for name, digest in synced.items():
        assert hashlib.sha256((mount.path / "all" / name).read_bytes()).hexdigest() == digest
    assert len(synced) > 5


def last_session(nodes: list[Node]) -> int:
    """That has stored anything. What a later one stores is not mistaken for what is copied or deleted meanwhile."""
    return max(extent_session(parse_extent_text(name)) for node in nodes for name in node.extents())


def have_chunks_of_later(nodes: list[Node], session: int, count: int) -> bool:
    found = [[parse_extent_text(name) for name in node.extents()] for node in nodes]
    return all(sum(extent_session(extent) > session for extent in extents) >= count for extents in found)


@pytest.mark.fault("S8")
def test_fsync_does_not_confirm_what_nodes_lost_before_it_came(
    powered: Cluster, disks: list[JournaledDisk], mount: Mount
) -> None:
    """What was uploaded while the program wrote on is lost with the power of all nodes, and the mount has let go of
    it: the fsync afterwards is an error, not a promise. What only one node lost, others have."""
    place = mount.path / "unsynced"
    place.mkdir()
    os.setxattr(place, "user.dcs.chunk_size", b"%d" % CHUNK_BYTES)
    content = os.urandom(CHUNKS * CHUNK_BYTES + 1)  # The last byte waits for the fsync.

    def errno_after_power_loss(name: str, losers: list[Node]) -> int:
        mount.remount()  # Of the nodes that lost power before, a new mount thinks nothing bad.
        before = last_session(powered.nodes)
        with Caller() as caller:
            descriptor = caller.do("open", place / name, os.O_WRONLY | os.O_CREAT)
            assert caller.do("write", descriptor, content) == len(content)
            is_uploaded = partial(have_chunks_of_later, powered.nodes, before, CHUNKS)
            wait_for(is_uploaded, f"{CHUNKS} chunks are on every node")
            power_cycle(powered, disks, losers)
            powered.wait_alive(3)
            synced: int = caller.call("fsync", descriptor).errno
            caller.call("close", descriptor)
        return synced

    assert errno_after_power_loss("by-one", powered.nodes[:1]) == 0
    found = 0
    for number in range(TRIES):
        found = errno_after_power_loss(f"by-all-{number}", powered.nodes)
        if found:
            (place / f"by-all-{number}").unlink()
            break
        # The nodes had synced by themselves: on a busy machine the power goes late.
        mount.remount()
        assert (place / f"by-all-{number}").read_bytes() == content
    assert found == errno.EIO
    mount.remount()
    assert (place / "by-one").read_bytes() == content
