"""Nodes die, are emptied and come back: what they held is where it should be again, and nobody notices.

`DCS_TEST_REPAIR_FILES` and `DCS_TEST_REPAIR_ROUNDS` make the long form: 10,000 files, 20 times.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import MakeCluster
from tests.support.cluster import Cluster, Mount, Node
from tests.support.commands import MIB
from tests.support.copies_watch import CopiesWatch
from tests.support.fault_table import note_stall
from tests.support.processes import wait_for

WRITERS = 4
FILES = int(os.environ.get("DCS_TEST_REPAIR_FILES", "300"))
ROUNDS = int(os.environ.get("DCS_TEST_REPAIR_ROUNDS", "1"))
ROTTEN_EXTENTS = 9
ROTTEN_BYTES = 64 * 1024
HEALED_SECONDS = 120.0
HEALED_SECONDS_MAX = 3 * HEALED_SECONDS
"""For some of many rounds, on a machine on which others are at work too."""
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


class Writer:
    """Writes small files, `FILES` of them again and again, until it is told to stop, and remembers what it was told is
    stored. The first time several threads share the work."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sums: dict[str, str] = {}
        self.written = 0
        self.longest = 0.0
        self.problem: OSError | None = None
        self._stop_now = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop_now.set()
        self._thread.join(60)

    def _run(self) -> None:
        with ThreadPoolExecutor(WRITERS) as first:
            list(first.map(self._write, range(FILES)))
        while not self._stop_now.is_set():
            self._write(self.written % FILES)

    def _write(self, number: int) -> None:
        if self._stop_now.is_set() or self.problem is not None:
            return
        name, content = f"{number}", random.randbytes(random.randrange(1, 20_000))
        began = time.monotonic()
        try:
            (self.directory / name).write_bytes(content)
        except OSError as error:
            self.problem = error
            return
        self.longest = max(self.longest, time.monotonic() - began)
        self.sums[name] = hashlib.sha256(content).hexdigest()
        self.written += 1

    def finish(self) -> None:
        """Nothing went wrong, and nothing took long."""
        self.stop()
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
    writer.stop()


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
    took: list[float] = []
    for _ in range(ROUNDS):
        wanted = max(FILES, writer.written + FILES // 10)
        wait_for(lambda: writer.written >= wanted or writer.problem, f"{wanted} files are written", 60 + FILES / 10)  # noqa: B023
        victim = random.choice(four.nodes)
        held = victim.extents()
        victim.kill()
        began = time.monotonic()
        four.wait_state(victim, "dead")

        def healed() -> bool:
            """What files do not show any more may be anywhere, and be gone."""
            if not is_whole(four):
                return False
            counts = replicas_on_the_living(four, victim)  # noqa: B023
            return all(counts.get(extent, 3) >= 3 for extent in held)  # noqa: B023

        wait_for(healed, f"what {victim.name} held has three copies elsewhere", HEALED_SECONDS_MAX)
        took.append(time.monotonic() - began)
        print(f"{len(held)} extents healed {took[-1]:.0f} s after the death of {victim.name}", flush=True)
        victim.start()
        four.wait_alive(4)
        assert writer.problem is None
    assert statistics.median(took) < HEALED_SECONDS
    writer.finish()
    mount.remount()
    writer.check()
    wait_for(lambda: is_whole(four) and not four.status()["repair"]["dropped"], "surplus copies are gone", 120)
    found = four.dcs_json("fsck", "--data", "--wait", "60", seconds=120 + FILES / 10)
    assert found["replicas"] == 3 * found["extents"]


@pytest.mark.timeout(400)
@pytest.mark.fault("S19")
def test_a_node_is_drained_while_files_are_written_and_another_dies(
    four: Cluster, mount: Mount, writer: Writer
) -> None:
    """Everything of the first is elsewhere before it may be switched off, and nothing is lost with the second: of each
    extent there are three good copies all the while, and two without the second."""
    wait_for(lambda: len(writer.sums) >= 50 or writer.problem, "files are written", 120)
    leaving, dying = random.sample(four.nodes, 2)
    with CopiesWatch(four, asked=3) as watch:
        four.dcs("drain", str(leaving.number), "--wait", seconds=200)
        watch.lose(dying)
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


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.fault("S1")
def test_what_was_rewritten_while_it_waited_for_a_copy_is_missed_by_nobody(make_cluster: MakeCluster) -> None:
    """Its old extents are gone from all nodes when there is one to copy them to."""
    cluster = make_cluster(4, DEAD_AFTER_SECONDS="8", REPAIR_WAIT_SECONDS="2")
    path = cluster.mount().path / "rewritten"
    path.write_bytes(os.urandom(MIB))
    replicas = cluster.replicas_of("/rewritten")
    holders = {replica.node for replica in replicas}
    (taker,) = [node for node in cluster.nodes if node.number not in holders]
    cluster.dcs("drain", str(taker.number))
    dying = cluster.node(replicas[0].node)
    dying.kill()
    wait_for(lambda: cluster.status()["under_replicated"], "the copy of the dead node is missed", 60)
    path.write_bytes(os.urandom(MIB))
    wait_for(lambda: not any(r.path.exists() for r in replicas[1:]), "the old extent is gone")
    cluster.dcs("undrain", str(taker.number))
    cluster.wait_whole("/rewritten", 3)
    wait_for(lambda: not cluster.status()["under_replicated"], "nothing is missed")
    dying.start()
    cluster.wait_alive(4)


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


@pytest.mark.timeout(180)
@pytest.mark.fault("S10")
def test_of_too_many_copies_the_rotten_one_goes(four: Cluster) -> None:
    """Nobody knew that it is rotten: a surplus copy goes only once those that stay were read. All good ones stay."""
    four.wait_alive(4)
    data = os.urandom(ROTTEN_EXTENTS * ROTTEN_BYTES)
    four.write("/too-many", data, "--chunk-size", str(ROTTEN_BYTES))
    replicas = four.all_replicas_of("/too-many")
    content = {r.extent: data[r.chunk * ROTTEN_BYTES :][: r.length] for r in replicas}
    assert len(content) == ROTTEN_EXTENTS
    # In turn the first, second and third copy of each: whichever is chosen unread is mostly a good one.
    of_extent = [sorted((r for r in replicas if r.extent == e), key=lambda r: r.node) for e in content]
    rotten = [copies[number % 3] for number, copies in enumerate(of_extent)]
    for replica in rotten:
        four.corrupt_chunk_on_disk(replica, at=ROTTEN_BYTES // 2)

    def is_good(path: Path) -> bool:
        try:
            return path.read_bytes().startswith(content[path.name])
        except FileNotFoundError:
            return False

    def held() -> list[list[bool]]:
        """Of each extent those on the disks, and whether they are good."""
        return [[is_good(path) for node in four.nodes if (path := node.path_of(extent))] for extent in content]

    with CopiesWatch(four, 2, lambda path: path.name not in content or is_good(path)):
        four.dcs("setrep", "2", "/too-many")
        wait_for(lambda: all(len(copies) == 2 for copies in held()), "two copies are left", 60)
    assert held() == [[True, True]] * ROTTEN_EXTENTS
    assert set(four.replicas_of("/too-many")) == set(replicas) - set(rotten)
    assert four.read("/too-many") == data


@pytest.mark.timeout(120)
@pytest.mark.fault("S1")
def test_what_waits_to_be_deleted_or_is_said_to_be_damaged_is_of_use_again(make_cluster: MakeCluster) -> None:
    """A copy that was dropped, where no other node could take one; and all copies of an extent, which are good."""
    cluster = make_cluster(3, CONDEMNED_GRACE_SECONDS="600")
    cluster.write("/f", os.urandom(MIB))
    cluster.dcs("setrep", "2", "/f")
    wait_for(lambda: cluster.status()["repair"]["dropped"] == 1, "one copy is dropped")
    cluster.dcs("setrep", "3", "/f")
    cluster.wait_whole("/f", 3)
    wait_for(lambda: not cluster.status()["repair"]["dropped"], "no copy is to be deleted")
    for replica in cluster.replicas_of("/f"):
        damage = {"extent": replica.extent, "node": replica.node, "why": "a disk that was away", "verified": True}
        assert cluster.rest("POST", "/v1/damage", damage).json() == {"new": 1}
    wait_for(lambda: not cluster.status()["damaged"], "the copies were read again")
    wait_for(lambda: not cluster.status()["missing"], "nothing is missed")


@pytest.mark.timeout(180)
@pytest.mark.fault("S12")
def test_a_node_that_is_gone_for_good_is_forgotten(make_cluster: MakeCluster) -> None:
    """Nothing waits for it any more; it is refused with its old disk, and a new node with an emptied one."""
    cluster = make_cluster(4, DEAD_AFTER_SECONDS="8", REPAIR_WAIT_SECONDS="2", DRAIN_GRACE_SECONDS="3")
    cluster.write("/stays", os.urandom(4 * MIB))
    cluster.write("/goes", os.urandom(MIB))
    for name in ("/stays", "/goes"):
        cluster.dcs("setrep", "4", name)
        cluster.wait_whole(name, 4)
    gone = cluster.nodes[0]
    gone.kill()
    cluster.wait_state(gone, "dead")
    cluster.dcs("delete", "/goes")
    cluster.dcs("setrep", "3", "/stays")
    assert "empty it first" in cluster.dcs("forget", str(gone.number), expect=1).stderr.decode()
    cluster.dcs("drain", str(gone.number), "--wait")
    cluster.dcs("undrain", str(gone.number))
    cluster.dcs("drain", str(gone.number))
    assert "empty it first" in cluster.dcs("forget", str(gone.number), expect=1).stderr.decode(), "it was so before"
    cluster.dcs("drain", str(gone.number), "--wait")
    cluster.dcs("forget", str(gone.number))
    cluster.wait_clean()
    assert {row["id"] for row in cluster.dcs_json("nodes")} == {node.number for node in cluster.nodes[1:]}
    gone.start()
    wait_for(lambda: "it was forgotten" in gone.log.read_text(), "the node is refused")
    assert len(cluster.dcs_json("nodes")) == 3
    gone.stop()
    shutil.rmtree(gone.data_dir)
    gone.data_dir.mkdir()
    gone.start()
    cluster.wait_alive(4)
    assert gone.number == 5
