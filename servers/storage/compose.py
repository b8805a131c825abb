"""New extents made of parts of others, when a naming server says so: a chunk of many small ones becomes one.

Each part comes from this node's own replica or from another node, and is compared with its sums before it
counts; the new extent has sums of its own and is on stable storage before the order is answered. Whoever
ordered it commits it, or it becomes garbage. Called by the routes; event loop only, threads for the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from servers.client.storage import StorageClient
from servers.protocol.checksum import Buffer, block_sums, first_damaged_block
from servers.protocol.errors import DcsError, ExtentDamaged, ExtentMissing, NodeFailed
from servers.protocol.ids import ExtentId, extent_text
from servers.protocol.limits import BLOCK_BYTES
from servers.protocol.storage_api import ExtentHeader
from servers.storage.extent_store import ExtentStore
from servers.storage.replicate import Pace

FIRST_BYTE_SECONDS = 5.0
PART_SECONDS = 30.0

Found = TypeVar("Found")
Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True, slots=True)
class Part:
    extent: ExtentId
    offset: int
    length: int
    sources: Sequence[str]
    """Addresses of the other nodes that have it."""


@dataclass(frozen=True, slots=True)
class Composition:
    extent: ExtentId
    volume: str
    inode: int
    chunk: int
    mtime_ns: int
    chunk_size: int
    offset: int
    """Of the new extent, in the chunk."""
    parts: Sequence[Part]
    """One after the other they are the new extent."""


class Composer:
    def __init__(self, store: ExtentStore, peers: StorageClient, threads: ThreadPoolExecutor, pace: Pace) -> None:
        self._store = store
        self._peers = peers
        self._threads = threads
        self._pace = pace
        self._place = asyncio.Lock()
        """One at a time: each may take as much memory as the largest chunk."""

    async def compose(self, wanted: Composition) -> int:
        """The new extent's length; it is on stable storage. Raises DcsError, OSError."""
        length = sum(part.length for part in wanted.parts)
        async with self._place:
            await asyncio.sleep(self._pace.take(length, time.monotonic()))
            body, at, name = bytearray(length), 0, b""
            for part in wanted.parts:
                piece, name = await self._read(part, name)
                body[at : at + part.length] = piece
                at += part.length
            header = ExtentHeader(
                wanted.volume, wanted.inode, wanted.chunk, wanted.mtime_ns, name, block_sums([body]),
                wanted.chunk_size, (wanted.offset, length),
            )  # fmt: skip
            await self._in_thread(self._keep, wanted.extent, header, body)
        return length

    async def _read(self, part: Part, name: bytes) -> tuple[Buffer, bytes]:
        """The part's bytes, and the name that its writer gave the file, if known here."""
        reasons = []
        try:
            return await self._in_thread(self._read_here, part)
        except (ExtentDamaged, ExtentMissing, OSError) as error:
            reasons.append(f"here: {error}")
        for source in part.sources:
            try:
                return await self._read_there(source, part), name
            except DcsError as error:
                reasons.append(str(error))
        raise NodeFailed(f"{extent_text(part.extent)} cannot be read: {'; '.join(reasons)}")

    def _read_here(self, part: Part) -> tuple[Buffer, bytes]:
        replica = self._store.open(part.extent)
        first, end = _blocks(part)
        end = min(end, replica.footer.length)
        if part.offset + part.length > end:
            raise ExtentDamaged(f"{extent_text(part.extent)} has {replica.footer.length} bytes")
        piece = self._store.read(replica, first, end)
        sums = replica.footer.sums[first // BLOCK_BYTES * 4 : -(-end // BLOCK_BYTES) * 4]
        if first_damaged_block(piece, sums) is not None:
            raise ExtentDamaged(f"{extent_text(part.extent)} has a wrong CRC32C")
        return memoryview(piece)[part.offset - first :][: part.length], replica.footer.header.name

    async def _read_there(self, source: str, part: Part) -> Buffer:
        first, end = _blocks(part)
        piece = await self._peers.get(
            source, part.extent, first, end - first,
            first_byte_seconds=FIRST_BYTE_SECONDS, deadline_seconds=PART_SECONDS,
        )  # fmt: skip
        wanted = piece[part.offset - first :][: part.length]
        if len(wanted) != part.length:
            raise ExtentDamaged(f"{extent_text(part.extent)} on {source} is too short")
        return wanted

    def _keep(self, extent: ExtentId, header: ExtentHeader, body: Buffer) -> None:
        self._store.put(extent, header, body, sync=True)

    async def _in_thread(self, work: Callable[[*Arguments], Found], *arguments: *Arguments) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _blocks(part: Part) -> tuple[int, int]:
    """The whole blocks that the part lies in."""
    return part.offset // BLOCK_BYTES * BLOCK_BYTES, -(-(part.offset + part.length) // BLOCK_BYTES) * BLOCK_BYTES
