"""Arithmetic of files, chunks and chunk maps.

A chunk map is a list of segments, sorted and without overlap: the naming server lays later
ones over earlier ones when they are committed. What no segment covers is a hole.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from servers.protocol.ids import ExtentId, NodeNumber
from servers.protocol.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN

_offset, _end = attrgetter("offset"), attrgetter("end")


@dataclass(frozen=True, slots=True)
class Span:
    """A part of one chunk: bytes [start, end) of chunk `index`."""

    index: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` bytes at `offset` of a chunk are those at `extent_offset` of an extent."""

    offset: int
    extent: ExtentId
    extent_offset: int
    length: int
    nodes: tuple[NodeNumber, ...]

    @property
    def end(self) -> int:
        return self.offset + self.length


def spans(offset: int, length: int, chunk_size: int) -> Iterator[Span]:
    """The parts of chunks that make up bytes [offset, offset + length) of a file."""
    end = offset + length
    while offset < end:
        index, start = divmod(offset, chunk_size)
        step = min(chunk_size - start, end - offset)
        yield Span(index, start, start + step)
        offset += step


def is_chunk_size(size: int) -> bool:
    return CHUNK_BYTES_MIN <= size <= CHUNK_BYTES_MAX and size & (size - 1) == 0


def overlay(segments: Iterable[Segment]) -> list[Segment]:
    """The segments with later ones laid over earlier ones: sorted and without overlap.

    A chunk may have been written in thousands of places: the time is that of a sort, not of its square.
    """
    result: list[Segment] = []
    for new in segments:
        if not result or result[-1].end <= new.offset:
            result.append(new)
            continue
        first = bisect_right(result, new.offset, key=_end)
        last = bisect_left(result, new.end, lo=first, key=_offset)
        laid = [new]
        if first < last:  # Of those that it covers, the first and the last may look out.
            if result[first].offset < new.offset:
                laid.insert(0, cut(result[first], result[first].offset, new.offset))
            if new.end < result[last - 1].end:
                laid.append(cut(result[last - 1], new.end, result[last - 1].end))
        result[first:last] = laid
    return result


def cut(segment: Segment, start: int, end: int) -> Segment:
    """The part of the segment within [start, end) of its chunk; it must not be empty."""
    start, end = max(start, segment.offset), min(end, segment.end)
    if start >= end:
        raise ValueError(f"nothing of {segment} lies in [{start}, {end})")
    return Segment(start, segment.extent, segment.extent_offset + start - segment.offset, end - start, segment.nodes)
