"""opendir(3) and its kin: the calls on directories that Python has not."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_ulong), ("off", ctypes.c_long), ("length", ctypes.c_ushort), ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )  # fmt: skip


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.opendir.restype = ctypes.c_void_p
LIBC.readdir.restype = ctypes.POINTER(_Dirent)
LIBC.telldir.restype = ctypes.c_long


class Stream:
    """A DIR of opendir(3), with the calls that Python has not."""

    def __init__(self, pointer: int) -> None:
        self._pointer = ctypes.c_void_p(pointer)

    def read(self) -> bytes | None:
        found = LIBC.readdir(self._pointer)
        return found.contents.name if found else None

    def read_number(self) -> tuple[bytes, int] | None:
        """The next name and its inode's number."""
        found = LIBC.readdir(self._pointer)
        return (found.contents.name, found.contents.ino) if found else None

    def rest(self) -> list[bytes]:
        return list(iter(self.read, None))

    def tell(self) -> int:
        return int(LIBC.telldir(self._pointer))

    def seek(self, position: int) -> None:
        LIBC.seekdir(self._pointer, ctypes.c_long(position))

    def rewind(self) -> None:
        LIBC.rewinddir(self._pointer)

    def close(self) -> None:
        LIBC.closedir(self._pointer)


@contextmanager
def listing(path: Path) -> Iterator[Stream]:
    pointer = LIBC.opendir(os.fsencode(path))
    assert pointer, os.strerror(ctypes.get_errno())
    stream = Stream(pointer)
    try:
        yield stream
    finally:
        stream.close()


def numbers_of(path: Path) -> dict[bytes, int]:
    """Every name in the directory, `.` and `..` too, with its inode's number as the listing tells it."""
    with listing(path) as stream:
        return dict(iter(stream.read_number, None))


def up_of(path: Path) -> int:
    """The inode's number that a listing tells for `..`."""
    return numbers_of(path)[b".."]
