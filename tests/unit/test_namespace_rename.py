"""rename(2) and renameat2(2) in all their cases."""

from __future__ import annotations

import errno

import pytest

from servers.protocol.naming_api import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.volume import Session, Volume


def rename_errno(session: Session, old: tuple[int, bytes], new: tuple[int, bytes], flags: int = 0) -> int:
    return session.errno("rename", parent=old[0], name=old[1], new_parent=new[0], new_name=new[1], flags=flags)


def ino_of(volume: Volume, parent: int, name: bytes) -> int:
    return int(volume.call("lookup", parent=parent, name=name)[0])


def test_a_file_moves_to_another_directory(volume: Volume, session: Session) -> None:
    """Both parents' times and its ctime move on; it stays the same inode."""
    one, two, file = session.mkdir(1, b"one"), session.mkdir(1, b"two"), session.create(1, b"f")
    session.rename(1, b"f", one.ino, b"f")
    assert session.rename(one.ino, b"f", two.ino, b"g") == 0
    assert ino_of(volume, two.ino, b"g") == file.ino
    assert volume.names(one.ino) == []
    for before in (one, two):
        after = volume.attributes(before.ino)
        assert after.mtime_ns > before.mtime_ns
        assert after.ctime_ns > before.ctime_ns
    assert volume.attributes(file.ino).ctime_ns > file.ctime_ns
    assert volume.attributes(file.ino).mtime_ns == file.mtime_ns


def test_a_directory_takes_its_parent_along(volume: Volume, session: Session) -> None:
    one, two = session.mkdir(1, b"one"), session.mkdir(1, b"two")
    moving = session.mkdir(one.ino, b"d")
    session.rename(one.ino, b"d", two.ino, b"d")
    assert volume.attributes(moving.ino).parent == two.ino
    assert volume.attributes(one.ino).nlink == 2
    assert volume.attributes(two.ino).nlink == 3


def test_renaming_over_a_file_replaces_it(volume: Volume, session: Session) -> None:
    """In one step; the replaced inode is told, and lives while it is open."""
    new, old = session.closed(1, b"new"), session.create(1, b"old")
    assert session.rename(1, b"new", 1, b"old") == old.ino
    assert ino_of(volume, 1, b"old") == new.ino
    volume.reclaim()
    assert volume.attributes(old.ino).nlink == 0
    session.call("release", ino=old.ino)
    volume.reclaim()
    assert volume.errno("getattr", ino=old.ino) == errno.ESTALE


def test_renaming_over_one_of_two_links_keeps_the_other(volume: Volume, session: Session) -> None:
    session.closed(1, b"new")
    old = session.closed(1, b"old")
    session.link(old.ino, 1, b"kept")
    session.rename(1, b"new", 1, b"old")
    assert volume.attributes(old.ino).nlink == 1


def test_two_names_of_one_inode_stay_as_they_are(volume: Volume, session: Session) -> None:
    """rename(2): if both refer to the same file, it does nothing and succeeds."""
    file = session.create(1, b"a")
    session.link(file.ino, 1, b"b")
    seq = volume.status()["seq"]
    assert session.rename(1, b"a", 1, b"b") == file.ino
    assert session.rename(1, b"a", 1, b"a") == file.ino
    assert sorted(volume.names()) == [b"a", b"b"]
    assert volume.status()["seq"] == seq


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (b"none", b"x", errno.ENOENT),
        (b"file", b"empty", errno.EISDIR),
        (b"empty", b"file", errno.ENOTDIR),
        (b"empty", b"full", errno.ENOTEMPTY),
        (b"full", b"empty", 0),
        (b"empty", b"empty", 0),
        (b"file", b"x" * 256, errno.ENAMETOOLONG),
        (b"x" * 256, b"file", errno.ENAMETOOLONG),
        (b"file", b"", errno.EINVAL),
        (b"file", b"..", errno.EINVAL),
        (b"file", b"a/b", errno.EINVAL),
    ],
)
def test_what_rename_says_of_kinds(session: Session, old: bytes, new: bytes, wanted: int) -> None:
    session.create(1, b"file")
    session.mkdir(1, b"empty")
    session.create(session.mkdir(1, b"full").ino, b"inside")
    assert rename_errno(session, (1, old), (1, new)) == wanted


def test_parents_must_be_live_directories(session: Session) -> None:
    file, gone = session.create(1, b"file"), session.mkdir(1, b"gone")
    session.rmdir(1, b"gone")
    for parent, wanted in ((file.ino, errno.ENOTDIR), (gone.ino, errno.ENOENT), (99, errno.ENOENT)):
        assert rename_errno(session, (1, b"file"), (parent, b"x")) == wanted
        assert rename_errno(session, (parent, b"x"), (1, b"x")) == wanted


def test_a_directory_does_not_move_into_itself(session: Session) -> None:
    """EINVAL for its own subtree at any depth, by plain rename and by exchange, from either side."""
    top = session.mkdir(1, b"top")
    below = session.mkdir(top.ino, b"below")
    deep = session.mkdir(below.ino, b"deep")
    for parent in (top.ino, below.ino, deep.ino):
        assert rename_errno(session, (1, b"top"), (parent, b"x")) == errno.EINVAL
    assert rename_errno(session, (1, b"top"), (below.ino, b"deep"), RENAME_EXCHANGE) == errno.EINVAL
    assert rename_errno(session, (below.ino, b"deep"), (1, b"top"), RENAME_EXCHANGE) == errno.EINVAL
    assert rename_errno(session, (below.ino, b"deep"), (1, b"top")) == errno.ENOTEMPTY


def test_noreplace_has_one_winner(volume: Volume, session: Session) -> None:
    one, two = session.create(1, b"one"), session.create(1, b"two")
    assert rename_errno(session, (1, b"one"), (1, b"lock"), RENAME_NOREPLACE) == 0
    assert rename_errno(session, (1, b"two"), (1, b"lock"), RENAME_NOREPLACE) == errno.EEXIST
    assert ino_of(volume, 1, b"lock") == one.ino
    assert ino_of(volume, 1, b"two") == two.ino


def test_exchange_swaps_whatever_is_there(volume: Volume, session: Session) -> None:
    """A file and a full directory of two directories: names, cookies and links change hands."""
    home, away = session.mkdir(1, b"home"), session.mkdir(1, b"away")
    file, directory = session.create(home.ino, b"x"), session.mkdir(away.ino, b"y")
    session.create(directory.ino, b"inside")
    cookies = {p: volume.listing(p)[0][1] for p in (home.ino, away.ino)}
    assert session.rename(home.ino, b"x", away.ino, b"y", RENAME_EXCHANGE) == directory.ino
    assert ino_of(volume, home.ino, b"x") == directory.ino
    assert ino_of(volume, away.ino, b"y") == file.ino
    assert {p: volume.listing(p)[0][1] for p in cookies} == cookies
    assert (volume.attributes(home.ino).nlink, volume.attributes(away.ino).nlink) == (3, 2)
    assert volume.attributes(directory.ino).parent == home.ino
    assert volume.attributes(file.ino).nlink == 1
    assert rename_errno(session, (home.ino, b"x"), (home.ino, b"none"), RENAME_EXCHANGE) == errno.ENOENT


def test_unknown_flags_are_refused(session: Session) -> None:
    session.create(1, b"a")
    for flags in (3, 4, 8):
        assert rename_errno(session, (1, b"a"), (1, b"b"), flags) == errno.EINVAL
