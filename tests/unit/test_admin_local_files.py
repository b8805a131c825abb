"""The local ends of create and read: what is read is what was there, what is written is whole or not there."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from servers.admin.errors import Problem
from servers.admin.local_sink import BUFFER_BYTES, Sink, open_sink
from servers.admin.local_source import LocalSource

BLOCK = 64 * 1024


def read_all(source: LocalSource, block: int = BLOCK) -> bytes:
    async def work() -> bytes:
        pieces = []
        while piece := await source.read(block):
            pieces.append(piece)
        source.check_unchanged()
        return b"".join(pieces)

    return asyncio.run(work())


def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    """Its size is known beforehand, its mode is kept."""
    data = os.urandom(3 * BLOCK + 5)
    file = tmp_path / "file"
    file.write_bytes(data)
    file.chmod(0o4751)
    with LocalSource(str(file)) as source:
        assert (source.size, source.mode) == (len(data), 0o751)
        assert read_all(source) == data


@pytest.mark.parametrize("change", ["append", "truncate", "rewrite"])
def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, change: str) -> None:
    """Growing, shrinking, and other bytes at the same length."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 4 * BLOCK)
    os.utime(file, ns=(1, 1))

    async def work(source: LocalSource) -> None:
        await source.read(BLOCK)
        with file.open("r+b" if change == "rewrite" else "ab") as other:
            other.truncate(2 * BLOCK) if change == "truncate" else other.write(b"y")
        while await source.read(BLOCK):
            pass
        source.check_unchanged()

    with LocalSource(str(file)) as source, pytest.raises(Problem, match=r"changed.*nothing was created"):
        asyncio.run(work(source))


def test_a_file_that_grows_faster_than_it_is_read_ends(tmp_path: Path) -> None:
    """It is noticed at the first byte too many."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * BLOCK)

    async def work(source: LocalSource) -> None:
        while True:
            with file.open("ab") as other:
                other.write(b"x" * 2 * BLOCK)
            await source.read(BLOCK)

    with LocalSource(str(file)) as source, pytest.raises(Problem, match="changed"):
        asyncio.run(work(source))


def test_files_of_the_kernel_can_be_read() -> None:
    """They say that they have no size, and have one."""
    with LocalSource("/proc/self/status") as source:
        assert b"Pid:" in read_all(source)


def test_holes_are_found_and_data_is_not_taken_for_one(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as made:
        made.truncate(4 << 20)
        made.seek(2 << 20)
        made.write(b"\0")
    with LocalSource(str(file)) as source:
        assert source.is_hole(0, 1 << 20)
        assert not source.is_hole(2 << 20, 1 << 20)
        assert source.is_hole(3 << 20, 1 << 20)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        LocalSource(str(tmp_path))


async def fill(sink: Sink, data: bytes, hole: int) -> None:
    await sink.write(data)
    await sink.skip(hole)
    await sink.write(data)
    await sink.skip(hole)
    await sink.finish()


@pytest.mark.parametrize("length", [5, BUFFER_BYTES, 2 * BUFFER_BYTES + 1])
def test_a_written_file_is_whole_and_keeps_its_holes(tmp_path: Path, length: int) -> None:
    """Small and large writes, holes between and at the end; nothing else lies beside it."""
    data, hole = os.urandom(length), 4 << 20
    target = tmp_path / "target"
    with open_sink(str(target), 0o640) as sink:
        asyncio.run(fill(sink, data, hole))
    assert target.read_bytes() == data + bytes(hole) + data + bytes(hole)
    assert target.stat().st_blocks * 512 < 2 * length + hole
    assert list(tmp_path.iterdir()) == [target]


def test_what_was_not_finished_leaves_everything_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with open_sink(str(target), 0o644) as sink:
        asyncio.run(sink.write(b"new" * BUFFER_BYTES))
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_is_there_keeps_its_mode_and_a_link_its_place(tmp_path: Path) -> None:
    """Writing to a link writes the file that it leads to."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to(target)
    with open_sink(str(link), 0o644) as sink:
        asyncio.run(fill(sink, b"new", 0))
    assert target.read_bytes() == b"newnew"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert link.is_symlink()


def test_a_device_is_written_to_and_not_replaced() -> None:
    before = os.stat("/dev/null")
    with open_sink("/dev/null", 0o644) as sink:
        asyncio.run(fill(sink, b"gone", 100))
    assert os.stat("/dev/null").st_rdev == before.st_rdev
