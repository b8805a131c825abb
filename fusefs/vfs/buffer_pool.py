"""Buffers of chunks that are being written, used again.

Called by dirty chunks. A buffer is a mapping of untouched pages, so only what is written takes
memory; but touching a page for the first time costs more than writing to it, so buffers that
are done with are kept for the next chunk, up to a bound and not for long.

What a buffer held before is still in it: whoever takes one knows which bytes are its own.
"""

from __future__ import annotations

import contextlib
import mmap

from servers.protocol.limits import KIB, MIB

MAPPED_BYTES_MIN = 256 * KIB
"""Smaller chunks are not worth a mapping, of which a process has some 65,000."""
KEPT_BYTES_MAX = 128 * MIB

ChunkBuffer = mmap.mmap | bytearray


class BufferPool:
    def __init__(self, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._kept: dict[int, list[mmap.mmap]] = {}
        self._taken_since_trim = True
        self.kept_bytes = 0

    def take(self, size: int) -> tuple[ChunkBuffer, int]:
        """A buffer, and how many bytes of memory it takes before anything is written to it."""
        if size < MAPPED_BYTES_MIN:
            return bytearray(size), size
        self._taken_since_trim = True
        kept = self._kept.get(size)
        if kept:
            self.kept_bytes -= size
            return kept.pop(), size
        return mmap.mmap(-1, size), 0

    def give_back(self, buffer: ChunkBuffer) -> None:
        """Nobody looks at it any more."""
        if isinstance(buffer, bytearray):
            return
        if self.kept_bytes + len(buffer) <= self._kept_bytes_max:
            self.kept_bytes += len(buffer)
            self._kept.setdefault(len(buffer), []).append(buffer)
            return
        with contextlib.suppress(BufferError):  # Somebody still does: the mapping goes with them.
            buffer.close()

    def trim(self) -> None:
        """To be called now and then: lets go of all that is kept if none was wanted since the last time."""
        if not self._taken_since_trim:
            self._kept.clear()
            self.kept_bytes = 0
        self._taken_since_trim = False
