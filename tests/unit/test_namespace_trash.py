"""Removed files are kept, restored, and let go of."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from servers.naming.background.trash import bytes_wanted
from servers.protocol.ids import TRASH_INODE, TRASH_NAME
from servers.protocol.placement import Space
from tests.support.volume import Session, Volume

CHUNK = 1024
DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def kept(make_volume: Callable[..., Volume]) -> Volume:
    volume = make_volume(TRASH_FILES_MAX=5)
    volume.call("volume_open", **{**volume.settings, "trash_ms": DAY_MS})
    return volume


def write(session: Session, name: bytes, parent: int = 1, size: int = 100) -> int:
    """A file with content that nobody has open."""
    ino = session.closed(parent, name).ino
    session.commit(ino, {0: [session.segment(0, size)]})
    return ino


def trash(volume: Volume) -> dict[int, list[Any]]:
    rows = volume.call("trash", after_ms=0, count=100)
    return {ino: msgpack.unpackb(blob, raw=True) for ino, blob in zip(rows[::3], rows[2::3], strict=True)}


def test_a_removed_file_is_kept_and_restored(kept: Volume) -> None:
    """It looks removed: no name, no links, not counted; and comes back with all it had."""
    session = kept.session()
    ino = write(session, b"f")
    before = kept.attributes(ino)
    assert session.unlink(1, b"f").nlink == 0
    kept.reclaim()
    assert kept.names() == []
    assert trash(kept)[ino][:2] == [1, b"f"]
    status = kept.status()
    assert (status["files"], status["trash"], status["trash_bytes"], status["orphans"]) == (0, 1, 100, 0)
    session.call("restore", ino=ino, parent=1, name=b"back")
    after = kept.attributes(ino)
    assert (after.size, after.mode, after.mtime_ns, after.nlink) == (before.size, before.mode, before.mtime_ns, 1)
    assert kept.names() == [b"back"]
    status = kept.status()
    assert (status["files"], status["trash"], status["trash_bytes"]) == (1, 0, 0)
    kept.reclaim()
    assert kept.condemned() == set()


@pytest.mark.parametrize("count", [1, 3, 40, 1000])
def test_the_trash_is_listed_page_by_page(make_volume: Callable[..., Volume], count: int) -> None:
    """Each file once, though many are due in one millisecond; directories are left out."""
    volume = make_volume()
    volume.call("volume_open", **{**volume.settings, "trash_ms": DAY_MS})
    session = volume.session()
    wanted = set()
    for n in range(40):
        ino = write(session, b"%d" % n)
        session.unlink(1, b"%d" % n)
        wanted.add((b"%d.%d" % (n, ino), ino))
        session.mkdir(1, b"d")
        session.call("rmdir", parent=1, name=b"d")
    due = volume.client.zrange(f"{volume.key}:trash", 0, -1)
    volume.client.zadd(f"{volume.key}:trash", {member: DAY_MS + n // 50 for n, member in enumerate(due)})
    found: list[tuple[bytes, int]] = []
    after, at_end = 0, 0
    while not at_end:
        at_end, _, *rows = volume.call("readdir", ino=TRASH_INODE, after=after, count=count)
        assert rows or at_end
        found += zip(rows[::4], rows[2::4], strict=True)
        after = rows[-3] if rows else after
    assert len(found) == len(wanted)
    assert set(found) == wanted
    for name, ino in found:
        assert volume.call("lookup", parent=TRASH_INODE, name=name)[0] == ino
    assert volume.errno("lookup", parent=TRASH_INODE, name=b"0.1") == errno.ENOENT
    for member in due:  # As the inodes have it, for the judgement at the end.
        volume.client.zadd(
            f"{volume.key}:trash", {member: volume.client.zscore(f"{volume.key}:orphans", member) or DAY_MS}
        )


def test_without_a_trash_there_is_no_directory_of_it(volume: Volume) -> None:
    assert volume.errno("lookup", parent=1, name=TRASH_NAME) == errno.ENOENT


def test_what_cannot_be_restored(kept: Volume) -> None:
    session = kept.session()
    ino, other = write(session, b"f"), write(session, b"other")
    for number, want in ((ino, errno.ENOENT), (99, errno.ENOENT)):
        assert session.errno("restore", ino=number, parent=1, name=b"x") == want
    session.unlink(1, b"f")
    assert session.errno("restore", ino=ino, parent=1, name=b"other") == errno.EEXIST
    assert session.errno("restore", ino=ino, parent=other, name=b"x") == errno.ENOTDIR
    assert session.errno("restore", ino=ino, parent=1, name=b"a/b") == errno.EINVAL
    assert session.errno("abandon", ino=ino) == errno.ENOENT
    publish = {"ino": ino, "parent": 1, "name": b"x", "size": 1, "overwrite": False}
    assert session.errno("publish", **publish) == errno.EINVAL
    assert session.errno("restore", ino=ino, parent=1, name=b"f") == 0


def test_empty_files_and_symlinks_are_kept_too(kept: Volume) -> None:
    """A directory that is restored has all its files; without them a program's sources are not what they were."""
    session = kept.session()
    empty, link = session.closed(1, b"__init__.py").ino, session.symlink(1, b"latest", b"target").ino
    for name in (b"__init__.py", b"latest"):
        session.unlink(1, name)
    assert {row[1] for row in trash(kept).values()} == {b"__init__.py", b"latest"}
    session.call("restore", ino=empty, parent=1, name=b"__init__.py")
    session.call("restore", ino=link, parent=1, name=b"latest")
    assert kept.attributes(link).target == b"target"
    status = kept.status()
    assert (status["files"], status["trash"], status["trash_bytes"]) == (2, 0, 0)


def test_empty_files_take_half_of_the_places_at_most(kept: Volume) -> None:
    """There are five here."""
    session = kept.session()
    for n in range(4):
        session.closed(1, b"lock %d" % n)
        session.unlink(1, b"lock %d" % n)
    assert len(trash(kept)) == 3
    inodes = [write(session, b"%d" % n) for n in range(2)]
    for n in range(2):
        session.unlink(1, b"%d" % n)
    assert set(inodes) <= set(trash(kept))


def test_what_is_not_kept(kept: Volume) -> None:
    """Files that somebody has open, other names of a file, what is overwritten by a rename, special files."""
    session = kept.session()
    opened = write(session, b"open")
    session.call("open", ino=opened, chunks=0)
    linked = write(session, b"linked")
    session.link(linked, 1, b"second")
    write(session, b"old")
    write(session, b"new")
    session.mknod(1, b"fifo", stat.S_IFIFO | 0o644)
    for name in (b"open", b"linked", b"fifo"):
        session.unlink(1, name)
    session.rename(1, b"new", 1, b"old")
    assert trash(kept) == {}
    session.call("release", ino=opened)
    kept.reclaim()
    assert len(kept.condemned()) == 2


def test_the_trash_is_emptied_oldest_first(kept: Volume) -> None:
    session = kept.session()
    inodes = [write(session, b"%d" % n) for n in range(4)]
    for n in range(4):
        session.unlink(1, b"%d" % n)
    assert kept.call("empty_trash", count=10, bytes=150) == [2, 200]
    assert set(trash(kept)) == set(inodes[2:])
    kept.reclaim()
    assert len(kept.condemned()) == 2
    assert kept.call("empty_trash", count=10, bytes=10**9) == [2, 200]
    kept.reclaim()
    assert kept.status()["bytes"] == 0


def test_the_oldest_of_too_many_goes(kept: Volume) -> None:
    session = kept.session()
    inodes = [write(session, b"%d" % n) for n in range(7)]
    for n in range(7):
        session.unlink(1, b"%d" % n)
    assert len(trash(kept)) == 5
    assert set(trash(kept)) <= set(inodes)
    kept.reclaim()
    assert len(kept.condemned()) == 2


def test_the_names_of_removed_directories_are_kept_and_their_inodes_are_not(kept: Volume) -> None:
    session = kept.session()
    directory = session.mkdir(1, b"d").ino
    ino = write(session, b"f", directory)
    session.unlink(directory, b"f")
    session.rmdir(1, b"d")
    kept.reclaim()
    assert kept.errno("getattr", ino=directory) != 0
    assert trash(kept)[directory][:2] == [1, b"d"]
    assert trash(kept)[ino][:2] == [directory, b"f"]
    assert session.errno("restore", ino=directory, parent=1, name=b"d") == errno.ENOENT
    assert session.errno("restore", ino=ino, parent=directory, name=b"f") == errno.ENOENT


def test_after_its_time_it_is_gone(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume()
    volume.call("volume_open", **{**volume.settings, "trash_ms": 1})
    session = volume.session()
    write(session, b"f")
    session.unlink(1, b"f")
    session.mkdir(1, b"d")
    session.rmdir(1, b"d")
    volume.reclaim()
    volume.reclaim()
    assert trash(volume) == {}
    assert volume.status()["trash_bytes"] == 0
    assert len(volume.condemned()) == 1


@pytest.mark.parametrize(("free", "wanted"), [(500, 0), (100, 0), (70, 10), (0, 33)])
def test_room_is_made_only_when_it_is_lacking(free: int, wanted: int) -> None:
    assert bytes_wanted(Space(1000, 1000 - free, free), 3, 0.1) == wanted
