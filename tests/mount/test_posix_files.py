"""Open files, their sizes and their holes, beside a plain local directory."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from servers.protocol.limits import FILE_BYTES_MAX, LINKS_MAX
from tests.support.beside import Beside, attempt, facts, make
from tests.support.cluster import Mount
from tests.support.commands import opened, refused

MIB = 1024 * 1024
CHUNK = 8 * MIB
CREATE = os.O_CREAT | os.O_RDWR


def _sized(call: Callable[[], object], descriptor: int) -> tuple[str, int]:
    return attempt(call), os.fstat(descriptor).st_size


def test_truncating_up_makes_zeros_and_down_forgets(beside: Beside) -> None:
    """Through holes and over the edges of chunks; what was cut off does not come back."""

    def deed(place: Path) -> Any:
        found: list[Any] = []
        with opened(place / "f", CREATE) as descriptor:
            os.write(descriptor, b"x" * 1000)
            for size in (10, 2000, 0, 5, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7, CHUNK + 3, 100):
                os.ftruncate(descriptor, size)
                found.append((os.fstat(descriptor).st_size, os.pread(descriptor, 3000, 0)))
                os.pwrite(descriptor, b"end", max(0, size - 3))
                found.append((os.fstat(descriptor).st_size, os.pread(descriptor, 100, max(0, size - 50))))
        return found, (place / "f").read_bytes()

    beside.same(deed)


def test_reads_at_and_past_the_end(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        with opened(place / "f", CREATE) as descriptor:
            os.write(descriptor, b"0123456789")
            found = [os.pread(descriptor, count, at) for at in (0, 5, 9, 10, 11, 2**40, 2**62) for count in (0, 1, 100)]
            os.pwrite(descriptor, b"x", CHUNK + 5)
            found += [os.pread(descriptor, 20, at) for at in (0, 8, CHUNK - 10, CHUNK, CHUNK + 4, CHUNK + 6)]
        return found, attempt(lambda: os.pread(descriptor, 1, 0))

    beside.same(deed)


def test_offsets_at_the_end_of_the_world(beside: Beside) -> None:
    """EFBIG or EINVAL, never a wrap, and nothing is changed. Local file systems end earlier or later than we do."""

    def deed(place: Path) -> Any:
        found: list[Any] = []
        with opened(place / "f", CREATE) as descriptor:
            os.write(descriptor, b"here")
            for at in (2**63 - 1, 2**63 - 2, 2**63 - 4096, 2**63 - 65536):
                found.append(_sized(partial(os.pwrite, descriptor, b"xx", at), descriptor))
                found.append(_sized(partial(os.ftruncate, descriptor, at), descriptor))
            found.append(_sized(lambda: os.ftruncate(descriptor, -1), descriptor))
            found.append(_sized(lambda: os.pwrite(descriptor, b"x", -1), descriptor))
            found.append(_sized(lambda: os.lseek(descriptor, -1, os.SEEK_SET), descriptor))
            found.append(os.pread(descriptor, 10, 0))
        return found

    beside.same(deed)


def test_a_file_is_at_most_4_pib(beside: Beside) -> None:
    with opened(beside.mounted / "f", CREATE) as descriptor:
        os.pwrite(descriptor, b"last", FILE_BYTES_MAX - 4)
        assert os.fstat(descriptor).st_size == FILE_BYTES_MAX
        assert os.pread(descriptor, 10, FILE_BYTES_MAX - 6) == b"\0\0last"
        for at in (FILE_BYTES_MAX, FILE_BYTES_MAX + 1, 2**62):
            with refused(errno.EFBIG):
                os.pwrite(descriptor, b"x", at)
            if at > FILE_BYTES_MAX:
                with refused(errno.EFBIG):
                    os.ftruncate(descriptor, at)
        assert os.fstat(descriptor).st_size == FILE_BYTES_MAX
        os.fsync(descriptor)
        os.ftruncate(descriptor, 3)
    assert (beside.mounted / "f").read_bytes() == b"\0\0\0"


def test_a_limit_of_the_process_is_efbig(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            with opened(place / "f", CREATE) as descriptor:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
                return [
                    _sized(partial(os.pwrite, descriptor, b"x" * 100, at), descriptor)
                    for at in (0, 9900, 9950, 10_000, 20_000)
                ] + [_sized(lambda: os.ftruncate(descriptor, 10_001), descriptor)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)

    beside.same(deed)


FLAGS = {
    "trunc": os.O_WRONLY | os.O_TRUNC, "read and trunc": os.O_RDONLY | os.O_TRUNC, "append": os.O_WRONLY | os.O_APPEND,
    "append and trunc": os.O_RDWR | os.O_APPEND | os.O_TRUNC, "create": os.O_CREAT | os.O_WRONLY,
    "create and trunc": os.O_CREAT | os.O_TRUNC | os.O_RDWR, "exclusive": os.O_CREAT | os.O_EXCL | os.O_WRONLY,
    "sync": os.O_RDWR | os.O_SYNC, "dsync": os.O_RDWR | os.O_DSYNC, "no atime": os.O_RDWR | os.O_NOATIME,
    "directory": os.O_DIRECTORY, "read": os.O_RDONLY, "path": os.O_PATH, "nonblock": os.O_RDWR | os.O_NONBLOCK,
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_open_does_what_its_flags_say(beside: Beside, name: str) -> None:
    def deed(place: Path) -> Any:
        (place / "f").write_bytes(b"content")
        try:
            with opened(place / "f", FLAGS[name]) as descriptor:
                found = (
                    os.fstat(descriptor).st_size, _content(descriptor), attempt(os.write, descriptor, b"new"),
                    os.fstat(descriptor).st_size, attempt(os.ftruncate, descriptor, 5),
                    fcntl.fcntl(descriptor, fcntl.F_GETFL),
                )  # fmt: skip
        except OSError as error:
            return error.errno, facts(place / "f")
        return found, (place / "f").read_bytes()

    beside.same(deed)


def _content(descriptor: int) -> object:
    try:
        return os.pread(descriptor, 100, 0)
    except OSError as error:
        return error.errno


def test_descriptors_of_one_file_see_each_others_writes_at_once(beside: Beside) -> None:
    """Two opens, two names, a mapping: size and content."""

    def deed(place: Path) -> Any:
        found: list[Any] = []
        with opened(place / "a", CREATE) as one:
            os.link(place / "a", place / "b")
            with opened(place / "b", os.O_RDWR) as two, opened(place / "a", os.O_RDWR | os.O_APPEND) as end:
                os.write(one, b"x" * 100)
                found.append((os.fstat(two).st_size, os.pread(two, 200, 0)))
                os.write(end, b"end")
                found.append((os.fstat(one).st_size, os.pread(one, 200, 90)))
                os.pwrite(two, b"yy", 101)
                found.append((os.pread(one, 200, 90), (place / "b").stat().st_size))
                os.ftruncate(two, 50)
                found.append((os.fstat(one).st_size, os.pread(end, 200, 40)))
                os.write(end, b"again")
                os.write(one, b"sparse")
                found.append((os.fstat(two).st_size, os.pread(two, 200, 0)))
                with mmap.mmap(two, 0) as memory:
                    os.pwrite(one, b"seen", 10)
                    found.append(bytes(memory[8:16]))
                    memory[20:24] = b"page"
                    found.append(os.pread(one, 10, 18))
        return found, (place / "a").read_bytes() == (place / "b").read_bytes()

    beside.same(deed)


def test_an_unlinked_file_can_do_all_that_others_can(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        with opened(place / "f", CREATE) as descriptor:
            os.write(descriptor, b"before")
            (place / "f").unlink()
            found: list[Any] = [os.fstat(descriptor).st_nlink]
            os.write(descriptor, b" after")
            os.ftruncate(descriptor, CHUNK + 5)
            os.pwrite(descriptor, b"edge", CHUNK - 2)
            os.fchmod(descriptor, 0o640)
            os.fchown(descriptor, 5, 6)
            os.setxattr(descriptor, "user.x", b"1")
            os.utime(descriptor, (3, 4))
            found += [os.getxattr(descriptor, "user.x"), os.listxattr(descriptor)]
            os.fsync(descriptor)
            after = os.fstat(descriptor)
            found += [after.st_size, oct(after.st_mode), after.st_uid, after.st_gid, after.st_mtime, after.st_nlink]
            found += [os.pread(descriptor, 20, 0), os.pread(descriptor, 20, CHUNK - 4)]
            found.append(attempt(os.link, f"/proc/self/fd/{descriptor}", place / "again", follow_symlinks=True))
            with mmap.mmap(descriptor, 0) as memory:
                memory[0:3] = b"MAP"
                memory.flush()
            found.append(os.pread(descriptor, 10, 0))
            with opened(f"/proc/self/fd/{descriptor}", os.O_RDWR) as again:  # type: ignore[arg-type]
                found.append(os.pread(again, 10, 0))
        return found, os.listdir(place)

    beside.same(deed)


def test_a_directory_that_was_removed_while_open_is_empty_and_takes_nothing(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        (place / "d").mkdir()
        with opened(place / "d", os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            (place / "d").rmdir()
            return [
                os.listdir(descriptor), os.fstat(descriptor).st_nlink,
                attempt(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor),
                attempt(os.mkdir, "new", dir_fd=descriptor), attempt(os.stat, "..", dir_fd=descriptor),
                attempt(os.stat, ".", dir_fd=descriptor), attempt(os.fchmod, descriptor, 0o700),
                attempt(os.symlink, "x", "new", dir_fd=descriptor),
                attempt(os.link, place, "new", dst_dir_fd=descriptor),
            ]  # fmt: skip

    beside.same(deed)


def test_mappings_shared_and_private(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        size = 3 * mmap.PAGESIZE + 10
        (place / "f").write_bytes(bytes(range(256)) * 48 + b"ten bytes.")
        found: list[Any] = []
        with opened(place / "f", os.O_RDWR) as descriptor:
            with mmap.mmap(descriptor, size, mmap.MAP_PRIVATE) as private:
                private[0:4] = b"mine"
                found.append((bytes(private[:6]), os.pread(descriptor, 6, 0)))
            with mmap.mmap(descriptor, size, mmap.MAP_SHARED) as shared:
                shared[mmap.PAGESIZE - 2 : mmap.PAGESIZE + 2] = b"edge"
                found.append(os.pread(descriptor, 8, mmap.PAGESIZE - 4))
                os.pwrite(descriptor, b"written", 100)
                found.append(bytes(shared[98:110]))
                shared[-3:] = b"end"
                shared.flush()
            found.append((os.fstat(descriptor).st_size, os.pread(descriptor, 100, size - 5)))
        return found, (place / "f").read_bytes()

    beside.same(deed)


def test_a_mapping_outlives_its_descriptor_and_its_name(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        (place / "f").write_bytes(b"x" * 10_000)
        os.link(place / "f", place / "g")
        with opened(place / "f", os.O_RDWR) as descriptor:
            memory = mmap.mmap(descriptor, 10_000)
        memory[5000:5005] = b"later"
        (place / "f").unlink()
        memory[6000:6005] = b"still"
        memory.close()
        content = (place / "g").read_bytes()
        return content[4998:5007], content[5998:6007], len(content)

    beside.same(deed)


def test_direct_reads_and_writes(beside: Beside) -> None:
    """O_DIRECT, aligned; beside a buffered descriptor of the same file."""

    def deed(place: Path) -> Any:
        block = mmap.mmap(-1, 4096 * 4)
        block[:] = b"d" * len(block)
        with (
            opened(place / "f", CREATE | os.O_DIRECT) as direct,
            opened(place / "f", os.O_RDWR) as buffered,
        ):
            os.writev(direct, [block])
            found = [os.fstat(buffered).st_size, os.pread(buffered, 4, 4094)]
            os.pwrite(buffered, b"buffered", 4096)
            os.fsync(buffered)
            os.preadv(direct, [block], 0)
            found += [bytes(block[4094:4106]), os.preadv(direct, [block], 4096 * 3), bytes(block[:3])]
        return found, (place / "f").read_bytes()

    beside.same(deed)


def test_appends_of_threads_land_whole(beside: Beside) -> None:
    path = beside.mounted / "f"

    def append(letter: bytes) -> None:
        with opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
            for _ in range(50):
                os.write(descriptor, letter * 99 + b"\n")

    threads = [threading.Thread(target=append, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == sorted([b"a" * 99, b"b" * 99, b"c" * 99] * 50)


def test_holes_take_no_blocks(beside: Beside) -> None:
    """du(1) knows sparse files, also while they are written."""
    path = beside.mounted / "f"
    with opened(path, CREATE) as descriptor:
        os.ftruncate(descriptor, 100 * MIB)
        assert os.fstat(descriptor).st_blocks == 0
        os.pwrite(descriptor, b"x" * 8192, 50 * MIB)
        assert os.fstat(descriptor).st_blocks == 16
        os.fsync(descriptor)
        assert os.fstat(descriptor).st_blocks == 16
        os.pwrite(descriptor, b"y" * 8192, 50 * MIB)
        os.fsync(descriptor)
        assert os.fstat(descriptor).st_blocks == 16
        os.ftruncate(descriptor, 50 * MIB + 4096)
        assert os.fstat(descriptor).st_blocks == 8
        os.ftruncate(descriptor, 0)
        assert os.fstat(descriptor).st_blocks == 0
    path.write_bytes(b"x" * 5000)
    assert path.stat().st_blocks == 10


def test_special_files_of_all_kinds_keep_what_they_are(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        devices = [(0, 0), (1, 3), (255, 255), (256, 1), (4095, 1_048_575), (1, 256)]
        for number, (major, minor) in enumerate(devices):
            os.mknod(place / f"c{number}", stat.S_IFCHR | 0o600, os.makedev(major, minor))
            os.mknod(place / f"b{number}", stat.S_IFBLK | 0o600, os.makedev(major, minor))
        os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with (place / "null").open("wb") as null:
            null.write(b"swallowed")
        return {name: facts(place / name) for name in os.listdir(place)}, (place / "null").read_bytes()

    beside.same(deed)


def test_fifos_and_sockets_work(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        os.mkfifo(place / "fifo")
        with opened(place / "fifo", os.O_RDWR) as both:
            os.write(both, b"through")
            found: list[Any] = [os.read(both, 100)]
        here = os.open(".", os.O_PATH)
        os.chdir(place)
        try:
            with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
                server.bind("socket")
                found += [attempt(server.bind, "socket"), facts("socket")]
                server.listen()
                client.connect("socket")
                client.send(b"hello")
                accepted, _ = server.accept()
                with accepted:
                    found.append(accepted.recv(10))
            with socket.socket(socket.AF_UNIX) as late:
                found.append(attempt(late.connect, "socket"))
        finally:
            os.fchdir(here)
            os.close(here)
        return found

    beside.same(deed)


def test_an_unnamed_temporary_file_is_made_or_refused_as_programs_know_it(beside: Beside) -> None:
    """O_TMPFILE: glibc and Python fall back to a name where EOPNOTSUPP says so."""
    said = attempt(lambda: os.close(os.open(beside.mounted, os.O_TMPFILE | os.O_RDWR, 0o600)))
    assert said == "ENOTSUP"
    with tempfile.TemporaryFile(dir=beside.mounted) as file:
        file.write(b"works")
        file.seek(0)
        assert file.read() == b"works"


def test_what_cannot_be_carried_is_refused_so_that_programs_fall_back(beside: Beside) -> None:
    with opened(beside.mounted / "f", CREATE) as descriptor:
        os.posix_fallocate(descriptor, 0, 100_000)
        assert os.fstat(descriptor).st_size == 100_000
        with opened(beside.mounted / "large", CREATE) as large:  # A byte in each of so many blocks.
            os.posix_fallocate(large, 0, 80 * MIB)
            os.fsync(large)
            os.pwrite(large, b"x", 40 * MIB)
        assert (beside.mounted / "large").read_bytes() == bytes(40 * MIB) + b"x" + bytes(40 * MIB - 1)
        os.posix_fallocate(descriptor, 50_000, 10_000)
        assert os.fstat(descriptor).st_size == 100_000
        for offset, length in ((-1, 1), (0, 0), (0, -1), (5, -5)):
            with refused(errno.EINVAL):
                os.posix_fallocate(descriptor, offset, length)
        os.pwrite(descriptor, b"x", 200_000)
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 200_001  # No holes are told.
        with opened(beside.mounted / "copy", CREATE) as copy:
            assert os.copy_file_range(descriptor, copy, 200_001, 0, 0) == 200_001
        assert (beside.mounted / "copy").read_bytes() == (beside.mounted / "f").read_bytes()


@pytest.mark.long
def test_a_file_has_at_most_65000_links(beside: Beside) -> None:
    make("file", beside.mounted / "f")
    for number in range(1, LINKS_MAX):
        os.link(beside.mounted / "f", beside.mounted / f"{number}")
    with refused(errno.EMLINK):
        os.link(beside.mounted / "f", beside.mounted / "one too many")
    assert (beside.mounted / "f").stat().st_nlink == LINKS_MAX


def test_inode_and_device_numbers_stay_over_a_remount(open_mount: Mount, beside: Beside) -> None:
    for name in ("d", "e"):
        (beside.mounted / name).mkdir()
        (beside.mounted / name / "f").write_bytes(b"x")
    os.link(beside.mounted / "d" / "f", beside.mounted / "second")
    before = {path: path.stat() for path in sorted(beside.mounted.rglob("*"))}
    open_mount.remount()
    after = {path: path.stat() for path in sorted(beside.mounted.rglob("*"))}
    assert [(s.st_ino, s.st_nlink, s.st_mtime_ns, s.st_ctime_ns, s.st_blocks) for s in before.values()] == [
        (s.st_ino, s.st_nlink, s.st_mtime_ns, s.st_ctime_ns, s.st_blocks) for s in after.values()
    ]
    assert len({s.st_dev for s in (*after.values(), open_mount.path.stat())}) == 1
    assert open_mount.path.stat().st_ino == 1
    listed = {entry.path: entry.inode() for entry in os.scandir(beside.mounted)}
    assert listed == {path: os.lstat(path).st_ino for path in listed}
