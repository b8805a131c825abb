"""Which bytes of a chunk were written, and the buffer that holds them.

Called by the file writer. No I/O, nothing awaits. A single byte takes a page of memory, and a chunk
takes some whatever is in it: `held_bytes` is what counts where memory is bounded, `bytes` what was written.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left, bisect_right

from fusefs.vfs.buffer_pool import MAPPED_BYTES_MIN, BufferPool
from servers.protocol.checksum import Buffer
from servers.protocol.limits import KIB

CHUNK_BYTES = 8 * KIB
"""What a chunk takes besides its pages: a mapping with its page table, and objects."""
OBJECTS_BYTES = 1 * KIB
"""And one that is too small for a mapping."""
RANGE_BYTES = 128
"""What each of its ranges takes."""


class DirtyRanges:
    """Sorted, disjoint, non-touching ranges [start, end)."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> int:
        """Returns how many bytes were not in a range before."""
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first == last:
            self._starts.insert(first, start)
            self._ends.insert(first, end)
            return end - start
        held = sum(self._ends[i] - self._starts[i] for i in range(first, last))
        start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        return end - start - held

    def __iter__(self) -> zip[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def covers(self, start: int, end: int) -> bool:
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and self._ends[at] >= end


class DirtyChunk:
    """Written bytes of one chunk that are not stored yet. Frozen once it is sealed."""

    __slots__ = ("_buffer", "_is_in_memory", "_pages", "_pool", "_view", "bytes", "held_bytes", "index", "ranges")

    def __init__(self, index: int, chunk_size: int, pool: BufferPool) -> None:
        self.index = index
        self.ranges = DirtyRanges()
        self.bytes = 0
        self._pool = pool
        self._buffer, in_memory = pool.take(chunk_size)
        self._is_in_memory = in_memory > 0
        self._pages = DirtyRanges()
        self.held_bytes = in_memory + (CHUNK_BYTES if chunk_size >= MAPPED_BYTES_MIN else OBJECTS_BYTES)
        """The memory that it takes."""
        self._view = memoryview(self._buffer)

    def write(self, start: int, data: Buffer) -> int:
        """Returns how many bytes of the chunk became dirty by it."""
        end = start + len(data)
        self._view[start:end] = data
        ranges = len(self.ranges)
        added = self.ranges.add(start, end)
        self.bytes += added
        self.held_bytes += RANGE_BYTES * (len(self.ranges) - ranges)
        if not self._is_in_memory:
            self.held_bytes += self._pages.add(start & -mmap.PAGESIZE, -(-end & -mmap.PAGESIZE))
        return added

    def pieces(self) -> list[memoryview]:
        """The dirty bytes, range by range."""
        return [self._view[start:end] for start, end in self.ranges]

    def copies(self, chunk_size: int, offset: int, end: int) -> list[tuple[int, bytes]]:
        """What is dirty of bytes [offset, end) of the file, copied: offset in the file and bytes."""
        base, found = self.index * chunk_size, []
        for low, high in self.ranges:
            low, high = max(low + base, offset), min(high + base, end)
            if low < high:
                found.append((low, bytes(self._view[low - base : high - base])))
        return found

    def free(self) -> None:
        """Gives the memory back, as soon as nobody looks at the pieces any more."""
        self._view.release()
        self._pool.give_back(self._buffer)
