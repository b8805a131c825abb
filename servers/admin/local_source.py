"""What `create` reads: a local file or standard input, block by block, without blocking the loop.

A regular file is watched: when it is not at the end what it was at the beginning, that is said.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from types import TracebackType
from typing import Self

from servers.admin.errors import Problem
from servers.admin.runner import in_daemon_thread
from servers.protocol.names import escape


class LocalSource:
    def __init__(self, path: str) -> None:
        """`-` is standard input. Raises OSError."""
        self._name = path
        self._fd = os.dup(sys.stdin.fileno()) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._first = os.fstat(self._fd)
        self._is_regular = stat.S_ISREG(self._first.st_mode)
        self._start = os.lseek(self._fd, 0, os.SEEK_CUR) if self._is_regular else 0
        self._bytes_read = 0
        if stat.S_ISDIR(self._first.st_mode):
            os.close(self._fd)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    @property
    def name(self) -> str:
        return escape(os.fsencode(self._name))

    @property
    def size(self) -> int | None:
        """How much there is to read, where that can be known."""
        return max(0, self._first.st_size - self._start) if self._is_regular and self._first.st_size else None

    @property
    def mode(self) -> int:
        """What a copy's permissions should be."""
        if self._is_regular and self._name != "-":
            return stat.S_IMODE(self._first.st_mode) & 0o777
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask

    async def read(self, length: int) -> memoryview:
        """The next `length` bytes; fewer only at the end. Raises OSError, and Problem when there are too many."""
        # Made here and not in the thread: what many threads allocate, malloc spreads over many arenas and keeps.
        block = memoryview(bytearray(length))
        offset = self._start + self._bytes_read
        count = await in_daemon_thread(lambda: self._read_into(block, offset))
        self._bytes_read += count
        if self.size is not None and self._bytes_read > self.size:
            raise self._changed()  # It may grow for ever.
        return block[:count]

    def _read_into(self, block: memoryview, offset: int) -> int:
        count = 0
        while count < len(block):
            rest = [block[count:]]
            got = os.preadv(self._fd, rest, offset + count) if self._is_regular else os.readv(self._fd, rest)
            if not got:
                break
            count += got
        return count

    def is_hole(self, offset: int, length: int) -> bool:
        """Nothing is stored for these bytes of the source; they are zeros."""
        if not self._is_regular:
            return False
        try:
            return os.lseek(self._fd, self._start + offset, os.SEEK_DATA) >= self._start + offset + length
        except OSError as error:
            return error.errno == errno.ENXIO  # No data from here to the end.

    def check_unchanged(self) -> None:
        """Raises Problem when the file that was read is not the file that is there now."""
        if not self._is_regular:
            return
        now = os.fstat(self._fd)
        grew = now.st_size != self._first.st_size
        # Files that the kernel makes up, as in /proc, have no size and a time that is always now.
        other = self.size is not None and (self._bytes_read != self.size or now.st_mtime_ns != self._first.st_mtime_ns)
        if grew or other:
            raise self._changed()

    def _changed(self) -> Problem:
        now = os.fstat(self._fd).st_size
        sizes = f" (from {self._first.st_size} to {now} bytes)" if now != self._first.st_size else ""
        what = self.name if self._name != "-" else "the file on standard input"
        return Problem(f"{what} changed{sizes} while it was being read; nothing was created")
