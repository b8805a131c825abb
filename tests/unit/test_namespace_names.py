"""The verbs on names: lookup, create, mknod, mkdir, symlink, link, unlink, rmdir, readdir, readlink."""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import Callable
from typing import Any

import pytest

from servers.protocol.limits import LINKS_MAX, NAMES_PER_CALL_MAX, PATH_BYTES_MAX
from servers.protocol.naming_api import unpack_attributes
from tests.support.volume import Session, Volume

MAKERS: dict[str, Callable[[Session, int, bytes], object]] = {
    "create": lambda s, parent, name: s.create(parent, name),
    "mkdir": lambda s, parent, name: s.mkdir(parent, name),
    "mknod": lambda s, parent, name: s.mknod(parent, name, stat.S_IFIFO | 0o600),
    "symlink": lambda s, parent, name: s.symlink(parent, name, b"target"),
    "link": lambda s, parent, name: s.link(s.create(1, b"source of " + name[:20]).ino, parent, name),
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "create": {"mode": 0o644, "uid": 1, "gid": 2},
    "mkdir": {"mode": 0o755, "uid": 1, "gid": 2},
    "mknod": {"mode": stat.S_IFREG | 0o644, "rdev": 0, "uid": 1, "gid": 2},
    "symlink": {"target": b"t", "uid": 1, "gid": 2},
}


def lookup(volume: Volume, parent: int, name: bytes) -> int:
    ino, blob = volume.call("lookup", parent=parent, name=name)
    assert unpack_attributes(ino, blob) == volume.attributes(ino)
    return int(ino)


@pytest.mark.parametrize("verb", MAKERS)
def test_what_was_made_is_found_by_its_name(volume: Volume, session: Session, verb: str) -> None:
    """Its attributes come along; the parent's mtime and ctime moved on."""
    directory = session.mkdir(1, b"d")
    made = MAKERS[verb](session, directory.ino, b"n\xff\n")
    after = volume.attributes(directory.ino)
    assert lookup(volume, directory.ino, b"n\xff\n") == made.ino  # type: ignore[attr-defined]
    assert after.mtime_ns == after.ctime_ns > directory.mtime_ns
    assert volume.names(directory.ino) == [b"n\xff\n"]


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_making_refuses_what_cannot_be(session: Session, verb: str) -> None:
    """EEXIST, ENOENT, ENOTDIR, ENAMETOOLONG, EINVAL; nothing is changed."""
    file = session.create(1, b"file")
    gone = session.mkdir(1, b"gone")
    session.rmdir(1, b"gone")
    more = ARGUMENTS[verb]
    for parent, name, wanted in (
        (1, b"file", errno.EEXIST),
        (999, b"x", errno.ENOENT),
        (gone.ino, b"x", errno.ENOENT),
        (file.ino, b"x", errno.ENOTDIR),
        (1, b"x" * 256, errno.ENAMETOOLONG),
        (1, b"", errno.EINVAL),
        (1, b".", errno.EINVAL),
        (1, b"..", errno.EINVAL),
        (1, b"a/b", errno.EINVAL),
        (1, b"a\0b", errno.EINVAL),
    ):
        assert session.errno(verb, parent=parent, name=name, **more) == wanted, (parent, name)
    assert session.errno(verb, parent=1, name=b"x" * 255, **more) == 0


def test_directories_count_their_subdirectories(volume: Volume, session: Session) -> None:
    """2 and one for each `..` below; files count nothing."""
    directory = session.mkdir(1, b"d")
    assert (directory.nlink, directory.parent) == (2, 1)
    assert volume.attributes(1).nlink == 3
    session.mkdir(directory.ino, b"e")
    session.create(directory.ino, b"f")
    assert volume.attributes(directory.ino).nlink == 3
    session.rmdir(directory.ino, b"e")
    assert volume.attributes(directory.ino).nlink == 2
    assert volume.status()["directories"] == 2


def test_a_setgid_directory_gives_its_group(volume: Volume, session: Session) -> None:
    """To all that is made in it, and to directories the bit too."""
    directory = session.mkdir(1, b"d")
    session.setattr(directory.ino, mode=0o2755, gid=77)
    assert session.create(directory.ino, b"f").gid == 77
    below = session.mkdir(directory.ino, b"e", 0o700)
    assert (below.gid, stat.S_IMODE(below.mode)) == (77, 0o2700)
    assert session.symlink(directory.ino, b"s", b"t").gid == 77
    assert session.create(1, b"other").gid == 2


def test_mknod_makes_all_but_directories_and_symlinks(session: Session) -> None:
    assert session.mknod(1, b"b", stat.S_IFBLK | 0o600, rdev=0x812).rdev == 0x812
    assert session.mknod(1, b"p", stat.S_IFIFO | 0o600).is_file is False
    assert session.mknod(1, b"s", stat.S_IFSOCK | 0o600).nlink == 1
    assert session.mknod(1, b"r", stat.S_IFREG | 0o600).is_file
    for kind in (stat.S_IFDIR, stat.S_IFLNK, 0, 0x3000):
        assert session.errno("mknod", parent=1, name=b"x", mode=kind, rdev=0, uid=0, gid=0) == errno.EINVAL


def test_a_symlink_keeps_its_target(volume: Volume, session: Session) -> None:
    made = session.symlink(1, b"s", b"\xff/..")
    assert (made.target, made.size, stat.S_IMODE(made.mode)) == (b"\xff/..", 4, 0o777)
    assert volume.call("readlink", ino=made.ino) == [b"\xff/.."]
    assert volume.errno("readlink", ino=1) == errno.EINVAL
    assert volume.errno("readlink", ino=99) == errno.ESTALE
    long = {"parent": 1, "name": b"t", "uid": 0, "gid": 0}
    assert session.errno("symlink", target=b"x" * (PATH_BYTES_MAX + 1), **long) == errno.ENAMETOOLONG
    assert session.errno("symlink", target=b"", **long) == errno.ENOENT
    assert session.errno("symlink", target=b"x" * PATH_BYTES_MAX, **long) == 0


def test_hard_links_share_an_inode(volume: Volume, session: Session) -> None:
    """It lives until its last name goes; EPERM for directories, ENOENT for what has no name."""
    made = session.closed(1, b"f")
    linked = session.link(made.ino, 1, b"g")
    assert linked.nlink == 2
    assert linked.ctime_ns > made.ctime_ns
    assert session.errno("link", ino=made.ino, parent=1, name=b"g") == errno.EEXIST
    assert session.errno("link", ino=1, parent=1, name=b"h") == errno.EPERM
    assert session.errno("link", ino=99, parent=1, name=b"h") == errno.ENOENT
    assert session.unlink(1, b"f").nlink == 1
    volume.reclaim()
    assert session.unlink(1, b"g").nlink == 0
    assert session.errno("link", ino=made.ino, parent=1, name=b"h") == errno.ENOENT
    volume.reclaim()
    assert volume.errno("getattr", ino=made.ino) == errno.ESTALE


def test_links_end_at_a_limit(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume(LINKS_MAX=3)
    session = volume.session()
    made = session.create(1, b"a")
    session.link(made.ino, 1, b"b")
    session.link(made.ino, 1, b"c")
    assert session.errno("link", ino=made.ino, parent=1, name=b"d") == errno.EMLINK
    assert LINKS_MAX >= 32_000


def test_unlink_and_rmdir_refuse_what_cannot_be(volume: Volume, session: Session) -> None:
    directory, file = session.mkdir(1, b"d"), session.create(1, b"f")
    session.create(directory.ino, b"inside")
    for verb, parent, name, wanted in (
        ("unlink", 1, b"none", errno.ENOENT),
        ("unlink", 1, b"d", errno.EISDIR),
        ("unlink", 1, b"x" * 256, errno.ENAMETOOLONG),
        ("unlink", file.ino, b"x", errno.ENOTDIR),
        ("unlink", 99, b"x", errno.ENOENT),
        ("rmdir", 1, b"none", errno.ENOENT),
        ("rmdir", 1, b"f", errno.ENOTDIR),
        ("rmdir", 1, b"d", errno.ENOTEMPTY),
        ("rmdir", 1, b"x" * 256, errno.ENAMETOOLONG),
        ("rmdir", file.ino, b"x", errno.ENOTDIR),
    ):
        assert session.errno(verb, parent=parent, name=name) == wanted, (verb, name)
    assert session.errno("unlink", parent=1, name=b"f", ino=directory.ino) == errno.ENOENT
    assert session.errno("unlink", parent=1, name=b"f", ino=file.ino) == 0
    session.unlink(directory.ino, b"inside")
    session.rmdir(1, b"d")
    assert volume.names() == []


def test_lookup_tells_absence_from_a_wrong_parent(volume: Volume, session: Session) -> None:
    file = session.create(1, b"f")
    assert volume.errno("lookup", parent=1, name=b"x") == errno.ENOENT
    assert volume.errno("lookup", parent=file.ino, name=b"x") == errno.ENOTDIR
    assert volume.errno("lookup", parent=99, name=b"x") == errno.ENOENT
    assert volume.errno("lookup", parent=1, name=b"x" * 256) == errno.ENAMETOOLONG


def test_resolve_walks_from_the_root(volume: Volume, session: Session) -> None:
    one = session.mkdir(1, b"a")
    two = session.create(one.ino, b"b")
    assert volume.call("resolve", path=[])[0] == 1
    assert volume.call("resolve", path=[b"a", b"b"])[0] == two.ino
    assert volume.errno("resolve", path=[b"a", b"c"]) == errno.ENOENT
    assert volume.errno("resolve", path=[b"a", b"b", b"c"]) == errno.ENOTDIR
    assert volume.errno("resolve", path=[b"x" * 256]) == errno.ENAMETOOLONG
    assert volume.errno("resolve", path=[b"x"] * (PATH_BYTES_MAX + 1)) == errno.ENAMETOOLONG


def test_readdir_pages_hold_every_name_once(volume: Volume, session: Session) -> None:
    """In the order of cookies, with attributes; `at end` is said on the last page."""
    wanted = [b"%d" % i for i in range(25)]
    for name in wanted:
        session.mknod(1, name, stat.S_IFREG | 0o600)
    found, after = [], 0
    while True:
        at_end, _, *flat = volume.call("readdir", ino=1, after=after, count=7)
        for i in range(0, len(flat), 4):
            name, after, ino, blob = flat[i : i + 4]
            found.append(name)
            assert unpack_attributes(ino, blob).ino == lookup(volume, 1, name)
        if at_end:
            break
    assert found == wanted
    assert volume.errno("readdir", ino=99, after=0, count=1) == errno.ESTALE
    file = lookup(volume, 1, b"1")
    assert volume.errno("readdir", ino=file, after=0, count=1) == errno.ENOTDIR


def test_a_page_of_readdir_is_bounded(volume: Volume, session: Session) -> None:
    for i in range(NAMES_PER_CALL_MAX + 1):
        session.reply("mknod", parent=1, name=b"%d" % i, mode=stat.S_IFREG | 0o600, rdev=0, uid=0, gid=0)
    assert len(volume.listing(1, count=10**6)) == NAMES_PER_CALL_MAX
    assert volume.call("readdir", ino=1, after=0, count=10**6)[0] == 0


def test_a_scan_meets_what_is_there_all_the_while_exactly_once(volume: Volume, session: Session) -> None:
    """Whatever is made, taken away and renamed over meanwhile."""
    chance = random.Random(7)
    steady = [b"steady %d" % i for i in range(30)]
    for i, name in enumerate(steady):
        session.closed(1, name)
        session.closed(1, b"passing %d" % i)
    passing = {b"passing %d" % i for i in range(30)}
    found: list[bytes] = []
    after = 0
    while True:
        at_end, _, *flat = volume.call("readdir", ino=1, after=after, count=3)
        found += flat[0::4]
        if at_end:
            break
        after = flat[-3]
        session.unlink(1, passing.pop())
        session.closed(1, b"new %d" % after)
        session.closed(1, b"source")
        session.rename(1, b"source", 1, chance.choice(steady))
    assert sorted(n for n in found if n in steady) == sorted(steady)
    assert len(set(found)) == len(found)


def test_renaming_over_a_name_keeps_its_cookie(volume: Volume, session: Session) -> None:
    """So a scan that has passed it does not meet it again, and one that has not, does."""
    session.closed(1, b"a")
    session.closed(1, b"b")
    before = {row[0]: row[1] for row in volume.listing(1)}
    session.rename(1, b"b", 1, b"a")
    (only,) = volume.listing(1)
    assert (only[0], only[1]) == (b"a", before[b"a"])


@pytest.mark.parametrize("verb", [*ARGUMENTS, "link", "unlink", "rmdir", "rename", "setattr", "commit", "setxattr",
                                  "removexattr", "open", "release", "stub", "publish"])  # fmt: skip
def test_arguments_of_the_wrong_kind_change_nothing(volume: Volume, session: Session, verb: str) -> None:
    """EINVAL, whatever came: a missing one, a fraction, another type, no map at all."""
    session.create(1, b"f")
    seq, numbers = volume.status()["seq"], volume.client.hget(f"{volume.key}:volume", "next_ino")
    right = {"ino": 1, "parent": 1, "name": b"n", "mode": 0o644, "uid": 0, "gid": 0, "target": b"t", "rdev": 0}
    for wrong in ({"parent": 1.5, "ino": 1.5, "mode": -1}, {"parent": float("nan"), "ino": float("nan"), "uid": -1},
                  {"name": 5, "ino": "one", "mode": b"x"}, {"ino": 2**60, "parent": None, "mode": None}, {"ino": [],
                  "parent": {}, "gid": 2**32}):  # fmt: skip
        assert session.errno(verb, **{**right, **wrong}) == errno.EINVAL, wrong
    for packed in (b"", b"\xc1", b"\x01", b"\x91\x01", b"\xdf\xff\xff\xff\xff"):
        reply = volume.raw(verb, session.number, session.next_n(), packed)
        assert reply == b"\x91\x16", packed
    assert (volume.status()["seq"], volume.client.hget(f"{volume.key}:volume", "next_ino")) == (seq, numbers)
