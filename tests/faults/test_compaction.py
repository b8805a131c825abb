"""Randomly written files are compacted behind the backs of writers and readers, and in spite of crashes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.protocol.limits import LONG_SEGMENTS_MIN, VERY_LONG_SEGMENTS_MIN
from tests.support.cluster import Cluster, Mount
from tests.support.commands import MIB, opened
from tests.support.processes import wait_for

SIZE, PIECE = MIB, 4096


@pytest.fixture(scope="module")
def busy() -> Iterator[Cluster]:
    """Compaction waits for nothing here, and what it replaces is deleted at once."""
    with Cluster(
        4, COMPACTION_QUIET_SECONDS="0", COMPACTION_INTERVAL_SECONDS="0.1", CONDEMNED_GRACE_SECONDS="1"
    ) as made:
        yield made
        for mount in made.mounts:
            mount.unmount()
        made.wait_clean()


@pytest.fixture(scope="module")
def mount(busy: Cluster) -> Mount:
    return busy.mount()


def segments_of(cluster: Cluster, name: str) -> int:
    file = cluster.rest("GET", f"/files?name={name}").json()["file_id"]
    return len(cluster.rest("GET", f"/files/{file}/chunks/0").json()["parts"])


def write_at_random(path: Path, seed: int, count: int) -> subprocess.Popen[bytes]:
    """A process that fills the file and then writes pieces at random places, each synced.

    A process of its own: a program started by the one that has the file open would wait for the naming server as
    it closes what it inherited, even if it is the naming server.
    """
    command = [sys.executable, "-c", WRITER, str(path), str(seed), str(count), str(SIZE), str(PIECE)]
    return subprocess.Popen(command, cwd="/")


def write_in_pieces(path: Path, numbers: range) -> None:
    """Each is an extent of its own, and filled with its number."""
    with opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
        for n in numbers:
            os.pwrite(descriptor, bytes([n % 256]) * PIECE, n * PIECE)
            os.fdatasync(descriptor)


WRITER = """
import os, random, sys
path, seed, count, size, piece = sys.argv[1], *map(int, sys.argv[2:])
chance = random.Random(seed)
descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
os.pwrite(descriptor, chance.randbytes(size), 0)
for _ in range(count):
    os.pwrite(descriptor, chance.randbytes(piece), chance.randrange(size // piece) * piece)
    os.fdatasync(descriptor)
os.close(descriptor)
"""


def written_at_random(seed: int, count: int) -> bytes:
    """What the file is then."""
    chance = random.Random(seed)
    content = bytearray(chance.randbytes(SIZE))
    for _ in range(count):
        piece, at = chance.randbytes(PIECE), chance.randrange(SIZE // PIECE) * PIECE
        content[at : at + PIECE] = piece
    return bytes(content)


@pytest.mark.timeout(200)
def test_a_randomly_written_file_is_compacted_under_its_readers(busy: Cluster, mount: Mount) -> None:
    """The reader has the file open all the while, longer than what was replaced is kept."""
    path, expected = mount.path / "quiet", written_at_random(1, 150)
    assert write_at_random(path, 1, 150).wait(100) == 0
    with opened(path, os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, SIZE, 0) == expected
        wait_for(lambda: segments_of(busy, "quiet") < LONG_SEGMENTS_MIN, "the list is short again", 60)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            assert os.pread(descriptor, SIZE, 0) == expected
    mount.remount()
    assert path.read_bytes() == expected


@pytest.mark.timeout(200)
def test_what_cannot_be_compacted_now_stops_nothing_else_and_is_not_forgotten(busy: Cluster, mount: Mount) -> None:
    """A chunk that is asked for in more copies than there are nodes, unless each write has become slow by its length;
    and one with a piece that is lost."""
    wide, very_wide, lost, other = (mount.path / name for name in ("wide", "very-wide", "lost", "other"))
    for path in (wide, very_wide):
        path.touch()
        os.setxattr(path, "user.dcs.replicas", b"5")
    write_in_pieces(wide, range(80))
    write_in_pieces(lost, range(40))
    pieces = busy.replicas_of("/lost")
    for replica in pieces:
        if replica.extent == pieces[0].extent:
            busy.delete_chunk_on_disk(replica)
    write_in_pieces(lost, range(40, 80))
    write_in_pieces(other, range(80))
    wait_for(lambda: segments_of(busy, "other") < LONG_SEGMENTS_MIN, "what comes after them is compacted", 60)
    write_in_pieces(very_wide, range(VERY_LONG_SEGMENTS_MIN + 10))
    wait_for(lambda: segments_of(busy, "very-wide") < LONG_SEGMENTS_MIN, "it has the copies that there can be", 60)
    assert (segments_of(busy, "wide"), segments_of(busy, "lost")) == (80, 80)
    os.setxattr(wide, "user.dcs.replicas", b"3")
    wait_for(lambda: segments_of(busy, "wide") < LONG_SEGMENTS_MIN, "it is compacted once it can be", 60)
    lost.unlink()
    mount.remount()
    assert very_wide.read_bytes() == b"".join(bytes([n % 256]) * PIECE for n in range(VERY_LONG_SEGMENTS_MIN + 10))
    assert wide.read_bytes() == other.read_bytes() == b"".join(bytes([n]) * PIECE for n in range(80))


@pytest.mark.timeout(250)
def test_writers_nodes_and_naming_servers_that_die_lose_nothing_to_compaction(busy: Cluster, mount: Mount) -> None:
    """What was written while a chunk was compacted is there; a crash leaves the old list or the new one."""
    path = mount.path / "busy"
    writer = write_at_random(path, 2, 300)
    for victim in (busy.naming, busy.nodes[0], busy.naming):
        time.sleep(0.7)
        victim.kill()
        victim.start()
    assert writer.wait(150) == 0, busy.log_tails()
    wait_for(lambda: segments_of(busy, "busy") < LONG_SEGMENTS_MIN, "the list is short again", 60)
    mount.remount()
    assert path.read_bytes() == written_at_random(2, 300)
