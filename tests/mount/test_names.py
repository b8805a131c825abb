"""Names, links, attributes: what system calls promise about them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Mount
from tests.support.commands import opened, refused, run


def test_an_unlinked_file_stays_usable_until_it_is_closed(place: Path) -> None:
    with opened(place / "f", os.O_RDWR | os.O_CREAT) as descriptor:
        os.write(descriptor, b"before")
        os.fsync(descriptor)
        (place / "f").unlink()
        assert list(place.iterdir()) == []
        assert os.fstat(descriptor).st_nlink == 0
        os.write(descriptor, b" and after")
        os.fsync(descriptor)
        assert os.pread(descriptor, 100, 0) == b"before and after"
        (place / "f").write_bytes(b"another")
        assert os.pread(descriptor, 100, 0) == b"before and after"
    assert (place / "f").read_bytes() == b"another"


def test_a_file_that_was_renamed_over_stays_usable_until_it_is_closed(place: Path) -> None:
    (place / "old").write_bytes(b"old")
    with opened(place / "old", os.O_RDWR) as descriptor:
        (place / "new").write_bytes(b"new")
        (place / "new").rename(place / "old")
        assert os.pread(descriptor, 100, 0) == b"old"
        os.pwrite(descriptor, b"OLD", 0)
        assert os.pread(descriptor, 100, 0) == b"OLD"
        assert (place / "old").read_bytes() == b"new"
    assert (place / "old").read_bytes() == b"new"


def test_a_file_that_is_renamed_while_it_is_written_keeps_every_byte(place: Path) -> None:
    """Write a temporary file, rename it, without closing it first: the new name never shows less."""
    with opened(place / "temporary", os.O_WRONLY | os.O_CREAT) as descriptor:
        os.write(descriptor, b"x" * 100_000)
        (place / "temporary").rename(place / "final")
        assert (place / "final").stat().st_size == 100_000
        os.write(descriptor, b"y" * 10)
    assert (place / "final").read_bytes() == b"x" * 100_000 + b"y" * 10


def test_a_listing_under_way_gives_no_file_a_name_back(place: Path) -> None:
    """Write a temporary file and rename it, again and again, while another program lists the directory: the next
    temporary file is a new one, never the one that has its name already."""
    for number in range(400):
        (place / f"{number:03d}-{'x' * 200}").touch()
    for number in range(3):
        (place / "temporary").write_bytes(b"old %d" % number)
        with os.scandir(place) as listing:
            next(listing)  # What the kernel asks for piece by piece the mount has read by now.
            (place / "temporary").rename(place / "kept")
            assert len(list(listing)) >= 400
            (place / "temporary").write_bytes(b"new")
        assert (place / "kept").read_bytes() == b"old %d" % number


def test_hard_links_are_one_file(place: Path) -> None:
    (place / "a").write_bytes(b"one")
    os.link(place / "a", place / "b")
    assert (place / "a").stat().st_nlink == (place / "b").stat().st_nlink == 2
    assert (place / "a").samefile(place / "b")
    with (place / "b").open("ab") as file:
        file.write(b" two")
    assert (place / "a").read_bytes() == b"one two"
    (place / "a").unlink()
    assert (place / "b").stat().st_nlink == 1
    assert (place / "b").read_bytes() == b"one two"
    with refused(errno.EEXIST):
        os.link(place / "b", place / "b")


def test_extended_attributes_are_kept(place: Path) -> None:
    file = place / "f"
    file.touch()
    assert os.listxattr(file) == []
    os.setxattr(file, "user.color", b"blue")
    os.setxattr(file, "user.empty", b"")
    os.setxattr(file, "user.large", os.urandom(5) * 10_000)
    assert sorted(os.listxattr(file)) == ["user.color", "user.empty", "user.large"]
    assert os.getxattr(file, "user.color") == b"blue"
    assert os.getxattr(file, "user.empty") == b""
    assert len(os.getxattr(file, "user.large")) == 50_000
    os.setxattr(file, "user.color", b"red", os.XATTR_REPLACE)
    assert os.getxattr(file, "user.color") == b"red"
    os.removexattr(file, "user.color")
    with refused(errno.ENODATA):
        os.getxattr(file, "user.color")
    with refused(errno.ENODATA):
        os.removexattr(file, "user.color")
    os.setxattr(place, "user.on-directory", b"1")
    assert os.getxattr(place, "user.on-directory") == b"1"


def test_symlinks_lead_where_they_say(place: Path) -> None:
    (place / "target").write_bytes(b"here")
    (place / "link").symlink_to("target")
    assert (place / "link").readlink() == Path("target")
    assert (place / "link").read_bytes() == b"here"
    assert (place / "link").lstat().st_size == 6
    (place / "loop").symlink_to("loop")
    with refused(errno.ELOOP):
        (place / "loop").stat()


def test_modes_owners_and_times_are_kept_to_the_nanosecond(place: Path) -> None:
    file = place / "f"
    file.write_bytes(b"x")
    file.chmod(0o4751)
    assert stat.S_IMODE(file.stat().st_mode) == 0o4751
    os.utime(file, ns=(1_000_000_001, 2_000_000_000_000_000_003))
    found = file.stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, 2_000_000_000_000_000_003)
    before = time.time()
    file.write_bytes(b"newer")
    assert before - 2 < file.stat().st_mtime < time.time() + 2
    if os.geteuid() == 0:
        os.chown(file, 1234, 5678)
        assert (file.stat().st_uid, file.stat().st_gid) == (1234, 5678)


def test_the_time_that_was_set_stays_when_the_file_is_closed(place: Path) -> None:
    """`cp -p` writes, sets the time and only then closes."""
    with opened(place / "f", os.O_WRONLY | os.O_CREAT) as descriptor:
        os.write(descriptor, b"content")
        os.utime(descriptor, ns=(5, 1_500_000_000_000_000_007))
    assert (place / "f").stat().st_mtime_ns == 1_500_000_000_000_000_007


def test_names_may_be_any_bytes(place: Path) -> None:
    names = [b"\xff\xfe", b"new\nline", b" ", b"\x01\x7f", "ü".encode(), b"x" * 255, b"\\x41", b"-rf"]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(place), name))).write_bytes(name)
    assert sorted(os.listdir(os.fsencode(place))) == sorted(names)
    for name in names:
        assert Path(os.fsdecode(os.path.join(os.fsencode(place), name))).read_bytes() == name
    with refused(errno.ENAMETOOLONG):
        (place / ("x" * 256)).touch()


def test_directories_with_many_names_list_each_once(place: Path) -> None:
    """More than a page, also while names come and go."""
    names = {f"{number:05}" for number in range(3000)}
    for name in names:
        (place / name).touch()
    seen: list[str] = []
    with os.scandir(place) as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) % 500 == 0:
                (place / f"new{len(seen)}").touch()
                names.discard(entry.name)
                (place / entry.name).unlink()
    assert len(seen) == len(set(seen))
    assert names <= set(seen)
    shutil.rmtree(place)
    assert not place.exists()


def test_what_cannot_be_done_is_refused_with_the_right_errno(place: Path) -> None:
    (place / "file").touch()
    (place / "full" / "sub").mkdir(parents=True)
    with refused(errno.ENOTEMPTY):
        (place / "full").rmdir()
    with refused(errno.EEXIST):
        (place / "full").mkdir()
    with refused(errno.ENOENT):
        (place / "nothing").unlink()
    with refused(errno.ENOTDIR):
        (place / "file" / "below").touch()
    with refused(errno.EISDIR):
        os.open(place / "full", os.O_WRONLY)
    with refused(errno.ENOTDIR):
        (place / "full").rename(place / "file")
    with refused(errno.EINVAL):
        (place / "full").rename(place / "full" / "sub" / "inside")
    with refused(errno.EEXIST):
        os.open(place / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_df_shows_the_space_of_the_cluster(mounted: Cluster, mount: Mount) -> None:
    """What files can use: raw space divided by the number of copies."""
    found, status = os.statvfs(mount.path), mounted.status()
    assert found.f_frsize * found.f_bavail == pytest.approx(status["free_bytes"], rel=0.02)
    assert found.f_frsize * found.f_blocks >= found.f_frsize * found.f_bavail > 0
    assert found.f_namemax == 255
    total, used, free = (int(n) for n in run("df", "-k", "--output=size,used,avail", mount.path).split()[-3:])
    assert total * 1024 == found.f_frsize * found.f_blocks
    assert free * 1024 == pytest.approx(status["free_bytes"], rel=0.02)
    assert 0 <= used < total


def test_files_that_follow_each_other_have_times_that_do(place: Path) -> None:
    """Made, written or touched: whatever a program does later is not the older; make(1) lives by that."""
    times = []
    for number in range(20):
        made, written, touched = (place / f"{what}{number}" for what in ("made", "written", "touched"))
        made.touch()
        written.write_bytes(b"x")
        touched.touch()
        touched.touch()
        times += [path.stat().st_mtime_ns for path in (made, written, touched)]
    assert times == sorted(times)


def test_a_time_of_just_now_is_set_as_it_was_given(place: Path) -> None:
    """As `cp -p` of a file that was written this very moment does."""
    original, copy = place / "original", place / "copy"
    for number in range(20):
        original.write_bytes(bytes(number))
        copy.touch()
        seen = original.stat()
        os.utime(copy, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        assert copy.stat().st_mtime_ns == seen.st_mtime_ns
