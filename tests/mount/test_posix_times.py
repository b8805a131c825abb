"""atime, mtime and ctime move exactly when POSIX says, beside a plain local directory."""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.beside import KINDS, Beside, attempt, changed_times, make, rename2, wait_for_the_clock
from tests.support.cluster import Cluster
from tests.support.commands import opened
from tests.support.users import ALICE, BOB, acting_as

EXCHANGE = 2
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


def _touch(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def _write(path: Path, data: bytes, flags: int = os.O_WRONLY) -> None:
    with opened(path, flags) as descriptor:
        os.write(descriptor, data)


def _fsync(path: Path) -> None:
    with opened(path, os.O_RDWR) as descriptor:
        os.fsync(descriptor)


MAKING: dict[str, Callable[[Path], object]] = {
    "create": lambda d: _touch(d / "new"),
    "create what is there": lambda d: _touch(d / "it"),
    "mkdir": lambda d: os.mkdir(d / "new"),
    "mkfifo": lambda d: os.mkfifo(d / "new"),
    "mknod": lambda d: os.mknod(d / "new", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "symlink": lambda d: os.symlink("x", d / "new"),
    "link": lambda d: os.link(d / "it", d / "new"),
    "unlink": lambda d: os.unlink(d / "it"),
    "unlink one of two": lambda d: os.unlink(d / "second"),
    "rmdir": lambda d: os.rmdir(d / "empty"),
    "rename": lambda d: os.rename(d / "it", d / "new"),
    "rename away": lambda d: os.rename(d / "it", d / "sub" / "new"),
    "rename onto": lambda d: os.rename(d / "it", d / "victim"),
    "rename a directory away": lambda d: os.rename(d / "empty", d / "sub" / "new"),
    "exchange": lambda d: rename2(d / "it", d / "sub" / "other", EXCHANGE),
    "fail: create exclusively": lambda d: os.open(d / "it", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "fail: mkdir": lambda d: os.mkdir(d / "it"),
    "fail: symlink": lambda d: os.symlink("x", d / "it"),
    "fail: link": lambda d: os.link(d / "it", d / "victim"),
    "fail: link a directory": lambda d: os.link(d / "empty", d / "new"),
    "fail: mkfifo": lambda d: os.mkfifo(d / "it"),
    "fail: unlink": lambda d: os.unlink(d / "nothing"),
    "fail: unlink a directory": lambda d: os.unlink(d / "empty"),
    "fail: rmdir a file": lambda d: os.rmdir(d / "it"),
    "fail: rmdir a full one": lambda d: os.rmdir(d / "sub"),
    "fail: rename onto a directory": lambda d: os.rename(d / "it", d / "sub"),
    "fail: rename a directory onto a file": lambda d: os.rename(d / "sub", d / "it"),
    "fail: rename onto a full directory": lambda d: os.rename(d / "empty", d / "sub"),
    "fail: rename into itself": lambda d: os.rename(d / "sub", d / "sub" / "new"),
    "fail: rename what is not there": lambda d: os.rename(d / "nothing", d / "it"),
    "fail: exchange with nothing": lambda d: rename2(d / "it", d / "nothing", EXCHANGE),
    "fail: noreplace": lambda d: rename2(d / "it", d / "victim", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKING)
def test_names_move_the_times_of_files_and_directories(beside: Beside, name: str) -> None:
    def deed(place: Path) -> Any:
        there = place / "there"
        (there / "sub").mkdir(parents=True)
        (there / "empty").mkdir()
        for file in ("it", "victim", "sub/other"):
            (there / file).touch()
        os.link(there / "it", there / "second")
        os.link(there / "victim", place / "victim's other name")
        paths = {"it": there / "second", "sub/other": there / "sub", "place": place}
        if name == "unlink one of two":
            paths["it"] = there / "it"
        return changed_times(
            lambda: MAKING[name](there), there=there, victim=place / "victim's other name", **paths
        )  # fmt: skip

    beside.same(deed)


def test_what_is_made_has_the_time_of_its_making(beside: Beside) -> None:
    for kind in KINDS:
        for place in (beside.local, beside.mounted):
            before = time.time_ns() - 50_000_000
            make(kind, place / kind)
            made, parent = os.lstat(place / kind), place.stat()
            assert made.st_atime_ns == made.st_mtime_ns == made.st_ctime_ns
            assert before < made.st_mtime_ns < time.time_ns() + 50_000_000
            assert parent.st_mtime_ns == parent.st_ctime_ns
            assert abs(parent.st_mtime_ns - made.st_mtime_ns) < 50_000_000


CHANGES: dict[str, Callable[[Path], object]] = {
    "chmod": lambda f: os.chmod(f, 0o600),
    "chmod to what it is": lambda f: os.chmod(f, stat.S_IMODE(os.stat(f).st_mode)),
    "chown": lambda f: os.chown(f, 1, 1),
    "chown to what it is": lambda f: os.chown(f, 0, 0),
    "chown to nobody in particular": lambda f: os.chown(f, -1, -1),
    "setxattr": lambda f: os.setxattr(f, "trusted.a", b"1"),
    "setxattr again": lambda f: os.setxattr(f, "trusted.there", b"1"),
    "removexattr": lambda f: os.removexattr(f, "trusted.there"),
    "fail: removexattr": lambda f: os.removexattr(f, "trusted.nothing"),
    "fail: setxattr": lambda f: os.setxattr(f, "trusted.there", b"1", os.XATTR_CREATE),
    "getxattr": lambda f: os.getxattr(f, "trusted.there"),
    "listxattr": os.listxattr,
    "stat": os.stat,
    "access": lambda f: os.access(f, os.R_OK),
    "utime": lambda f: os.utime(f, (3, 4)),
    "utime now": os.utime,
}  # fmt: skip
CONTENT: dict[str, Callable[[Path], object]] = {
    "open": lambda f: os.close(os.open(f, os.O_RDWR)),
    "read": lambda f: f.read_bytes(),
    "write": lambda f: _write(f, b"1"),
    "write nothing": lambda f: _write(f, b""),
    "append": lambda f: _write(f, b"1", os.O_WRONLY | os.O_APPEND),
    "truncate": lambda f: os.truncate(f, 3),
    "truncate to the same size": lambda f: os.truncate(f, 10),
    "truncate up": lambda f: os.truncate(f, 30),
    "open and truncate": lambda f: os.close(os.open(f, os.O_WRONLY | os.O_TRUNC)),
    "fail: truncate": lambda f: os.truncate(f, -1),
    "fsync": _fsync,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "character"])
def test_changed_attributes_move_ctime(beside: Beside, kind: str) -> None:
    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for name, change in CHANGES.items():
            make(kind, place / "it")
            os.setxattr(place / "it", "trusted.there", b"0")
            found[name] = changed_times(partial(change, place / "it"), it=place / "it", place=place)
            (place / "it").rmdir() if kind == "directory" else (place / "it").unlink()
        return found

    beside.same(deed)


def test_changed_content_moves_mtime_and_ctime(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for name, change in CONTENT.items():
            (place / name).write_bytes(b"0123456789")
            found[name] = changed_times(partial(change, place / name), it=place / name, place=place)
        return found

    beside.same(deed)


def test_an_empty_file_that_is_truncated_to_nothing(beside: Beside) -> None:
    """open(2) with O_TRUNC and ftruncate(2) to the same size; POSIX has the times move."""

    def deed(place: Path) -> Any:
        (place / "a").touch()
        return [
            changed_times(lambda: os.close(os.open(place / "a", os.O_WRONLY | os.O_TRUNC)), a=place / "a"),
            changed_times(lambda: os.truncate(place / "a", 0), a=place / "a"),
            changed_times(lambda: os.close(os.open(place / "a", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)), a=place / "a"),
        ]

    beside.same(deed)


def test_reads_move_atime_as_relatime_has_it(beside: Beside) -> None:
    """The first read after a change does, the next does not; after a day one does again."""

    def deed(place: Path) -> Any:
        found: list[Any] = []
        (place / "file").write_bytes(b"x" * 10)
        (place / "directory" / "inside").mkdir(parents=True)
        (place / "link").symlink_to("file")
        looks: dict[str, Callable[[], object]] = {
            "file": (place / "file").read_bytes,
            "directory": lambda: os.listdir(place / "directory"),
            "link": lambda: os.readlink(place / "link"),
        }
        day = 24 * 60 * 60
        for name, look in looks.items():
            path = place / name
            found += [changed_times(look, it=path) for _ in range(2)]
            for atime, mtime in ((1, 2), (2, 1), (time.time() - day - 100, 1), (time.time() - day + 100, 1)):
                os.utime(path, (atime, mtime), follow_symlinks=False)
                wait_for_the_clock()
                found += [changed_times(look, it=path) for _ in range(2)]
        return found

    beside.same(deed)


def test_reads_of_an_open_file_move_its_atime(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        (place / "f").write_bytes(b"x" * 10)
        found: list[Any] = []
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDONLY | os.O_NOATIME):
            os.utime(place / "f", (1, 2))
            wait_for_the_clock()
            with opened(place / "f", flags) as descriptor:
                found.append(changed_times(partial(os.read, descriptor, 5), it=place / "f"))
                found.append(os.fstat(descriptor).st_atime_ns == (place / "f").stat().st_atime_ns)
        os.utime(place / "f", (1, 2))
        with opened(place / "f", os.O_RDONLY) as descriptor:
            found.append(changed_times(lambda: os.lseek(descriptor, 0, os.SEEK_END), it=place / "f"))
        return found

    beside.same(deed)


def test_without_atime_reading_leaves_no_trace(mounted: Cluster, place: Path) -> None:
    (place / "f").write_bytes(b"x")
    quiet = mounted.mount("noatime", "-o", "noatime")
    there = quiet.path / place.name
    calls: dict[str, Callable[[], object]] = {"read": (there / "f").read_bytes, "list": lambda: os.listdir(there)}
    for call in calls.values():
        assert changed_times(call, f=there / "f", there=there) == {"result": "done", "f": "", "there": ""}
    quiet.unmount()


def test_utimensat_with_now_and_omit(beside: Beside) -> None:
    """Each of both times: a value, now, or left alone; on each kind of file."""
    values = {"set": 1_234_567_890_123_456_789, "now": UTIME_NOW, "omit": UTIME_OMIT}

    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for kind in KINDS:
            make(kind, place / kind)
            os.utime(place / kind, ns=(11, 22), follow_symlinks=False)
            for a, atime in values.items():
                for m, mtime in values.items():
                    before = os.lstat(place / kind)
                    wait_for_the_clock()
                    utimensat(place / kind, atime, mtime)
                    after = os.lstat(place / kind)
                    found[f"{kind} {a} {m}"] = (
                        _name(before.st_atime_ns, after.st_atime_ns), _name(before.st_mtime_ns, after.st_mtime_ns),
                        before.st_ctime_ns < after.st_ctime_ns,
                    )  # fmt: skip
        return found

    beside.same(deed)


def _name(before: int, after: int) -> str:
    return "kept" if after == before else "now" if abs(after - time.time_ns()) < 60 * 10**9 else str(after)


@pytest.mark.parametrize(
    "time_ns",
    [0, 1, 999_999_999, -1, -1_500_000_001, -(2**31) * 10**9, (2**31 - 1) * 10**9, 2**31 * 10**9, 2**32 * 10**9 + 5],
)
def test_times_far_away_are_kept(beside: Beside, time_ns: int) -> None:
    def deed(place: Path) -> Any:
        (place / "f").touch()
        os.utime(place / "f", ns=(time_ns, time_ns))
        found = (place / "f").stat()
        return found.st_atime_ns, found.st_mtime_ns

    assert beside.same(deed) == (time_ns, time_ns)


def test_who_may_set_which_times(beside: Beside) -> None:
    """The owner any; who may write, both to now; nobody else."""
    values = {"set": 1_234_567_890_000_000_000, "now": UTIME_NOW, "omit": UTIME_OMIT}

    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for mode in (0o644, 0o666, 0o444, 0o000):
            for user in (ALICE, BOB):
                for a, atime in values.items():
                    for m, mtime in values.items():
                        (place / "f").touch()
                        (place / "f").chmod(mode)
                        os.chown(place / "f", ALICE.uid, ALICE.gid)

                        def call(atime: int = atime, mtime: int = mtime, user: Any = user) -> None:
                            with acting_as(user):
                                utimensat(place / "f", atime, mtime)

                        found[f"{mode:o} {user.uid} {a} {m}"] = changed_times(call, f=place / "f")
                        (place / "f").unlink()
        return found

    beside.same(deed)


def utimensat(path: Path, atime_ns: int, mtime_ns: int) -> None:
    """With UTIME_NOW and UTIME_OMIT, which os.utime cannot say; does not follow symlinks."""

    class Timespec(ctypes.Structure):
        _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))

    def spec(ns: int) -> Timespec:
        return Timespec(0, ns) if ns in (UTIME_NOW, UTIME_OMIT) else Timespec(ns // 10**9, ns % 10**9)

    libc = ctypes.CDLL(None, use_errno=True)
    times = (Timespec * 2)(spec(atime_ns), spec(mtime_ns))
    if libc.utimensat(-100, os.fsencode(path), times, 0x100) != 0:
        raise OSError(ctypes.get_errno(), "utimensat")


def test_a_write_shows_in_stat_at_once(beside: Beside) -> None:
    """Size, mtime and ctime of an open file, by its descriptor and by its name."""

    def deed(place: Path) -> Any:
        found: list[Any] = []
        with opened(place / "f", os.O_CREAT | os.O_RDWR) as descriptor:
            for step in (b"a" * 10, b"b" * 5000, b""):
                wait_for_the_clock()
                before = os.fstat(descriptor)
                os.write(descriptor, step)
                after, named = os.fstat(descriptor), (place / "f").stat()
                found.append((
                    after.st_size, after.st_mtime_ns > before.st_mtime_ns, after.st_ctime_ns > before.st_ctime_ns,
                    after.st_mtime_ns == after.st_ctime_ns, named == after,
                ))  # fmt: skip
            last = os.fstat(descriptor)
        closed = (place / "f").stat()
        return found, closed.st_mtime_ns == last.st_mtime_ns, closed.st_ctime_ns >= last.st_ctime_ns

    beside.same(deed)


def test_a_shared_mapping_moves_mtime_when_it_is_synced(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        (place / "f").write_bytes(b"x" * 10_000)
        with opened(place / "f", os.O_RDWR) as descriptor, mmap.mmap(descriptor, 10_000) as memory:
            assert memory[5000] == ord("x")  # Read first: when a mapping moves atime is nobody's promise.

            def change() -> None:
                memory[5000] = 65
                memory.flush()

            found = changed_times(change, f=place / "f")
        return found, (place / "f").read_bytes()[4999:5002]

    beside.same(deed)


def test_failures_of_other_users_move_no_times(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        (place / "sub").mkdir()
        (place / "sub" / "f").write_bytes(b"x")
        found: dict[Any, Any] = {}
        calls: dict[str, Callable[[], object]] = {
            "chmod": lambda: os.chmod(place / "sub" / "f", 0o777),
            "chown": lambda: os.chown(place / "sub" / "f", BOB.uid, BOB.gid),
            "truncate": lambda: os.truncate(place / "sub" / "f", 0),
            "unlink": lambda: os.unlink(place / "sub" / "f"),
            "create": lambda: _touch(place / "sub" / "new"),
            "utime": lambda: os.utime(place / "sub" / "f"),
            "rename": lambda: os.rename(place / "sub" / "f", place / "sub" / "g"),
            "link": lambda: os.link(place / "sub" / "f", place / "sub" / "g"),
            "setxattr": lambda: os.setxattr(place / "sub" / "f", "user.a", b"1"),
        }
        for name, call in calls.items():

            def as_bob(call: Callable[[], object] = call) -> None:
                with acting_as(BOB):
                    call()

            found[name] = changed_times(as_bob, f=place / "sub" / "f", sub=place / "sub")
        return found

    found = beside.same(deed)
    assert isinstance(found, dict)
    assert all(row == {"result": row["result"], "f": "", "sub": ""} for row in found.values())
    assert attempt(os.stat, beside.mounted) == "done"
