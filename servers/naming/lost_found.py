"""Which files can be rebuilt from what replicas say of themselves: pure.

A replica's footer names the inode, the chunk and the file's name at the time, but not the place within the
chunk. So a chunk of one extent is that extent from its beginning; of a chunk of several (random or small
writes, appends) nobody knows the places: those extents become files of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from servers.protocol.geometry import is_chunk_size
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


@dataclass(frozen=True)
class LostFile:
    name: bytes
    chunk_size: int
    chunks: Mapping[int, Found]
    """Each from the beginning of its chunk; what is missing is a hole."""
    mtime_ns: int

    @property
    def size(self) -> int:
        last = max(self.chunks)
        return last * self.chunk_size + self.chunks[last].length


def plan_files(found: Iterable[Found], chunk_size: int) -> list[LostFile]:
    """One file for each inode, and one for each extent whose place is not known. `chunk_size`: the volume's."""
    inodes: dict[int, dict[int, list[Found]]] = {}
    for one in sorted(found, key=lambda f: (f.mtime_ns, f.extent)):
        inodes.setdefault(one.inode, {}).setdefault(one.chunk, []).append(one)
    files = []
    for inode, chunks in sorted(inodes.items()):
        sure = {index: extents[0] for index, extents in chunks.items() if len(extents) == 1}
        if sure:
            latest = max(sure.values(), key=lambda f: f.mtime_ns)
            size = _chunk_size(sure, chunk_size)
            files.append(LostFile(_name(latest.name, f"{inode}"), size, sure, latest.mtime_ns))
        for index, extents in sorted(chunks.items()):
            for one in extents if len(extents) > 1 else ():
                name = _name(one.name, f"{inode}.chunk{index}.{extent_text(one.extent)}")
                files.append(LostFile(name, max(chunk_size, _power(one.length)), {0: one}, one.mtime_ns))
    return files


def _chunk_size(chunks: Mapping[int, Found], default: int) -> int:
    """All chunks but the last are full, as a rule: that tells the size."""
    full = [one.length for index, one in chunks.items() if index < max(chunks)]
    if full and is_chunk_size(max(full)):
        return max(full)
    return max(default, _power(max(one.length for one in chunks.values())))


def _power(length: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << max(0, length - 1).bit_length()


def _name(name: bytes, suffix: str) -> bytes:
    tail = b"." + suffix.encode()
    hint = name.replace(b"/", b"_").replace(b"\0", b"_") or b"file"
    return hint[: NAME_BYTES_MAX - len(tail)] + tail
