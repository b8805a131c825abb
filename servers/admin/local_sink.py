"""What `read` writes: a local file that appears whole or not at all, or standard output."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from servers.admin.runner import in_daemon_thread
from servers.protocol.checksum import Buffer
from servers.protocol.limits import MIB

BUFFER_BYTES = MIB
_ZEROS = bytes(64 * 1024)


class Sink(Protocol):
    async def write(self, data: Buffer) -> None: ...

    async def skip(self, length: int) -> None:
        """The next `length` bytes are zeros."""

    async def finish(self) -> None:
        """All that was written is where it belongs."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_sink(path: str, mode: int) -> Sink:
    """`-` is standard output; what is there and is no regular file (a pipe, a device) is written to as it is.

    `mode` is for a file that is not there yet. Raises OSError.
    """
    if path == "-":
        return StreamSink(os.dup(sys.stdout.fileno()))
    target = Path(os.path.realpath(path))
    try:
        there = os.stat(target)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return FileSink(target, mode & 0o777 & ~umask)
    if stat.S_ISREG(there.st_mode):
        return FileSink(target, stat.S_IMODE(there.st_mode))
    return StreamSink(os.open(target, os.O_WRONLY | os.O_CLOEXEC))


class _Sink:
    """Gathers small writes; a large one costs one thread hop."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    async def write(self, data: Buffer) -> None:
        if len(data) < BUFFER_BYTES:
            self._buffer += data
            if len(self._buffer) >= BUFFER_BYTES:
                await self._flush()
            return
        await self._flush()
        await in_daemon_thread(lambda: self._write_all(data))

    async def _flush(self) -> None:
        if self._buffer:
            full, self._buffer = self._buffer, bytearray()
            await in_daemon_thread(lambda: self._write_all(full))

    def _write_all(self, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


class StreamSink(_Sink):
    async def skip(self, length: int) -> None:
        while length:
            step = min(length, len(_ZEROS))
            await self.write(_ZEROS[:step])
            length -= step

    async def finish(self) -> None:
        await self._flush()


class FileSink(_Sink):
    """Writes beside the file and renames at the end: until then, and after a failure, nothing has changed."""

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._beside = path.with_name(f".dcs-read-{secrets.token_hex(8)}")
        try:
            super().__init__(os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path.parent)) from error
        self._mode = mode
        self._is_finished = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if not self._is_finished:
            with contextlib.suppress(FileNotFoundError):
                self._beside.unlink()

    async def skip(self, length: int) -> None:
        await self._flush()
        os.lseek(self._fd, length, os.SEEK_CUR)

    async def finish(self) -> None:
        await self._flush()
        await in_daemon_thread(self._publish)
        self._is_finished = True

    def _publish(self) -> None:
        os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR))
        os.fchmod(self._fd, self._mode)
        os.fsync(self._fd)
        self._beside.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
