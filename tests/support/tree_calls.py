"""System calls on a directory tree, as values: the same can be done on several trees, and compared.

    plain, mounted = Tree(Path("/tmp/a"), USERS, 4), Tree(Path("/mnt/a"), USERS, 4)
    call = Call("mkdir", 1, (b"x",), (0o755,))
    assert plain.do(call) == mounted.do(call)

Paths are relative to the tree. Descriptors live in numbered slots and stay open from call to
call. A tree changes the working directory of the process and, during a call, its effective user.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.users import User, acting_as

NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
"""utimensat(2): instead of nanoseconds."""
AT_FDCWD, AT_SYMLINK_NOFOLLOW = -100, 0x100
CONTENT_BYTES_MAX = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)

Target = bytes | int
"""A path, or the number of a slot."""


class Call(NamedTuple):
    """`verb` names a method of Tree, `user` one of its users."""

    verb: str
    user: int
    targets: tuple[Target, ...]
    rest: tuple[Any, ...] = ()


class Object(NamedTuple):
    """What stat(2) says, but for what may differ between two file systems."""

    mode: str
    uid: int
    gid: int
    nlink: int
    size: int | None
    device: int | None


class Seen(NamedTuple):
    """What a call was about, or the directory of that: how it is afterwards, and which of its times the call moved."""

    target: Target
    now: Object | str
    moved: tuple[str, ...]


class Outcome(NamedTuple):
    result: Any
    """What the call returned, or the name of its errno."""
    seen: tuple[Seen, ...]


class Tree:
    def __init__(self, root: Path, users: Sequence[tuple[User, int]], slots: int) -> None:
        """`users`: each with its umask."""
        root.mkdir(parents=True)
        root.chmod(0o777)
        self._users = users
        self._slots: list[int | None] = [None] * slots
        self._root = os.open(root, os.O_PATH | os.O_DIRECTORY)

    def close(self) -> None:
        for number, descriptor in enumerate(self._slots):
            if descriptor is not None:
                self._slots[number] = None
                with suppress(OSError):
                    os.close(descriptor)
        os.close(self._root)

    def do(self, call: Call) -> Outcome:
        os.fchdir(self._root)
        targets = [looked_at for target in call.targets for looked_at in _with_directory(target)]
        before = [self._look(target) for target in targets]
        user, umask = self._users[call.user]
        with acting_as(user, umask=umask):
            result = _or_errno(lambda: getattr(self, call.verb)(*call.targets, *call.rest))
        return Outcome(result, tuple(_seen(t, b, self._look(t)) for t, b in zip(targets, before, strict=True)))

    def take_modes(self, other: Tree, targets: Sequence[Target]) -> None:
        """Files get the modes that they have there."""
        for target in targets:
            os.fchdir(other._root)
            mode = stat.S_IMODE(os.stat(other._file(target)).st_mode)
            os.fchdir(self._root)
            os.chmod(self._file(target), mode)

    def survey(self) -> dict[Target, Any]:
        """All that is in the tree and in the slots; objects that are one file say which path was met first."""
        os.fchdir(self._root)
        found: dict[Target, Any] = {}
        first: dict[int, Target] = {}
        for target in [*_paths_below(b"."), *range(len(self._slots))]:
            known = self._look(target)
            if isinstance(known, str):
                found[target] = known
                continue
            same_as = first.setdefault(known.st_ino, target)
            content = _or_errno(partial(self._content, target, known.st_mode))
            found[target] = (_described(known), same_as, content, self._xattrs(target))
        return found

    def _content(self, target: Target, mode: int) -> Any:
        if stat.S_ISLNK(mode):
            return os.readlink(self._file(target))
        if stat.S_ISDIR(mode):
            return self.listdir(target)
        if stat.S_ISREG(mode) and isinstance(target, bytes):
            with open(target, "rb") as file:
                return file.read(CONTENT_BYTES_MAX)
        if stat.S_ISREG(mode) and isinstance(target, int):
            return os.pread(self._descriptor(target), CONTENT_BYTES_MAX, 0)
        return None

    def _xattrs(self, target: Target) -> Any:
        file, follow = self._file(target), not isinstance(target, bytes)

        def read() -> dict[str, bytes]:
            names = sorted(os.listxattr(file, follow_symlinks=follow))
            return {name: os.getxattr(file, name, follow_symlinks=follow) for name in names}

        return _or_errno(read)

    # Slots and paths.

    def paths(self) -> dict[bytes, bool]:
        """All paths, and whether each is a directory."""
        os.fchdir(self._root)
        return {path: stat.S_ISDIR(os.lstat(path).st_mode) for path in _paths_below(b".")}

    def open_slots(self) -> list[int]:
        return [number for number, descriptor in enumerate(self._slots) if descriptor is not None]

    def _descriptor(self, slot: int) -> int:
        found = self._slots[slot]
        if found is None:
            raise OSError(errno.EBADF, "nothing is open in this slot")
        return found

    def _file(self, target: Target) -> Any:
        """As the functions of `os` take it."""
        return target if isinstance(target, bytes) else self._descriptor(target)

    def _look(self, target: Target) -> os.stat_result | str:
        try:
            return os.lstat(target) if isinstance(target, bytes) else os.fstat(self._descriptor(target))
        except OSError as error:
            return _name_of(error)

    # Descriptors.

    def open(self, path: bytes, flags: int, mode: int, slot: int) -> None:
        """Never waits for the other end of a FIFO."""
        if self._slots[slot] is not None:
            self.close_slot(slot)
        self._slots[slot] = os.open(path, flags | os.O_NONBLOCK, mode)

    def close_slot(self, slot: int) -> None:
        descriptor = self._descriptor(slot)
        self._slots[slot] = None
        os.close(descriptor)

    def read(self, slot: int, count: int) -> bytes:
        return os.read(self._descriptor(slot), count)

    def pread(self, slot: int, count: int, offset: int) -> bytes:
        return os.pread(self._descriptor(slot), count, offset)

    def write(self, slot: int, data: bytes) -> int:
        return os.write(self._descriptor(slot), data)

    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        return os.pwrite(self._descriptor(slot), data, offset)

    def lseek(self, slot: int, offset: int, whence: int) -> int:
        return os.lseek(self._descriptor(slot), offset, whence)

    def fsync(self, slot: int) -> None:
        os.fsync(self._descriptor(slot))

    def fdatasync(self, slot: int) -> None:
        os.fdatasync(self._descriptor(slot))

    def copy_file_range(self, slot: int, other: int, count: int) -> int:
        return os.copy_file_range(self._descriptor(slot), self._descriptor(other), count)

    # Names.

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(path)

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        os.mknod(path, mode, device)

    def symlink(self, path: bytes, target: bytes) -> None:
        os.symlink(target, path)

    def link(self, path: bytes, new: bytes, follow: bool) -> None:
        os.link(path, new, follow_symlinks=follow)

    def unlink(self, path: bytes) -> None:
        os.unlink(path)

    def rename(self, path: bytes, new: bytes, flags: int) -> None:
        _check(LIBC.renameat2(AT_FDCWD, path, AT_FDCWD, new, flags))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(path)

    def listdir(self, target: Target) -> list[tuple[bytes, str]]:
        """Names and kinds, as readdir(3) tells them."""
        found = []
        if isinstance(target, int):
            os.lseek(self._descriptor(target), 0, os.SEEK_SET)  # Where an lseek has left it is nobody's promise.
        with os.scandir(self._file(target)) as entries:
            for entry in entries:
                is_directory, is_file = entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)
                kind = "d" if is_directory else "-" if is_file else "l" if entry.is_symlink() else "special"
                found.append((os.fsencode(entry.name), kind))
        return sorted(found)

    # Attributes.

    def stat(self, target: Target, follow: bool) -> Object:
        return _described(os.stat(self._file(target), follow_symlinks=follow or isinstance(target, int)))

    def access(self, path: bytes, mode: int) -> bool:
        return os.access(path, mode, effective_ids=True)

    def chmod(self, target: Target, mode: int) -> None:
        os.chmod(self._file(target), mode)

    def chown(self, target: Target, uid: int, gid: int, follow: bool) -> None:
        os.chown(self._file(target), uid, gid, follow_symlinks=follow or isinstance(target, int))

    def truncate(self, target: Target, size: int) -> None:
        os.truncate(self._file(target), size)

    def utimens(
        self, target: Target, atime: tuple[int, int], mtime: tuple[int, int], follow: bool
    ) -> tuple[int | None, ...]:
        """The times that were given, as they are afterwards."""
        times = (ctypes.c_long * 4)(*atime, *mtime)
        if isinstance(target, int):
            _check(LIBC.futimens(self._descriptor(target), times))
        else:
            _check(LIBC.utimensat(AT_FDCWD, target, times, 0 if follow else AT_SYMLINK_NOFOLLOW))
        found = os.stat(self._file(target), follow_symlinks=follow or isinstance(target, int))
        both = ((atime, found.st_atime_ns), (mtime, found.st_mtime_ns))
        return tuple(now if given[1] not in (NOW, OMIT) else None for given, now in both)

    def getxattr(self, target: Target, name: bytes, follow: bool) -> bytes:
        return os.getxattr(self._file(target), name, follow_symlinks=follow or isinstance(target, int))

    def setxattr(self, target: Target, name: bytes, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(self._file(target), name, value, flags, follow_symlinks=follow or isinstance(target, int))

    def listxattr(self, target: Target, follow: bool) -> list[str]:
        return sorted(os.listxattr(self._file(target), follow_symlinks=follow or isinstance(target, int)))

    def removexattr(self, target: Target, name: bytes, follow: bool) -> None:
        os.removexattr(self._file(target), name, follow_symlinks=follow or isinstance(target, int))


def _or_errno(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except OSError as error:
        return _name_of(error)


def _name_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "see errno(3)")


def _with_directory(target: Target) -> list[Target]:
    if isinstance(target, int) or not target.strip(b"./"):
        return [target]
    return [target, os.path.dirname(target.rstrip(b"/")) or b"."]


def _described(found: os.stat_result) -> Object:
    is_device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
    return Object(
        stat.filemode(found.st_mode), found.st_uid, found.st_gid, found.st_nlink,
        None if stat.S_ISDIR(found.st_mode) else found.st_size, found.st_rdev if is_device else None,
    )  # fmt: skip


def _seen(target: Target, before: os.stat_result | str, after: os.stat_result | str) -> Seen:
    if isinstance(after, str):
        return Seen(target, after, ())
    moved: tuple[str, ...] = ()
    if not isinstance(before, str) and before.st_ino == after.st_ino:
        if before.st_mtime_ns != after.st_mtime_ns:
            moved += ("mtime",)
        if before.st_ctime_ns != after.st_ctime_ns:
            moved += ("ctime",)
    return Seen(target, _described(after), moved)


def _paths_below(path: bytes) -> Iterator[bytes]:
    yield path
    for entry in sorted(os.scandir(path), key=lambda e: e.name):
        name = entry.name if path == b"." else os.path.join(path, entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _paths_below(name)
        else:
            yield name
