"""Nodes die, are emptied and come back: what they held is where it should be again, and nobody notices.

`DCS_TEST_REPAIR_FILES` and `DCS_TEST_REPAIR_ROUNDS` make the long form: 10,000 files, 20 times.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Mount, Node
from tests.support.commands import MIB
from tests.support.fault_table import note_stall
from tests.support.processes import wait_for

FILES = int(os.environ.get("DCS_TEST_REPAIR_FILES", "300"))
ROUNDS = int(os.environ.get("DCS_TEST_REPAIR_ROUNDS", "1"))
HEALED_SECONDS = 120.0
STALL_SECONDS_MAX = 5.0
"""One stall of 2 s is allowed; the rest is what a busy machine with two cores adds."""


@pytest.fixture(scope="module")
def four() -> Iterator[Cluster]:
    """Four nodes, and a naming server that does not wait long for one that died."""
    with Cluster(4, DEAD_AFTER_SECONDS="8", REPAIR_WAIT_SECONDS="2", DRAIN_GRACE_SECONDS="3") as cluster:
        yield cluster
        for mount in cluster.mounts:
            if mount.process.is_running:
                mount.unmount()
        cluster.wait_clean()


@pytest.fixture(scope="module")
def mount(four: Cluster) -> Mount:
    return four.mount()


class Writer(threading.Thread):
    """Writes small files, `FILES` of them again and again, until it is told to stop, and remembers what it was told is
    stored."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.sums: dict[str, str] = {}
        self.written = 0
        self.longest = 0.0
        self.problem: OSError | None = None
        self._stop_now = threading.Event()

    def run(self) -> None:
        chance = random.Random(1)
        while not self._stop_now.is_set():
            name, content = f"{self.written % FILES}", chance.randbytes(chance.randrange(1, 20_000))
            began = time.monotonic()
            try:
                (self.directory / name).write_bytes(content)
            except OSError as error:
                self.problem = error
                return
            self.longest = max(self.longest, time.monotonic() - began)
            self.written += 1
            self.sums[name] = hashlib.sha256(content).hexdigest()

    def finish(self) -> None:
        """Nothing went wrong, and nothing took long."""
        self._stop_now.set()
        self.join(60)
        note_stall(self.longest)
        assert self.problem is None
        assert self.longest < STALL_SECONDS_MAX

    def check(self) -> None:
        for name, expected in self.sums.items():
            assert hashlib.sha256((self.directory / name).read_bytes()).hexdigest() == expected, name


@pytest.fixture
def writer(mount: Mount, request: pytest.FixtureRequest) -> Iterator[Writer]:
    directory = mount.path / f"made-{request.node.name[:40]}"
    directory.mkdir()
    writer = Writer(directory)
    writer.start()
    yield writer
    writer._stop_now.set()
    writer.join(60)


def is_whole(cluster: Cluster) -> bool:
    """Nothing is known to lack a copy, and every file was looked at since the nodes changed last."""
    status = cluster.status()
    return not (status["under_replicated"] or status["repair"]["surveying"] or status["repair"]["by_danger"])


def replicas_on_the_living(cluster: Cluster, away: Node) -> dict[str, int]:
    """How many copies of each extent lie on the disks of the other nodes."""
    counts: dict[str, int] = {}
    for node in cluster.nodes:
        if node is not away:
            for extent in node.extents():
                counts[extent] = counts.get(extent, 0) + 1
    return counts


@pytest.mark.timeout(600 * ROUNDS)
@pytest.mark.fault("S1")
def test_a_node_that_dies_under_load_is_healed_in_time(four: Cluster, mount: Mount, writer: Writer) -> None:
    """No error, no long stall, and soon every extent has three copies again; when it is back, no more than three."""
    for _ in range(ROUNDS):
        wanted = max(FILES, writer.written + FILES // 10)
        wait_for(lambda: writer.written >= wanted or writer.problem, f"{wanted} files are written", 400)  # noqa: B023
        victim = random.choice(four.nodes)
        held = victim.extents()
        victim.kill()
        began = time.monotonic()
        four.wait_state(victim, "dead")

        def healed() -> bool:
            counts = replicas_on_the_living(four, victim)  # noqa: B023
            return all(counts.get(extent, 3) >= 3 for extent in held)  # noqa: B023

        wait_for(healed, f"what {victim.name} held has three copies elsewhere", HEALED_SECONDS)
        print(f"{len(held)} extents healed {time.monotonic() - began:.0f} s after the death of {victim.name}")
        victim.start()
        four.wait_alive(4)
    writer.finish()
    mount.remount()
    writer.check()
    wait_for(lambda: is_whole(four) and not four.status()["repair"]["dropped"], "surplus copies are gone", 120)
    found = four.dcs_json("fsck", "--data", "--wait", "60")
    assert found["replicas"] == 3 * found["extents"]


@pytest.mark.timeout(400)
@pytest.mark.fault("S19")
def test_a_node_is_drained_while_files_are_written_and_another_dies(
    four: Cluster, mount: Mount, writer: Writer
) -> None:
    """Everything of the first is elsewhere before it may be switched off, and nothing is lost with the second."""
    wait_for(lambda: len(writer.sums) >= 50 or writer.problem, "files are written", 120)
    leaving, dying = random.sample(four.nodes, 2)
    four.dcs("drain", str(leaving.number), "--wait", seconds=200)
    dying.kill()
    four.wait_state(dying, "dead")
    writer.finish()
    mount.remount()
    writer.check()
    dying.start()
    leaving.stop()
    four.wait_alive(3)
    mount.remount()
    writer.check()
    four.dcs("undrain", str(leaving.number))
    leaving.start()
    four.wait_alive(4)
    assert not any(node["draining"] for node in four.rest("GET", "/v1/nodes").json()["nodes"])


@pytest.mark.timeout(300)
def test_files_are_brought_to_the_number_of_copies_that_is_asked_for(four: Cluster, mount: Mount) -> None:
    """More and fewer, by attribute and by command, of what is there and of what is made later."""
    four.wait_alive(4)
    directory = mount.path / "asked"
    directory.mkdir()
    (directory / "before").write_bytes(os.urandom(2 * MIB))
    os.setxattr(directory, "user.dcs.replicas", b"2")
    (directory / "after").write_bytes(os.urandom(MIB))
    assert os.getxattr(directory / "after", "user.dcs.replicas") == b"2"
    four.wait_whole("/asked/after", 2)
    four.wait_whole("/asked/before", 3)
    four.dcs("setrep", "-R", "4", "/asked")
    four.wait_whole("/asked/before", 4)
    four.wait_whole("/asked/after", 4)
    os.setxattr(directory / "before", "user.dcs.replicas", b"1")
    four.wait_whole("/asked/before", 1)
    assert len((directory / "before").read_bytes()) == 2 * MIB
    assert four.dcs_json("explain", "/asked/before")["replicas_good"] == 1
