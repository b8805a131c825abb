"""setattr, getattr and extended attributes; time."""

from __future__ import annotations

import errno
import stat

import pytest

from servers.protocol.limits import FILE_BYTES_MAX, XATTR_TOTAL_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from servers.protocol.naming_api import XATTR_CREATE, XATTR_REPLACE, pack_time
from tests.support.volume import Session, Volume

NS = 1_000_000_000


def test_getattr_of_what_is_gone_is_stale(volume: Volume) -> None:
    assert volume.errno("getattr", ino=99) == errno.ESTALE
    assert volume.errno("locate", ino=99, first=0, count=1) == errno.ESTALE


def test_chmod_changes_the_bits_and_never_the_type(session: Session) -> None:
    made = session.create(1, b"f")
    after = session.setattr(made.ino, mode=0o104755)
    assert after.mode == stat.S_IFREG | 0o4755
    assert after.ctime_ns > made.ctime_ns
    assert after.mtime_ns == made.mtime_ns


def test_chown_takes_the_set_id_bits_of_files(session: Session) -> None:
    """chown(2): setuid goes, setgid too where the group may execute; a mode given with it counts."""
    file, directory = session.create(1, b"f"), session.mkdir(1, b"d")
    session.setattr(file.ino, mode=0o6755)
    assert stat.S_IMODE(session.setattr(file.ino, uid=5).mode) == 0o755
    session.setattr(file.ino, mode=0o6744)
    assert stat.S_IMODE(session.setattr(file.ino, gid=5).mode) == 0o2744
    assert stat.S_IMODE(session.setattr(file.ino, uid=7, mode=0o4711).mode) == 0o4711
    session.setattr(directory.ino, mode=0o6755)
    after = session.setattr(directory.ino, uid=5, gid=6)
    assert (stat.S_IMODE(after.mode), after.uid, after.gid) == (0o6755, 5, 6)


def test_content_changed_by_an_ordinary_user_takes_the_set_id_bits(session: Session) -> None:
    made = session.create(1, b"f")
    session.setattr(made.ino, mode=0o6755)
    assert stat.S_IMODE(session.setattr(made.ino, size=0).mode) == 0o6755
    assert stat.S_IMODE(session.setattr(made.ino, size=0, strip=True).mode) == 0o755


def test_reading_moves_atime_alone_and_only_forward(volume: Volume, session: Session) -> None:
    a, b = session.create(1, b"a"), session.create(1, b"b")
    later = pack_time(a.atime_ns + 5 * NS)
    session.call("accessed", times=[a.ino, *later, 999_999, *later, b.ino, 1, 2])
    after, other = volume.attributes(a.ino), volume.attributes(b.ino)
    assert after.atime_ns == a.atime_ns + 5 * NS
    assert (after.mtime_ns, after.ctime_ns, after.data_version) == (a.mtime_ns, a.ctime_ns, a.data_version)
    assert other.atime_ns == b.atime_ns
    for wrong in ([a.ino], [a.ino, 1], [a.ino, 1, 10**9], [0, 1, 1], [a.ino, "1", 1], [1, 1, 1] * 1025):
        assert session.errno("accessed", times=wrong) == errno.EINVAL


@pytest.mark.parametrize("time_ns", [0, 1, -1, 946684800 * NS + 123456789, 4_000_000_000 * NS + 999_999_999])
def test_utimens_keeps_every_nanosecond(session: Session, time_ns: int) -> None:
    made = session.create(1, b"f")
    after = session.setattr(made.ino, atime=pack_time(time_ns), mtime=pack_time(time_ns + 1))
    assert (after.atime_ns, after.mtime_ns) == (time_ns, time_ns + 1)
    assert after.ctime_ns > made.ctime_ns


def test_now_is_the_time_of_redis(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    session.setattr(made.ino, mtime=pack_time(5), atime=pack_time(6))
    after = session.setattr(made.ino, mtime=True)
    seconds, micros = volume.client.time()
    assert abs(after.mtime_ns - (seconds * NS + micros * 1000)) < 5 * NS
    assert after.atime_ns == 6


def test_content_that_changes_is_new_even_when_its_time_was_in_the_future(session: Session) -> None:
    """`touch -d 2100`, then a write: mtime is now, and from here on goes forward only."""
    future = 4_102_444_800 * NS
    made = session.create(1, b"f")
    session.setattr(made.ino, mtime=pack_time(future))
    written = session.commit(made.ino, {0: [session.segment(0, 10)]}, mtime=pack_time(made.mtime_ns + 1))
    assert made.mtime_ns < written.mtime_ns < future
    assert session.commit(made.ino, {0: [session.segment(0, 10)]}).mtime_ns > written.mtime_ns
    assert session.setattr(made.ino, size=3).mtime_ns > written.mtime_ns


def test_a_commit_keeps_the_time_that_the_writer_showed(session: Session) -> None:
    """Unless its clock is more than a second ahead, or it goes back."""
    made = session.create(1, b"f")
    shown = made.mtime_ns + 500_000_000
    after = session.commit(made.ino, {0: [session.segment(0, 10)]}, mtime=pack_time(shown))
    assert (after.mtime_ns, after.ctime_ns) == (shown, shown)
    assert session.commit(made.ino, {0: [session.segment(0, 10)]}, mtime=pack_time(5)).mtime_ns >= shown
    insane = session.commit(made.ino, {0: [session.segment(0, 10)]}, mtime=pack_time(shown + 3600 * NS))
    assert insane.mtime_ns < shown + 60 * NS


def test_sizes_that_cannot_be(session: Session) -> None:
    file, directory, link = session.create(1, b"f"), session.mkdir(1, b"d"), session.symlink(1, b"s", b"t")
    assert session.errno("setattr", ino=file.ino, size=-1) == errno.EINVAL
    assert session.errno("setattr", ino=file.ino, size=FILE_BYTES_MAX + 1) == errno.EFBIG
    assert session.errno("setattr", ino=directory.ino, size=0) == errno.EISDIR
    assert session.errno("setattr", ino=link.ino, size=0) == errno.EINVAL
    assert session.errno("setattr", ino=99, size=0) == errno.ESTALE
    assert session.setattr(file.ino, size=FILE_BYTES_MAX).size == FILE_BYTES_MAX


def test_extended_attributes_come_and_go(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    assert volume.errno("getxattr", ino=made.ino, name=b"user.a") == errno.ENODATA
    session.call("setxattr", ino=made.ino, name=b"user.a", value=b"", flags=0)
    session.call("setxattr", ino=made.ino, name=b"user.\xff", value=b"\0two", flags=XATTR_CREATE)
    session.call("setxattr", ino=made.ino, name=b"user.a", value=b"one", flags=XATTR_REPLACE)
    assert sorted(volume.call("listxattr", ino=made.ino)[0]) == [b"user.a", b"user.\xff"]
    assert volume.call("getxattr", ino=made.ino, name=b"user.a") == [b"one"]
    after = volume.attributes(made.ino)
    assert after.xattrs == 2
    assert after.ctime_ns > made.ctime_ns
    session.call("removexattr", ino=made.ino, name=b"user.a")
    assert volume.call("listxattr", ino=made.ino)[0] == [b"user.\xff"]


def test_extended_attributes_that_cannot_be(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")

    def set_errno(name: bytes, value: bytes = b"", flags: int = 0) -> int:
        return session.errno("setxattr", ino=made.ino, name=name, value=value, flags=flags)

    assert set_errno(b"") == errno.ERANGE
    assert set_errno(b"x" * 256) == errno.ERANGE
    assert set_errno(b"x", b"v" * (XATTR_VALUE_BYTES_MAX + 1)) == errno.E2BIG
    assert set_errno(b"x", b"v" * XATTR_VALUE_BYTES_MAX) == 0
    assert set_errno(b"x", flags=XATTR_CREATE) == errno.EEXIST
    assert set_errno(b"y", flags=XATTR_REPLACE) == errno.ENODATA
    assert set_errno(b"y", flags=4) == errno.EINVAL
    assert session.errno("removexattr", ino=made.ino, name=b"y") == errno.ENODATA
    for ino_missing in ("getxattr", "listxattr"):
        assert volume.errno(ino_missing, ino=99, name=b"x") == errno.ESTALE
    assert session.errno("setxattr", ino=99, name=b"x", value=b"", flags=0) == errno.ESTALE
    assert session.errno("removexattr", ino=99, name=b"x") == errno.ESTALE


def test_the_names_of_extended_attributes_fit_one_list(session: Session) -> None:
    """ENOSPC when listxattr(2) could not return them all."""
    made = session.create(1, b"f")
    count = XATTR_TOTAL_BYTES_MAX // 256
    for i in range(count):
        reply = session.reply("setxattr", ino=made.ino, name=b"%0255d" % i, value=b"", flags=0)
        assert reply[0] == 0, i
    assert session.errno("setxattr", ino=made.ino, name=b"one more", value=b"", flags=0) == errno.ENOSPC
    assert session.errno("setxattr", ino=made.ino, name=b"%0255d" % 0, value=b"new", flags=0) == 0


def test_attributes_go_with_the_inode(volume: Volume, session: Session) -> None:
    made = session.closed(1, b"f")
    session.call("setxattr", ino=made.ino, name=b"user.a", value=b"1", flags=0)
    session.unlink(1, b"f")
    volume.reclaim()
    assert not volume.client.exists(f"{volume.key}:a:{made.ino}")


def test_statfs_counts(volume: Volume, session: Session) -> None:
    file = session.create(1, b"f")
    session.mkdir(1, b"d")
    session.commit(file.ino, {0: [session.segment(0, 10), session.segment(20, 5)]})
    assert volume.call("statfs") == [1, 2, 15]
