"""Which files can be rebuilt from what replicas say of themselves: pure.

A replica's footer names the inode, the chunk, the file's name at the time and where in the chunk its ranges belong.
So a file's pieces are laid over each other in the order in which they were written, as their writers' clocks have
it. Of some nobody knows the place (appends, extents of very many ranges, those of older writers): a chunk of one such
alone is that extent from its beginning; else those become files of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from servers.protocol.geometry import Segment, is_chunk_size, overlay
from servers.protocol.ids import ExtentId, NodeNumber, extent_text
from servers.protocol.limits import NAME_BYTES_MAX


@dataclass(frozen=True)
class Found:
    """An extent that no file shows, as its replicas tell."""

    extent: ExtentId
    length: int
    inode: int
    chunk: int
    mtime_ns: int
    name: bytes
    nodes: tuple[NodeNumber, ...]
    chunk_size: int = 0
    places: tuple[int, ...] = ()
    """See ExtentHeader."""

    def segments(self) -> Iterator[Segment]:
        at = 0
        for offset, length in zip(self.places[::2], self.places[1::2], strict=True):
            yield Segment(offset, self.extent, at, length, self.nodes)
            at += length


@dataclass(frozen=True)
class LostFile:
    name: bytes
    chunk_size: int
    chunks: Mapping[int, Sequence[Segment]]
    """Of each chunk what is known, sorted and without overlap; what is missing is a hole."""
    mtime_ns: int

    @property
    def size(self) -> int:
        last = max(self.chunks)
        return last * self.chunk_size + self.chunks[last][-1].end


def plan_files(found: Iterable[Found], chunk_size: int) -> list[LostFile]:
    """One file for each inode, and one for each extent whose place is not known. `chunk_size`: the volume's."""
    inodes: dict[int, list[Found]] = {}
    for one in sorted(found, key=lambda f: (f.mtime_ns, f.extent)):
        inodes.setdefault(one.inode, []).append(one)
    files = []
    for inode, extents in sorted(inodes.items()):
        placed, others = _placed(extents)
        if placed:
            latest = max(placed, key=lambda f: f.mtime_ns)
            chunks: dict[int, list[Segment]] = {}
            for one in placed:
                chunks.setdefault(one.chunk, []).extend(one.segments())
            laid = {index: overlay(segments) for index, segments in chunks.items()}
            name, size = _name(latest.name, f"{inode}"), _chunk_size(placed, chunk_size)
            files.append(LostFile(name, size, laid, latest.mtime_ns))
        for one in others:
            name = _name(one.name, f"{inode}.chunk{one.chunk}.{extent_text(one.extent)}")
            size = max(chunk_size, _power(one.length))
            files.append(LostFile(name, size, {0: list(_at_the_beginning(one).segments())}, one.mtime_ns))
    return files


def _placed(extents: Sequence[Found]) -> tuple[list[Found], list[Found]]:
    """Those of one inode whose place is known, or sure enough, and the others."""
    alone = Counter(one.chunk for one in extents)
    placed, others = [], []
    for one in extents:
        if one.places:
            placed.append(one)
        elif alone[one.chunk] == 1:
            placed.append(_at_the_beginning(one))
        else:
            others.append(one)
    return placed, others


def _at_the_beginning(one: Found) -> Found:
    return replace(one, places=(0, one.length))


def _chunk_size(placed: Sequence[Found], default: int) -> int:
    """What most of them say; else all chunks but the last are full, as a rule: that tells the size."""
    said = Counter(one.chunk_size for one in placed if is_chunk_size(one.chunk_size))
    longest = max(segment.end for one in placed for segment in one.segments())
    if said and longest <= (most := said.most_common(1)[0][0]):
        return most
    last = max(one.chunk for one in placed)
    full = [one.length for one in placed if one.chunk < last]
    if full and is_chunk_size(max(full)) and longest <= max(full):
        return max(full)
    return max(default, _power(longest))


def _power(length: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << max(0, length - 1).bit_length()


def _name(name: bytes, suffix: str) -> bytes:
    tail = b"." + suffix.encode()
    hint = name.replace(b"/", b"_").replace(b"\0", b"_") or b"file"
    return hint[: NAME_BYTES_MAX - len(tail)] + tail
