"""Reading one open file: our own unwritten bytes first, then the chunk map, then any replica.

Called by the file system. One `read` uses one version of the chunk map. What no segment covers
is a hole and reads as zeros; what a segment covers is read from a verified replica or fails,
and never becomes zeros.
"""

from __future__ import annotations

import trio

from fusefs.chunks.cache import BlockCache
from fusefs.vfs.chunk_map import ChunkMap
from fusefs.vfs.dirty_ranges import DirtyChunk
from fusefs.vfs.file_writer import FileWriter, Layer
from servers.protocol.checksum import Buffer
from servers.protocol.errors import ExtentDamaged, NodeFailed, Unavailable
from servers.protocol.geometry import Segment, overlay
from servers.protocol.limits import BLOCK_BYTES, MIB

SEQUENTIAL_UNIT = 1 * MIB
READ_AHEAD_BYTES = 8 * MIB
REORDER_BYTES = 4 * MIB
"""The kernel sends the reads of its own read-ahead in parallel: within this they are still sequential."""
AGAIN_SECONDS = 16.0
"""How long after its beginning a read is begun again because others wrote there meanwhile: one that has waited out the
deadline of a fetch once, with what the metadata takes, is not to do it more than once more."""
NO_VERSION = -1


class ReadPattern:
    """Whether a handle reads from front to back. One per handle."""

    __slots__ = ("_next", "_streak", "prefetched_to")

    def __init__(self) -> None:
        self._next = 0
        self._streak = 0
        self.prefetched_to = 0

    def note(self, offset: int, size: int) -> bool:
        """Takes a read into account; True when it is part of a sequential scan."""
        near = self._next - REORDER_BYTES <= offset <= self._next + REORDER_BYTES
        forward = offset >= self._next or size >= BLOCK_BYTES * 2
        if near and forward:
            self._streak += 1
        else:
            self._streak = 0
            self.prefetched_to = offset + size
        self._next = max(self._next, offset + size) if near else offset + size
        return self._streak >= 2 or size > BLOCK_BYTES


class FileReader:
    def __init__(self, chunk_size: int, chunks: ChunkMap, cache: BlockCache, writer: FileWriter) -> None:
        self._chunk_size = chunk_size
        self._map = chunks
        self._cache = cache
        self._writer = writer

    async def read(self, offset: int, size: int, file_size: int, pattern: ReadPattern, nursery: trio.Nursery) -> Buffer:
        """The bytes [offset, offset + size) of the file, or those before its end."""
        end = min(offset + size, file_size)
        if offset >= end:
            return b""
        sequential = pattern.note(offset, end - offset)
        if sequential:
            await self._read_ahead(end, file_size, pattern, nursery)
        unit = SEQUENTIAL_UNIT if sequential else BLOCK_BYTES
        first, last = offset // self._chunk_size, (end - 1) // self._chunk_size
        again_until = trio.current_time() + AGAIN_SECONDS
        while True:
            known = await self._map.segments(first, last)
            try:
                return await self._read(offset, end, unit, *known)
            except (ExtentDamaged, NodeFailed, Unavailable):
                # The extents may be gone because others wrote here meanwhile. Or they lie on other nodes by now.
                self._map.forget(NO_VERSION, 0)
                _, found = await self._map.segments(first, last)
                if found == known[1] or trio.current_time() > again_until:
                    raise

    async def _read(self, offset: int, end: int, unit: int, file_size: int, mapped: dict[int, list[Segment]]) -> Buffer:
        size, first, last = self._chunk_size, offset // self._chunk_size, (end - 1) // self._chunk_size
        end = min(end, max(file_size, self._writer.end))
        if offset >= end:
            return b""
        above: list[Layer] = []
        own = self._writer.touches(first, last)
        if own:
            stored, above = self._writer.uncommitted(offset, end)
            for index, pending in stored.items():
                mapped = mapped | {index: overlay([*mapped.get(index, ()), *pending])}
        elif first == last:
            only = _covering(mapped.get(first, []), offset - first * size, end - first * size)
            if only is not None:
                start = only.extent_offset + offset - first * size - only.offset
                views = await self._cache.read(only.extent, only.nodes, start, start + end - offset, unit)
                return views[0] if len(views) == 1 else b"".join(views)
        # Copied before the first await: what waits now may be stored, and its buffer gone, before the fetches end.
        layers = [layer.copies(size, offset, end) if isinstance(layer, DirtyChunk) else layer for layer in above]
        target = bytearray(end - offset)
        view = memoryview(target)
        for index, segments in mapped.items():
            await self._fill(view, segments, index * size - offset, unit)
        for layer in layers:
            if isinstance(layer, tuple):
                await self._fill(view, layer[1], layer[0] * size - offset, unit)
                continue
            for at, piece in layer:
                view[at - offset : at - offset + len(piece)] = piece
        return target

    async def _fill(self, target: memoryview, segments: list[Segment], base: int, unit: int) -> None:
        """Reads the segments of a chunk that begins at `base` of the target, as far as they lie in it."""
        for segment in segments:
            low, high = max(segment.offset + base, 0), min(segment.end + base, len(target))
            if low >= high:
                continue
            start = segment.extent_offset + low - base - segment.offset
            for piece in await self._cache.read(segment.extent, segment.nodes, start, start + high - low, unit):
                target[low : low + len(piece)] = piece
                low += len(piece)

    async def _read_ahead(self, end: int, file_size: int, pattern: ReadPattern, nursery: trio.Nursery) -> None:
        """Starts fetching what a sequential reader will want next; waits for nothing but the chunk map."""
        start, stop = max(pattern.prefetched_to, end), min(end + READ_AHEAD_BYTES, file_size)
        if stop - start < SEQUENTIAL_UNIT and stop < file_size:
            return
        size = self._chunk_size
        if start >= stop:
            return
        _, mapped = await self._map.segments(start // size, (stop - 1) // size)
        pattern.prefetched_to = stop
        for index, segments in sorted(mapped.items()):
            for segment in segments:
                low, high = max(segment.offset + index * size, start), min(segment.end + index * size, stop)
                if low < high:
                    at = segment.extent_offset + low - index * size - segment.offset
                    self._cache.prefetch(nursery, segment.extent, segment.nodes, at, at + high - low, SEQUENTIAL_UNIT)


def _covering(segments: list[Segment], start: int, end: int) -> Segment | None:
    """The one segment that holds all of [start, end) of the chunk, if there is one."""
    for segment in segments:
        if segment.offset <= start and end <= segment.end:
            return segment
    return None
