"""Storage nodes die, hang and come back under a mount in use."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.cluster import Cluster, Mount, Node
from tests.support.commands import MIB, opened, pattern, refused, sha256_of, write_pattern
from tests.support.fault_table import note_stall
from tests.support.load import Load
from tests.support.manifest import Manifest
from tests.support.processes import wait_for
from tests.support.storage_node import RawConnection, StorageNode, header_of, raw_request
from tests.support.watched import read_watched, write_watched
from tests.support.writing_program import WritingProgram

MEBIBYTES = int(os.environ.get("DCS_TEST_FAULT_MIB", "256"))
SLACK = 1.5
"""What a busy machine with two cores adds to each of these."""
WRITE_STALL_SECONDS_MAX = 2.0 * SLACK
READ_STALL_SECONDS_MAX = {"kill": 1.5 * SLACK, "pause": 1.0 * SLACK}
RESTART_STALL_SECONDS_MAX = 2.0 * SLACK
QUICK_SECONDS_MAX = 0.6
"""Of a read from a node of which nothing bad is known."""
READ_SECONDS_MAX = 15.0 + 1.0
"""A read that no node answers fails after 15 s; the rest is what a busy machine with two cores adds."""
TWICE_SYNCED = """
import errno, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(descriptor, b"kept" * 50_000)
began, outcome = time.monotonic(), "synced"
try:
    os.fsync(descriptor)
except OSError as error:
    outcome = errno.errorcode[error.errno]
print(outcome, time.monotonic() - began, os.pread(descriptor, 8, 0).decode(), flush=True)
sys.stdin.readline()
began = time.monotonic()
os.fsync(descriptor)
print("synced", time.monotonic() - began, flush=True)
os.close(descriptor)
"""
CLOSED = """
import errno, os, sys, time
descriptor = os.open(sys.argv[1], os.O_WRONLY)
os.write(descriptor, b"later" * 40_000)
began, outcome = time.monotonic(), "closed"
try:
    os.close(descriptor)
except OSError as error:
    outcome = errno.errorcode[error.errno]
print(outcome, time.monotonic() - began)
"""


@pytest.fixture(scope="module")
def large(mounted: Cluster, mount: Mount) -> tuple[Path, str]:
    """A file larger than all caches of a mount, by its name in the volume, and its SHA-256."""
    digest = write_pattern(mount.path / "large", MEBIBYTES * MIB)
    return Path("large"), digest


@pytest.fixture
def revived(mounted: Cluster) -> Iterator[None]:
    """Whichever nodes the test hurts are alive again afterwards."""
    yield
    for node in mounted.nodes:
        node.resume()
        if not node.is_running:
            node.start()
    mounted.wait_alive(3)


@pytest.fixture
def victim(mounted: Cluster, revived: None) -> Node:
    """A node to be hurt."""
    return random.choice(mounted.nodes)


@pytest.fixture
def starved(victim: Node) -> Iterator[Node]:
    """It may have 64 descriptors."""
    plain = victim._command
    victim.stop()
    victim._command = ["prlimit", "--nofile=64:64", "--", *plain]
    victim.start()
    yield victim
    victim.stop()
    victim._command = plain


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Whoever opens something below it from now on meets a file system that is read-only."""
    for options in ("bind", "remount,ro,bind"):
        subprocess.run(["mount", "-o", options, directory, directory], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True, timeout=30)


def disk_state(cluster: Cluster, node: Node) -> str:
    (disk,) = next(row["disks"] for row in cluster.status()["nodes"] if row["id"] == node.number)
    return str(disk["state"])


def gets_of(cluster: Cluster, node: Node) -> int:
    """How often the node was asked for bytes of an extent since it was started."""
    headers = {"authorization": f"Bearer {cluster.secret}"}
    answer = httpx.get(f"http://{node.address}/v1/space", headers=headers, trust_env=False, timeout=10)
    return int(answer.json()["statistics"]["gets"])


def write_synced(path: Path, data: bytes) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
        os.write(descriptor, data)
        os.fsync(descriptor)


def trusted_by(mount: Mount, cluster: Cluster) -> None:
    """All nodes are alive and a new mount thinks nothing bad of them: what is written now has three copies."""
    cluster.wait_alive(3)
    mount.remount()


@pytest.mark.parametrize("fault", ["kill", "pause"])
@pytest.mark.fault("S1", "S3")
def test_a_node_lost_in_the_middle_of_writing_goes_unnoticed(
    mounted: Cluster, mount: Mount, victim: Node, fault: str
) -> None:
    """Killed or hanging: no error, no long stall, and the right bytes through an empty cache. Also when the one that
    hung has done what it was told meanwhile."""
    mount.remount()  # Of the nodes that earlier tests hurt, a new mount thinks nothing bad.
    file = mount.path / f"written-{fault}"
    digest, took = write_watched(file, MEBIBYTES * MIB, getattr(victim, fault))
    assert max(took) < WRITE_STALL_SECONDS_MAX
    mount.remount()
    assert sha256_of(file) == digest
    if fault == "pause":
        victim.resume()
        trusted_by(mount, mounted)
        assert sha256_of(file) == digest
        mounted.dcs("fsck", "--data", "--wait", "60", seconds=180)
    file.unlink()


@pytest.mark.parametrize("fault", ["kill", "pause"])
@pytest.mark.fault("S2", "S3")
@pytest.mark.usefixtures("revived")
def test_a_node_lost_in_the_middle_of_reading_goes_unnoticed(
    mounted: Cluster, mount: Mount, large: tuple[Path, str], fault: str
) -> None:
    """It is the one that most was read from until then: one read waits for another node, and those after it do not."""
    name, expected = large
    mount.remount()
    before = {node: gets_of(mounted, node) for node in mounted.nodes}

    def hurt_the_busiest() -> None:
        gets = {node: gets_of(mounted, node) - before[node] for node in mounted.nodes}
        busiest = max(mounted.nodes, key=lambda node: gets[node])
        assert gets[busiest] > 0
        getattr(busiest, fault)()

    digest, took = read_watched(mount.path / name, hurt_the_busiest)
    assert digest == expected
    assert max(took) < READ_STALL_SECONDS_MAX[fault]
    assert sum(seconds > QUICK_SECONDS_MAX for seconds in took) <= 1


@pytest.mark.fault("S3")
def test_small_files_can_be_made_and_read_while_a_node_hangs(mounted: Cluster, mount: Mount, victim: Node) -> None:
    """After the first stalls others are asked at once."""
    directory = mount.path / "while-one-hangs"
    directory.mkdir()
    victim.pause()
    writing, reading = list[float](), list[float]()
    for number in range(50):
        began = time.monotonic()
        (directory / str(number)).write_bytes(b"%d" % number * 1000)
        writing.append(time.monotonic() - began)
    for number in range(50):
        began = time.monotonic()
        assert (directory / str(number)).read_bytes() == b"%d" % number * 1000
        reading.append(time.monotonic() - began)
    note_stall(max(writing + reading))
    assert max(writing) < WRITE_STALL_SECONDS_MAX
    assert max(reading) < READ_STALL_SECONDS_MAX["pause"]
    assert sum(seconds > QUICK_SECONDS_MAX for seconds in writing) <= 2
    assert sum(seconds > QUICK_SECONDS_MAX for seconds in reading) <= 1


@pytest.mark.fault("S7")
def test_a_node_killed_while_it_stores_has_nothing_partial_afterwards(
    mounted: Cluster, mount: Mount, victim: Node
) -> None:
    """Every replica that it lists after its restart is whole; leftovers are gone."""
    file = mount.path / "while-killed"
    digest = hashlib.sha256()
    with opened(file, os.O_WRONLY | os.O_CREAT) as descriptor:
        for number, piece in enumerate(pattern(120 * MIB)):
            if number in (20, 50, 80):
                victim.kill()
                (victim.data_dir / "tmp" / "2a" / f"7-2a.{number}").write_bytes(b"half")
            if number in (30, 60, 90):
                victim.start(wait=False)
            digest.update(piece)
            os.write(descriptor, piece)
    victim.wait_ready()
    # What repair stores there at the moment is soon gone, too.
    wait_for(lambda: not [p for p in (victim.data_dir / "tmp").rglob("*") if p.is_file()], "no leftover is there")
    # What was cut short may be there whole, and unwanted, until it is collected.
    mounted.dcs("fsck", "--data", "--wait", "120", seconds=240)
    mount.remount()
    assert sha256_of(file) == digest.hexdigest()
    file.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.fault("S15")
def test_a_node_whose_disk_becomes_read_only_goes_unnoticed(mounted: Cluster, mount: Mount, victim: Node) -> None:
    """No error and no long stall for who writes; and who reads has no need of another node."""
    content, file = os.urandom(MIB), mount.path / "written-elsewhere"
    trusted_by(mount, mounted)
    (mount.path / "read-on").write_bytes(content)
    mounted.all_replicas_of("/read-on")
    with ExitStack() as faults:
        digest, took = write_watched(file, 60 * MIB, lambda: faults.enter_context(read_only(victim.data_dir)))
        assert max(took) < WRITE_STALL_SECONDS_MAX
        wait_for(lambda: disk_state(mounted, victim) == "read-only", "it is known that the disk takes nothing")
        mount.remount()
        assert sha256_of(file) == digest
        for node in mounted.nodes:
            if node is not victim:
                node.kill()
        assert (mount.path / "read-on").read_bytes() == content
    wait_for(lambda: disk_state(mounted, victim) == "good", "it is used again once it can be")
    file.unlink()


@pytest.mark.long
@pytest.mark.fault("S17")
def test_a_node_out_of_descriptors_goes_unnoticed(mounted: Cluster, mount: Mount, starved: Node) -> None:
    """With 200 connections that others keep open: no error, no long stall, and the right bytes; the node lives on, and
    stores again when they leave."""
    trusted_by(mount, mounted)
    host, _, port = starved.address.rpartition(":")
    file = mount.path / "few-descriptors"
    with ExitStack() as crowd:

        def gather() -> None:
            for _ in range(200):
                crowd.enter_context(socket.create_connection((host, int(port)), timeout=10))
            wait_for(lambda: len(os.listdir(f"/proc/{starved.pid}/fd")) >= 64, "it has no descriptor left")

        digest, writing = write_watched(file, MEBIBYTES * MIB, gather)
        mount.remount()
        found, reading = read_watched(file, gather)
        assert found == digest
        assert max(writing + reading) < WRITE_STALL_SECONDS_MAX
        assert starved.is_running
    trusted_by(mount, mounted)
    before = starved.extents()
    (mount.path / "few-descriptors-later").write_bytes(os.urandom(MIB))
    mounted.all_replicas_of("/few-descriptors-later")
    assert starved.extents() > before
    file.unlink()


@pytest.mark.timeout(240)
@pytest.mark.fault("S4")
def test_with_two_of_three_nodes_down_reads_go_on_and_writes_fail_in_time_and_recover(
    mounted: Cluster, mount: Mount
) -> None:
    """EIO after at most 30 s, from close too; what could not be stored stays, and a later fsync that returns 0 is true.
    Others see what was there before, and a mount that is content with one copy goes on writing."""
    trusted_by(mount, mounted)
    content, earlier, alone = os.urandom(MIB), b"early" * 40_000, os.urandom(MIB)
    (mount.path / "before").write_bytes(content)
    (mount.path / "overwritten").write_bytes(earlier)
    for name in ("/before", "/overwritten"):
        mounted.all_replicas_of(name)
    mount.remount()
    content_with_one = mounted.mount("content-with-one", MIN_WRITE_REPLICAS="1")
    first, second, _ = mounted.nodes
    first.kill()
    second.kill()
    assert (mount.path / "before").read_bytes() == content
    # In programs of their own: a descriptor of ours would be closed, and so flushed, by each program that we start.
    closer = subprocess.Popen(
        [sys.executable, "-c", CLOSED, mount.path / "overwritten"], stdout=subprocess.PIPE, text=True
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", TWICE_SYNCED, mount.path / "while-two-are-down"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with closer, writer:
        assert closer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout is not None
        began = time.monotonic()
        write_synced(content_with_one.path / "one-copy", alone)
        assert time.monotonic() - began < WRITE_STALL_SECONDS_MAX
        failed, seconds, kept = writer.stdout.readline().split()
        assert (failed, kept) == ("EIO", "keptkept")
        note_stall(float(seconds))
        assert 1 < float(seconds) < 33
        failed, seconds = closer.stdout.readline().split()
        assert failed == "EIO"
        assert 1 < float(seconds) < 33
        assert (content_with_one.path / "overwritten").read_bytes() == earlier
        first.start()
        writer.stdin.write("go on\n")
        writer.stdin.flush()
        outcome, seconds = writer.stdout.readline().split()
        assert outcome == "synced"
        assert float(seconds) < 5
    assert writer.returncode == closer.returncode == 0
    later = content_with_one.path / "overwritten"
    wait_for(lambda: later.read_bytes() == b"later" * 40_000, "what was closed is stored after all")
    second.start()
    mounted.wait_alive(3)
    mount.remount()
    assert (mount.path / "while-two-are-down").read_bytes() == b"kept" * 50_000
    assert (mount.path / "overwritten").read_bytes() == b"later" * 40_000
    assert (mount.path / "one-copy").read_bytes() == alone
    content_with_one.unmount()


@pytest.mark.timeout(240)
@pytest.mark.fault("S5")
def test_with_all_nodes_down_reads_fail_in_time_and_never_give_zeros(mounted: Cluster, mount: Mount) -> None:
    """EIO after at most 15 s, names and sizes go on; files are read again within 5 s of the return of one of them."""
    trusted_by(mount, mounted)
    content = os.urandom(3 * MIB)
    (mount.path / "unreachable").write_bytes(content)
    mounted.all_replicas_of("/unreachable")
    mount.remount()
    for node in mounted.nodes:
        node.kill()
    began = time.monotonic()
    with opened(mount.path / "unreachable", os.O_RDONLY) as descriptor:
        assert os.fstat(descriptor).st_size == 3 * MIB
        with refused(errno.EIO):
            os.pread(descriptor, MIB, 0)
        note_stall(time.monotonic() - began)
        assert time.monotonic() - began < READ_SECONDS_MAX
        assert "unreachable" in os.listdir(mount.path)
        first, *others = mounted.nodes
        first.start()
        began = time.monotonic()
        assert os.pread(descriptor, 4 * MIB, 0) == content
        assert time.monotonic() - began < 5
    for node in others:
        node.start()
    mounted.wait_alive(3)
    (mount.path / "after").write_bytes(b"works")


@pytest.mark.fault("S6")
def test_nodes_restarted_one_after_another_go_unnoticed(mounted: Cluster, mount: Mount, tmp_path: Path) -> None:
    """By SIGTERM, under programs that write and change names: no error and no long stall."""
    trusted_by(mount, mounted)
    directory, manifest = mount.path / "restarts", tmp_path / "promises"
    directory.mkdir()
    load = Load(directory / "load", threads=2)
    with load, WritingProgram(directory, manifest, seed=6) as program:
        for node in mounted.nodes:
            program.must_go_on()
            node.restart()
            mounted.wait_alive(3)
        program.must_go_on()
    stall = max(load.longest_seconds, program.stall_seconds)
    note_stall(stall)
    assert stall < RESTART_STALL_SECONDS_MAX
    mount.remount()
    load.check(directory / "load")
    promised = Manifest()
    promised.read(manifest)
    promised.check(directory, promised.names)


@pytest.mark.fault("S6")
def test_a_node_that_is_stopped_finishes_what_it_began_and_takes_nothing_new(tmp_path: Path) -> None:
    """The upload that was under way is answered, and is there after the restart."""
    node, body = StorageNode(tmp_path), os.urandom(3 * MIB)
    node.start()
    request = raw_request("PUT", "/v1/extents/7-1", body, f"dcs-extent: {header_of(body).pack()}")
    try:
        with RawConnection(node.address) as connection, RawConnection(node.address) as other:
            connection.send(request[: len(request) // 2])
            wait_for(lambda: node.http.get("/v1/space").status_code == 200, "the node works")
            node.signal(signal.SIGTERM)
            assert other.is_closed(), "a connection without a request under way is closed"
            with pytest.raises(OSError, match="refused"):
                RawConnection(node.address)
            connection.send(request[len(request) // 2 :])
            assert connection.reply().status == 201
        wait_for(lambda: not node.is_running, "the node has ended")
        assert node.exit_status == 0
        node.start()
        assert node.get("7-1").content == body
    finally:
        node.close()
