"""System calls that the store needs and Python's os module has not, and the careful forms of those it has.

All of them block: call them from threads.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import struct
from collections.abc import Sequence
from pathlib import Path

from servers.protocol.checksum import Buffer

PAGE_BYTES = 4096
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WRITE = 2
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_TOPDIR_FL = 0x00020000
_LONG = struct.Struct("l")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class OpenFile:
    """A file descriptor that lives as long as somebody refers to it.

    Readers, the syncer and the cache share one, and none of them has to know who is the last:
    a number closed under a reader could be another file by the time it reads.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def rename_if_absent(old: str | Path, new: str | Path) -> None:
    """The file has its new name, which nobody had. Raises FileExistsError.

    renameat2 and not link and unlink: one step, so there is never a moment with two names, nor
    a crash that leaves both. ext4, xfs, btrfs, tmpfs and overlayfs all have it.
    """
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE) != 0:
        _raise_errno(new)


def sync_file_system(fd: int) -> None:
    """All of the file system that `fd` is on is on stable storage.

    Since Linux 5.8 this fails when any writeback on that file system failed since the last call on
    this descriptor (or since it was opened), so keep one descriptor; it does not say which file.
    """
    if _libc.syncfs(fd) != 0:
        _raise_errno(None)


def start_writeback(fd: int) -> None:
    """The kernel begins to write the file's dirty pages; promises nothing, but a later fsync finds little left.

    Its failure is not reported: whatever goes wrong, the fsync that counts hears of it.
    """
    _libc.sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def write_all(fd: int, pieces: Sequence[Buffer]) -> None:
    rest = [memoryview(piece) for piece in pieces if len(piece)]
    while rest:
        written = os.writev(fd, rest)
        while rest and written >= len(rest[0]):
            written -= len(rest[0])
            del rest[0]
        if written:
            rest[0] = rest[0][written:]


def write_around_cache(fd: int, data: Buffer) -> int:
    """Writes the beginning of the data straight to the disk and returns how much: the whole pages of it, or
    nothing where the file system or the buffer's alignment does not allow it.

    Copying through the page cache costs up to ten times the CPU, pushes out what readers use, and
    leaves the work to a later fsync.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    whole = memoryview(data)[: len(data) - len(data) % PAGE_BYTES]
    done = 0
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        while done < len(whole) and done % PAGE_BYTES == 0:
            done += os.write(fd, whole[done:])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return done


def sync_directory(path: str | Path) -> None:
    """The names in the directory are on stable storage as they are now."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def spread_subdirectories(path: str | Path) -> None:
    """Asks the file system to place the directories that are made in this one far from each other.

    It is ext4's EXT4_TOPDIR_FL (chattr +T); other file systems do not know it, and need not.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (flags,) = _LONG.unpack(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(_LONG.size)))
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _LONG.pack(flags | _FS_TOPDIR_FL))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM):
            raise
    finally:
        os.close(fd)


def raise_open_files_limit() -> int:
    """The number of descriptors this process may have, made as large as is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return soft


def _raise_errno(path: str | Path | None) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), str(path) if path is not None else None)
