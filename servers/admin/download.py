"""Reading a whole file: verified, in order, a few pieces ahead, from whichever replica is good.

The file is held open in a session, so that it can be deleted meanwhile, and read as it was at
one moment as far as one answer of the naming server goes (256 chunks); when a longer file
changes during the reading, that is an error rather than a mixture.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import stat
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from servers.admin.connection import Connection, Session
from servers.admin.errors import Problem, about
from servers.admin.local_sink import Sink
from servers.admin.node_table import NodeTable
from servers.admin.output import Bar
from servers.admin.tree import resolve
from servers.protocol.checksum import Buffer
from servers.protocol.errors import (
    DcsError,
    ExtentDamaged,
    ExtentMissing,
    NodeFailed,
    Refused,
    TryAgain,
)  # fmt: skip
from servers.protocol.geometry import Segment
from servers.protocol.ids import NodeNumber, extent_text
from servers.protocol.limits import BLOCK_BYTES, CHUNKS_PER_CALL_MAX, MIB
from servers.protocol.names import escape
from servers.protocol.naming_api import Attributes, unpack_attributes, unpack_segments

PIECE_BYTES_MAX = 8 * MIB
"""What is asked of a node at once."""
AHEAD_BYTES = 32 * MIB
PIECES_AHEAD_MAX = 16
FIRST_BYTE_SECONDS = 2.0
GET_SECONDS = 15.0
READ_SECONDS = 15.0
"""How long a piece is tried when no node answers; damage everywhere is an error at once."""
PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class Piece:
    """`length` bytes of the file: a part of a segment, or a hole."""

    chunk: int
    length: int
    segment: Segment | None


async def read(connection: Connection, path: bytes, open_sink: Callable[[Attributes], Sink], bar: Bar) -> int:
    """The whole file is in the sink; its size. Raises DcsError, OSError; then the sink was not finished."""
    found = await resolve(connection, path)
    if found.is_directory:
        raise Refused(errno.EISDIR, escape(path))
    if stat.S_ISLNK(found.mode):
        raise Problem(f"{escape(path)} is a symbolic link to {escape(found.target)}; name the file itself")
    if not found.is_file:
        raise Problem(f"{escape(path)} is not a regular file")
    async with connection.session("dcs read") as session:
        try:
            blob, rows = await session.change("open", ino=found.ino, chunks=CHUNKS_PER_CALL_MAX)
        except Refused as error:
            raise about(path, error) from error
        attributes = unpack_attributes(found.ino, blob)
        bar.begin(attributes.size)
        with open_sink(attributes) as sink:
            await _Download(connection, session, path, attributes).run(rows, sink, bar)
            await sink.finish()
    return attributes.size


class _Download:
    def __init__(self, connection: Connection, session: Session, path: bytes, attributes: Attributes) -> None:
        self._connection = connection
        self._session = session
        self._path = path
        self._attributes = attributes
        self._nodes = NodeTable(connection.naming)

    async def run(self, first_rows: list[int | bytes], sink: Sink, bar: Bar) -> None:
        await self._nodes.load()
        under_way: deque[tuple[Piece, asyncio.Task[Buffer] | None]] = deque()
        ahead = 0
        try:
            async for piece in self._pieces(first_rows):
                while under_way and (ahead + piece.length > AHEAD_BYTES or len(under_way) >= PIECES_AHEAD_MAX):
                    ahead -= await self._deliver(*under_way[0], sink, bar)
                    under_way.popleft()
                task = asyncio.create_task(self._fetch(piece, piece.segment)) if piece.segment else None
                under_way.append((piece, task))
                ahead += piece.length if task else 0
            while under_way:
                await self._deliver(*under_way[0], sink, bar)
                under_way.popleft()
        finally:
            left = [task for _, task in under_way if task]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _deliver(self, piece: Piece, task: asyncio.Task[Buffer] | None, sink: Sink, bar: Bar) -> int:
        """The piece is in the sink; how many bytes of read-ahead that frees."""
        if task is None:
            await sink.skip(piece.length)
        else:
            await sink.write(await task)
        bar.advance(piece.length)
        return piece.length if task else 0

    # What to fetch.

    async def _pieces(self, rows: list[int | bytes]) -> AsyncIterator[Piece]:
        """The file from its beginning to its end."""
        size, chunk = self._attributes.size, self._attributes.chunk_size
        for first in range(0, -(-size // chunk), CHUNKS_PER_CALL_MAX):
            if first:
                rows = await self._locate(first)
            maps = dict(zip(rows[::2], rows[1::2], strict=True))
            for index in range(first, min(first + CHUNKS_PER_CALL_MAX, -(-size // chunk))):
                blob = maps.get(index)
                segments = unpack_segments(blob) if isinstance(blob, bytes) else []
                for piece in pieces_of_chunk(index, segments, min(chunk, size - index * chunk)):
                    yield piece

    async def _locate(self, first: int) -> list[int | bytes]:
        version, _, rows = await self._connection.ask(
            "locate", ino=self._attributes.ino, first=first, count=CHUNKS_PER_CALL_MAX
        )
        if version != self._attributes.data_version:
            raise self._changed()
        located: list[int | bytes] = rows
        return located

    def _changed(self) -> Problem:
        return Problem(f"{escape(self._path)} changed while it was being read; try again")

    # Fetching it.

    async def _fetch(self, piece: Piece, segment: Segment) -> Buffer:
        """The segment's bytes, checked. Raises ExtentDamaged when no replica is good, Unavailable."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READ_SECONDS
        problems: dict[NodeNumber, DcsError] = {}
        while True:
            await self._nodes.refresh()
            for node in self._nodes.by_promise(segment.nodes, piece.chunk):
                if isinstance(problems.get(node.number), (ExtentDamaged, ExtentMissing)):
                    continue
                try:
                    data = await self._get(node.place, segment)
                except (TryAgain, NodeFailed, ExtentDamaged) as error:
                    problems[node.number] = error
                    if not isinstance(error, (ExtentDamaged, ExtentMissing)):
                        self._nodes.failed(node.number)
                else:
                    await self._report(segment, problems)
                    return data
            hopeless = all(isinstance(e, (ExtentDamaged, ExtentMissing)) for e in problems.values())
            if (hopeless and len(problems) == len(segment.nodes)) or loop.time() > deadline:
                await self._give_up(piece, segment, problems)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _get(self, address: str, segment: Segment) -> Buffer:
        start = segment.extent_offset // BLOCK_BYTES * BLOCK_BYTES
        end = segment.extent_offset + segment.length
        aligned_end = -(-end // BLOCK_BYTES) * BLOCK_BYTES
        data = await self._connection.storage.get(
            address, segment.extent, start, aligned_end - start,
            deadline_seconds=GET_SECONDS, first_byte_seconds=FIRST_BYTE_SECONDS,
        )  # fmt: skip
        if len(data) < end - start:
            raise ExtentDamaged(
                f"{extent_text(segment.extent)} on {address}: ends {end - start - len(data)} bytes early"
            )
        return data[segment.extent_offset - start : end - start]

    async def _report(self, segment: Segment, problems: dict[NodeNumber, DcsError]) -> None:
        for number, error in problems.items():
            if isinstance(error, (ExtentDamaged, ExtentMissing)):
                with contextlib.suppress(DcsError):
                    await self._connection.naming.report_damage(segment.extent, number, str(error))

    async def _give_up(self, piece: Piece, segment: Segment, problems: dict[NodeNumber, DcsError]) -> None:
        """Always raises: the file changed under us, or the chunk cannot be had now."""
        version, _, _ = await self._connection.ask("locate", ino=self._attributes.ino, first=piece.chunk, count=1)
        if version != self._attributes.data_version:
            raise self._changed()
        await self._report(segment, problems)
        unknown = [number for number in segment.nodes if number not in problems]
        causes = [f"node {number}: {error}" for number, error in problems.items()]
        causes += [f"node {number} is not known" for number in unknown]
        raise ExtentDamaged(
            f"{escape(self._path)}: no good replica of chunk {piece.chunk}, extent {extent_text(segment.extent)}: "
            + "; ".join(causes)
        )


def pieces_of_chunk(index: int, segments: list[Segment], length: int) -> list[Piece]:
    """The first `length` bytes of a chunk, in order."""
    pieces: list[Piece] = []
    at = 0
    for segment in segments:
        if segment.offset >= length:
            break
        if segment.offset > at:
            pieces.append(Piece(index, segment.offset - at, None))
        end = min(segment.end, length)
        for start in range(segment.offset, end, PIECE_BYTES_MAX):
            stop = min(start + PIECE_BYTES_MAX, end)
            part = Segment(
                start, segment.extent, segment.extent_offset + start - segment.offset, stop - start, segment.nodes
            )
            pieces.append(Piece(index, stop - start, part))
        at = end
    if at < length:
        pieces.append(Piece(index, length - at, None))
    return pieces
