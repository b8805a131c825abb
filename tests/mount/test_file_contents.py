"""Bytes of files: what one handle writes the others see, and what a mapping changes stays."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.commands import MIB, opened, refused, run, sha256_of, write_pattern
from tests.support.processes import wait_for

LARGE_MIB = int(os.environ.get("DCS_TEST_LARGE_MIB", "512"))
MEMORY_MIB_MAX = 500
CHUNK = 8 * MIB
OPENS = 1000


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mebibytes", [LARGE_MIB, pytest.param(4096, marks=pytest.mark.long)])
def test_a_large_file_is_the_same_after_a_remount(mounted: Cluster, mebibytes: int) -> None:
    mount = mounted.mount("large")
    file = mount.path / "large"
    digest = write_pattern(file, mebibytes * MIB)
    assert file.stat().st_size == mebibytes * MIB
    mount.remount()
    assert file.stat().st_size == mebibytes * MIB
    assert sha256_of(file) == digest
    file.unlink()
    mount.unmount()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("mebibytes", [1024, pytest.param(8192, marks=pytest.mark.long)])
def test_the_mount_needs_little_memory_however_much_is_written(mounted: Cluster, mebibytes: int) -> None:
    mount = mounted.mount("memory")
    file = mount.path / "much"
    write_pattern(file, mebibytes * MIB)
    status = Path(f"/proc/{mount.process.pid}/status").read_text()
    most = next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    file.unlink()
    mount.unmount()
    assert most < MEMORY_MIB_MAX, f"{most} MiB"


def test_holes_read_as_zeros_and_take_no_space(place: Path) -> None:
    file = place / "sparse"
    with file.open("wb") as writing:
        writing.seek(1 << 40)
        writing.write(b"end")
        writing.seek(3 * CHUNK - 1)
        writing.write(b"xy")
    assert file.stat().st_size == (1 << 40) + 3
    assert file.stat().st_blocks * 512 < MIB
    assert int(run("du", "-k", file).split()[0]) < 1024
    with file.open("rb") as reading:
        assert reading.read(MIB) == bytes(MIB)
        reading.seek(3 * CHUNK - 3)
        assert reading.read(6) == b"\0\0xy\0\0"
        reading.seek((1 << 40) - 2)
        assert reading.read() == b"\0\0end"


def test_a_mapped_file_keeps_what_was_changed_in_memory(mounted: Cluster) -> None:
    """MAP_SHARED: seen by another handle after msync, and by everybody after a remount."""
    mount = mounted.mount("mapped")
    file = mount.path / "mapped"
    file.write_bytes(b"." * (2 * CHUNK + 100))
    with opened(file, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 0) as mapped:
        mapped[0:5] = b"first"
        mapped[CHUNK - 2 : CHUNK + 2] = b"edge"
        mapped[-4:] = b"last"
        mapped.flush()
        with file.open("rb") as reading:
            assert reading.read(5) == b"first"
            reading.seek(CHUNK - 2)
            assert reading.read(4) == b"edge"
        mapped[10:15] = b"again"
    mount.remount()
    content = file.read_bytes()
    assert (content[:5], content[10:15], content[CHUNK - 2 : CHUNK + 2], content[-4:]) == (
        b"first", b"again", b"edge", b"last",
    )  # fmt: skip
    assert content.count(b".") == len(content) - 18
    mount.unmount()


def test_two_handles_see_each_others_writes_at_once(place: Path) -> None:
    with opened(place / "f", os.O_RDWR | os.O_CREAT) as one, opened(place / "f", os.O_RDWR) as two:
        for number in range(200):
            mine, yours = (one, two) if number % 2 else (two, one)
            os.pwrite(mine, b"%06d" % number, number * 6)
            assert os.pread(yours, 6, number * 6) == b"%06d" % number
            assert os.fstat(yours).st_size == (number + 1) * 6
        assert os.pread(one, 6 * 200, 0) == b"".join(b"%06d" % number for number in range(200))


def test_the_size_is_right_at_once_after_every_write(place: Path) -> None:
    """Asked by descriptor, by path and by a listing, before anything was flushed."""
    size = 0
    with opened(place / "f", os.O_WRONLY | os.O_CREAT) as descriptor:
        for step in (1, 4095, 4096, 100_000, MIB, CHUNK, 3):
            os.write(descriptor, b"x" * step)
            size += step
            assert os.fstat(descriptor).st_size == (place / "f").stat().st_size == size
            assert int(run("ls", "-l", place).split()[6]) == size


def test_a_reader_follows_a_writer(place: Path) -> None:
    """While one handle appends, another reads from front to back: nothing but what was written, in order."""
    line, count = b"0123456789abcdef" * 64, 20_000
    problems: list[str] = []
    done = threading.Event()

    def follow() -> None:
        at = 0
        with opened(place / "f", os.O_RDONLY) as descriptor:
            while True:
                ended = done.is_set()
                data = os.pread(descriptor, 300_000, at)
                want = (line * (len(data) // len(line) + 2))[at % len(line) :][: len(data)]
                if data != want:
                    problems.append(f"wrong bytes after {at}")
                    return
                at += len(data)
                if not data and ended:
                    break
        if at != count * len(line):
            problems.append(f"{at} bytes came")

    with opened(place / "f", os.O_WRONLY | os.O_CREAT) as descriptor:
        reader = threading.Thread(target=follow)
        reader.start()
        for _ in range(count):
            os.write(descriptor, line)
    done.set()
    reader.join(60)
    assert not reader.is_alive()
    assert not problems


def test_who_opens_a_file_while_it_grows_reads_a_beginning_of_it(place: Path) -> None:
    """Whatever is committed while it is opened: never zeros, nor less than was there before."""
    path, ended = place / "log", threading.Event()
    path.touch()
    lines = [b"%08d\n" % number for number in range(20_000)]
    synced = 0

    def append() -> None:
        nonlocal synced
        with opened(path, os.O_WRONLY | os.O_APPEND) as log:
            for at in range(0, len(lines), 5):
                os.write(log, b"".join(lines[at : at + 5]))
                os.fsync(log)
                synced = (at + 5) * len(lines[0])
                if ended.is_set():
                    return

    writer = threading.Thread(target=append)
    writer.start()
    try:
        for _ in range(OPENS):
            before, content = synced, path.read_bytes()
            assert len(content) >= before
            assert content == b"".join(lines)[: len(content)]
    finally:
        ended.set()
        writer.join()


@pytest.mark.parametrize("flushed", [True, False], ids=["stored", "not-yet-stored"])
def test_truncating_cuts_and_extends_across_the_edges_of_chunks(place: Path, flushed: bool) -> None:
    """What was cut off never comes back: made longer again, the file has zeros there."""
    shadow = bytearray(os.urandom(2 * CHUNK + 5000))
    with opened(place / "f", os.O_RDWR | os.O_CREAT) as descriptor:
        os.write(descriptor, shadow)
        sizes = (
            *(2 * CHUNK + 4999, 2 * CHUNK, 2 * CHUNK + 700, 2 * CHUNK - 1, CHUNK + 1, CHUNK),
            *(3 * CHUNK + 7, CHUNK - 1, 100, 2 * CHUNK, 0, 10),
        )
        for size in sizes:
            if flushed:
                os.fsync(descriptor)
            os.ftruncate(descriptor, size)
            del shadow[size:]
            shadow += bytes(size - len(shadow))
            assert os.fstat(descriptor).st_size == size
            with (place / "f").open("rb") as reading:
                assert reading.read() == shadow, f"after truncating to {size}"
            if size >= 4:
                os.pwrite(descriptor, b"tail", size - 4)
                shadow[-4:] = b"tail"


def test_a_truncated_path_is_cut_for_those_who_have_it_open(place: Path) -> None:
    (place / "f").write_bytes(b"0123456789")
    with opened(place / "f", os.O_RDWR) as descriptor:
        os.truncate(place / "f", 4)
        assert os.pread(descriptor, 100, 0) == b"0123"
        assert os.fstat(descriptor).st_size == 4
        (place / "f").write_bytes(b"ab")
        assert os.pread(descriptor, 100, 0) == b"ab"


def test_rewriting_parts_many_times_leaves_what_was_written_last(place: Path) -> None:
    """Small writes all over, synced now and then: the extents of a chunk are laid over each other in order."""
    shadow = bytearray(300_000)
    with opened(place / "f", os.O_RDWR | os.O_CREAT) as descriptor:
        os.ftruncate(descriptor, len(shadow))
        for number in range(400):
            at, data = (number * 7919) % (len(shadow) - 600), bytes([number % 256]) * (number % 500 + 1)
            os.pwrite(descriptor, data, at)
            shadow[at : at + len(data)] = data
            if number % 7 == 0:
                os.fdatasync(descriptor)
    assert (place / "f").read_bytes() == shadow


def test_a_write_beyond_the_largest_file_is_refused(place: Path) -> None:
    with opened(place / "f", os.O_RDWR | os.O_CREAT) as descriptor:
        with refused(errno.EFBIG):
            os.pwrite(descriptor, b"x", 1 << 52)
        os.pwrite(descriptor, b"ok", 0)
    assert (place / "f").read_bytes() == b"ok"


@pytest.mark.parametrize("attributes", [0, 1], ids=["plain", "with an attribute"])
def test_what_is_open_to_be_read_and_appended_to_cannot_be_mapped_shared(place: Path, attributes: int) -> None:
    """The kernel would store the changed pages as what is appended: they would land at the end of the file."""
    (place / "f").write_bytes(b"content" * 1000)
    for number in range(attributes):
        os.setxattr(place / "f", f"user.{number}", b"value")
    with opened(place / "f", os.O_RDWR | os.O_APPEND) as descriptor:
        with refused(errno.ENODEV):
            mmap.mmap(descriptor, 0)
        with mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE) as private:
            private[0:5] = b"mine!"
        os.write(descriptor, b"end")
        assert os.pread(descriptor, 7, 0) == b"content"
    with opened(place / "f", os.O_RDWR) as descriptor, mmap.mmap(descriptor, 0) as shared:
        shared[0:7] = b"changed"
    assert (place / "f").read_bytes() == b"changed" + b"content" * 999 + b"end"


def test_the_space_of_a_file_that_was_removed_before_it_was_closed_comes_back(place: Path, mounted: Cluster) -> None:
    """Full chunks were stored while it was written, and no file ever showed them. The mount goes on living."""
    os.setxattr(place, "user.dcs.chunk_size", b"65536")

    def held() -> set[str]:
        return set().union(*(node.extents() for node in mounted.nodes))

    before = held()
    with opened(place / "f", os.O_RDWR | os.O_CREAT) as descriptor:
        (place / "f").unlink()
        os.write(descriptor, b"x" * 10 * 65536)
        wait_for(lambda: len(held() - before) >= 10, "the chunks are stored")
    wait_for(lambda: not held() - before, "the nodes have nothing of it any more", 60)
