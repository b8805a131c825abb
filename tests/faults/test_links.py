"""What lies between a mount and the servers fails: packets lost one way or both, connections reset, links cut.

`far` is a mount at the end of a wire of its own; `near` is on the servers' side, and knows what really is there.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.caller import Caller
from tests.support.cluster import Cluster, Mount
from tests.support.commands import MIB, opened, sha256_of
from tests.support.fault_table import note_stall
from tests.support.load import Load, wait_steps
from tests.support.manifest import Manifest
from tests.support.processes import wait_for
from tests.support.watched import read_watched, write_watched
from tests.support.wire import Wire, WiredCluster
from tests.support.writing_program import WritingProgram

LEASE_SECONDS = 25
STALL_SECONDS_MAX = 5.0
"""One stall of 2 s is allowed; the rest is what a busy machine with two cores adds."""
CUT_STALL_SECONDS_MAX, REFUSED_STALL_SECONDS_MAX = 3.0, 1.0
"""2 s and 0.2 s are allowed for one node; the rest is likewise."""
FELT_SECONDS = 0.5
"""A call that takes longer has waited for what failed."""
LOST_SECONDS = 5.0
"""How long answers are lost."""
UNHEARD_SECONDS = 100
"""Longer than a mount remembers that a node was slow."""
FILE_MIB = 96


@pytest.fixture(scope="module")
def wired(wire: Wire) -> Iterator[WiredCluster]:
    """Three nodes. At the end no extent is missing, and none is left that no file shows."""
    with WiredCluster(wire, SESSION_LEASE_SECONDS=str(LEASE_SECONDS)) as cluster:
        yield cluster
        for mount in cluster.mounts:
            mount.unmount()
        cluster.wait_clean()


@pytest.fixture(scope="module")
def near(wired: WiredCluster) -> Mount:
    return wired.mount("near")


@pytest.fixture(scope="module")
def far(wired: WiredCluster, wire: Wire) -> Mount:
    # What is flushed is for the tests to say: here nothing but what they flush is on the nodes, or is told.
    return wired.mount("far", through=wire.enter, WRITE_BACK_SECONDS="600")


@contextmanager
def promises_kept(far: Mount, near: Mount, name: str) -> Iterator[tuple[Load, WritingProgram]]:
    """Programs make, append, rename and remove on `far` all the while; then `near` shows what they were promised."""
    (far.path / name).mkdir()
    manifest = far.path.parent / f"promises-{name}"
    load = Load(far.path / name / "load", threads=2)
    with load, WritingProgram(far.path / name, manifest, seed=1) as program:
        wait_steps(load, 20)
        yield load, program
        wait_steps(load, 40)
        program.must_go_on()
    note_stall(program.stall_seconds)
    near.remount()
    load.check(near.path / name / "load")
    promised = Manifest()
    promised.read(manifest)
    promised.check(near.path / name, promised.names)
    assert promised.promised > 5


@pytest.mark.fault("N5")
@pytest.mark.parametrize("lost", ["answers", "all that comes back"])
def test_what_the_naming_server_did_without_our_hearing_of_it_takes_effect_once(
    wired: WiredCluster, wire: Wire, far: Mount, near: Mount, lost: str
) -> None:
    """A stall and no error; nothing is done twice, nothing that was confirmed is missing."""
    lose = wire.lose_answers if lost == "answers" else wire.lose_all_from
    with promises_kept(far, near, f"n5-{lost[:3]}") as (load, program), lose(wired.address) as rules:
        time.sleep(LOST_SECONDS)
    assert rules.packets > 0
    assert max(load.longest_seconds, program.stall_seconds) < LOST_SECONDS + STALL_SECONDS_MAX


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.fault("N5")
def test_a_commit_that_was_done_unheard_is_not_laid_over_what_others_wrote_since(
    wired: WiredCluster, wire: Wire, far: Mount, near: Mount
) -> None:
    """EIO in time for who hears nothing. Meanwhile another mount writes over it, and its extents are deleted; the next
    fsync finds that all was done long ago, and changes nothing."""
    with Caller() as caller:
        descriptor = caller.do("open", far.path / "unheard", os.O_RDWR | os.O_CREAT)
        caller.do("pwrite", descriptor, b"older" * 1000, 0)
        with wire.lose_answers(wired.address):
            caller.begin("fsync", descriptor)
            wait_for(lambda: wired.status()["files"] and wired.replicas_of("/unheard"), "it is committed all the same")
            extents = {replica.extent for replica in wired.replicas_of("/unheard")}
            (near.path / "unheard").write_bytes(b"newer" * 1000)
            wait_for(lambda: not any(extents & node.extents() for node in wired.nodes), "what it had is deleted")
            assert caller.end().errno == errno.EIO
        caller.do("fsync", descriptor)
        caller.do("close", descriptor)
    near.remount()
    assert (near.path / "unheard").read_bytes() == b"newer" * 1000


@pytest.mark.fault("N5")
@pytest.mark.parametrize("nodes", [pytest.param(1, marks=pytest.mark.long), 3])
def test_what_nodes_stored_without_our_hearing_of_it_is_a_stall(
    wired: WiredCluster, wire: Wire, far: Mount, near: Mount, nodes: int
) -> None:
    """Short where others are left, else until answers come again; no error, and the right bytes."""
    silent = [node.address for node in wired.nodes[:nodes]]
    far.remount()
    with promises_kept(far, near, f"n5-nodes-{nodes}") as (load, program), wire.lose_answers(*silent) as rules:
        time.sleep(LOST_SECONDS)
    assert rules.packets > 0
    stall = max(load.longest_seconds, program.stall_seconds)
    assert stall < STALL_SECONDS_MAX + (LOST_SECONDS if nodes == 3 else 0)


@pytest.mark.parametrize("fault", [pytest.param("cut off", marks=pytest.mark.fault("N1")),
                                   pytest.param("refused", marks=pytest.mark.fault("N2"))])  # fmt: skip
def test_a_node_that_only_this_mount_cannot_reach_goes_unnoticed(
    wired: WiredCluster, wire: Wire, far: Mount, near: Mount, fault: str
) -> None:
    """In the middle of writing and of reading: no error, one stall at most and no long one, the right bytes. The naming
    server and the other nodes go on to hear of it, so it stays alive for everybody."""
    node = wired.nodes[0]
    name = f"one-{fault[:3]}"
    rules = wire.cut(node.address) if fault == "cut off" else wire.refuse(node.address)
    far.remount()
    with ExitStack() as faults:
        digest, writing = write_watched(far.path / name, FILE_MIB * MIB, lambda: faults.enter_context(rules))
    assert rules.packets > 0
    assert sha256_of(near.path / name) == digest
    far.remount()
    with ExitStack() as faults:
        found, reading = read_watched(far.path / name, lambda: faults.enter_context(rules))
    assert found == digest
    for took in (writing, reading):
        assert max(took) < (CUT_STALL_SECONDS_MAX if fault == "cut off" else REFUSED_STALL_SECONDS_MAX)
        assert sum(seconds > FELT_SECONDS for seconds in took) <= 1, sorted(took)[-5:]
    assert any(row["number"] == node.number and row["state"] == "alive" for row in nodes_of(wired))
    (near.path / name).unlink()


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.fault("N5")
def test_a_node_that_is_alive_and_gives_a_mount_nothing_keeps_one_read_waiting(
    wired: WiredCluster, wire: Wire, far: Mount, near: Mount
) -> None:
    """In minutes, not again whenever the memory of it has faded."""
    place, names = far.path / "silent", [f"{number}" for number in range(400)]
    (near.path / "silent").mkdir()
    for name in names:
        (near.path / "silent" / name).write_bytes(os.urandom(2000))
    far.remount()
    node, took = wired.nodes[0], []
    with wire.lose_answers(node.address) as rules:
        for name in names:
            began = time.monotonic()
            assert len((place / name).read_bytes()) == 2000
            took.append(time.monotonic() - began)
            time.sleep(UNHEARD_SECONDS / len(names))
    assert rules.packets > 0
    assert any(row["number"] == node.number and row["state"] == "alive" for row in nodes_of(wired))
    note_stall(max(took))
    assert sum(seconds > 0.4 for seconds in took) <= 1, [f"{seconds:.2f}" for seconds in took if seconds > 0.1]


@pytest.mark.fault("N2")
def test_a_node_that_refuses_connections_costs_small_files_nothing(wired: WiredCluster, wire: Wire, far: Mount) -> None:
    """Files made and read one after another, the first of them as the connections are reset."""
    (far.path / "refused").mkdir()
    far.remount()
    (far.path / "refused" / "before").write_bytes(b"connections are there")
    rules, took = wire.refuse(wired.nodes[1].address), list[float]()
    with rules:
        for number in range(40):
            began = time.monotonic()
            (far.path / "refused" / str(number)).write_bytes(b"%d" % number * 1000)
            took.append(time.monotonic() - began)
    assert rules.packets > 0
    with rules:
        far.remount()
        for number in range(40):
            began = time.monotonic()
            content = (far.path / "refused" / str(number)).read_bytes()
            took.append(time.monotonic() - began)
            assert content == b"%d" % number * 1000
    assert rules.packets > 0
    note_stall(max(took))
    assert max(took) < FELT_SECONDS


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.fault("N3")
def test_without_any_node_reads_and_writes_fail_in_time_and_names_go_on(
    wired: WiredCluster, wire: Wire, far: Mount, near: Mount
) -> None:
    """EIO for a read within 15 s and for a close within 30 s; all is well within 5 s of the nodes' return, and what
    could not be stored is then stored."""
    content = os.urandom(3 * MIB)
    (far.path / "cold").write_bytes(content)
    far.remount()
    with Caller() as reader, Caller() as writer:
        read = reader.do("open", far.path / "cold", os.O_RDONLY)
        written = writer.do("open", far.path / "unstored", os.O_RDWR | os.O_CREAT)
        writer.do("write", written, b"kept" * 50_000)
        with wire.cut(*(node.address for node in wired.nodes)):
            reader.begin("pread", read, MIB, 0)
            writer.begin("close", written)
            began = time.monotonic()
            assert {"cold", "unstored"} <= set(os.listdir(far.path))
            (far.path / "renamed-meanwhile").mkdir()
            assert (far.path / "cold").stat().st_size == len(content)
            assert time.monotonic() - began < 5
            failed_read, failed_close = reader.end(), writer.end()
        assert (failed_read.errno, failed_close.errno) == (errno.EIO, errno.EIO)
        assert failed_read.seconds < 15 + 2
        assert failed_close.seconds < 30 + 3
        note_stall(failed_close.seconds)
        began = time.monotonic()
        assert reader.do("pread", read, 4 * MIB, 0) == content
        with opened(far.path / "afterwards", os.O_WRONLY | os.O_CREAT) as descriptor:
            os.write(descriptor, b"synced")
            os.fsync(descriptor)
        assert time.monotonic() - began < 5
    wait_for(lambda: (near.path / "unstored").stat().st_size == 200_000, "what was not stored is, later")
    assert (near.path / "unstored").read_bytes() == b"kept" * 50_000


@pytest.mark.fault("N4")
def test_the_naming_server_out_of_reach_for_a_while_is_a_stall_and_no_error(
    wired: WiredCluster, wire: Wire, far: Mount, near: Mount
) -> None:
    """Open files are read on meanwhile."""
    content = os.urandom(300_000)
    (near.path / "read-on").write_bytes(content)
    time_cut(wired, wire, far, near, content, 5)


@pytest.mark.long
@pytest.mark.fault("N4")
def test_the_naming_server_out_of_reach_for_twenty_seconds_is_a_stall_and_no_error(
    wired: WiredCluster, wire: Wire, far: Mount, near: Mount
) -> None:
    content = os.urandom(300_000)
    (near.path / "read-on").write_bytes(content)
    time_cut(wired, wire, far, near, content, 20)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.fault("N4")
def test_a_mount_cut_off_for_longer_than_its_lease_never_writes_over_what_is_newer(
    wired: WiredCluster, wire: Wire, far: Mount, near: Mount
) -> None:
    """EIO in time; after the return EIO or ESTALE for what others changed meanwhile, whether or not a flush had been
    tried, and what nobody changed is stored. Handles without unwritten data go on, unless their file is gone."""
    names = ("tried", "waits", "alone", "clean", "gone")
    for name in names:
        (near.path / name).write_bytes(b"first " * 1000)
    far.remount()
    sessions = wired.status()["sessions"]
    with Caller() as caller, Caller() as other:
        modes = (os.O_RDWR, os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_RDONLY)
        files = {n: caller.do("open", far.path / n, m) for n, m in zip(names, modes, strict=True)}
        time.sleep(1)  # Until the metadata was told what is open.
        for name in ("tried", "waits", "alone"):
            caller.do("pwrite", files[name], b"stale", 0)
        with wire.cut(wired.address):
            caller.begin("fsync", files["tried"])
            other.begin("mkdir", far.path / "not-made")
            for failed in (caller.end(), other.end()):
                assert failed.errno == errno.EIO
                assert failed.seconds < 30 + 3
            note_stall(failed.seconds)
            wait_for(lambda: wired.status()["sessions"] < sessions, "the lease has run out", 60)
            (near.path / "tried").write_bytes(b"newer")
            (near.path / "waits").write_bytes(b"newer")
            (near.path / "gone").unlink()
        for name in ("waits", "tried"):
            assert caller.call("fsync", files[name]).errno in (errno.EIO, errno.ESTALE), name
            caller.do("fsync", files[name])  # It was told once.
        caller.do("fsync", files["alone"])
        assert caller.do("pread", files["clean"], 6000, 0) == b"first " * 1000
        gone = caller.call("pread", files["gone"], 6000, 0)
        assert gone.errno == errno.ESTALE or gone.value == b"first " * 1000
        for name in names:
            caller.call("close", files[name])
    subprocess.run(["fusermount3", "-u", far.path], check=True, timeout=30)
    wait_for(lambda: not far.process.is_running, "the daemon has ended", 60)
    assert far.process.exit_status == 1, "what was written and lost is told"
    far.start()
    near.remount()
    for mount in (near, far):
        assert (mount.path / "tried").read_bytes() == (mount.path / "waits").read_bytes() == b"newer"
        assert (mount.path / "alone").read_bytes() == b"stale " + b"first " * 999
    (far.path / "not-made").mkdir(exist_ok=True)


def time_cut(wired: WiredCluster, wire: Wire, far: Mount, near: Mount, content: bytes, seconds: int) -> None:
    far.remount()
    with promises_kept(far, near, f"n4-{seconds}") as (load, program), Caller() as reader:
        descriptor = reader.do("open", far.path / "read-on", os.O_RDONLY)
        assert reader.do("pread", descriptor, 10, 0) == content[:10]
        with wire.cut(wired.address) as rules:
            began = time.monotonic()
            assert reader.do("pread", descriptor, 200_000, 1000) == content[1000:201_000]
            assert time.monotonic() - began < STALL_SECONDS_MAX
            time.sleep(seconds)
    assert rules.packets > 0
    assert max(load.longest_seconds, program.stall_seconds) < seconds + STALL_SECONDS_MAX


def nodes_of(cluster: Cluster) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = cluster.rest("GET", "/v1/nodes").json()["nodes"]
    return rows
