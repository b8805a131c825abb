"""Making a file out of a stream: chunks to the nodes' disks, then the map, then the name.

The chunks go to their nodes a few at a time, each to all its nodes at once, and are committed
in groups, at least every COMMIT_SECONDS, to an inode without a name; the last step publishes it.
So nobody ever sees half a file, and what a run leaves that ends early is forgotten with its session.

As strict as the REST interface at the start: nothing begins with fewer nodes than replicas are
wanted. A node lost on the way is replaced; where none is left to replace it, going on with
`replicas_min` beats throwing away what is uploaded: metadata counts such extents, for repair.
"""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from servers.admin.connection import Connection, Session
from servers.admin.errors import Problem, about
from servers.admin.local_source import LocalSource
from servers.admin.node_table import NodeTable
from servers.admin.output import Bar
from servers.admin.runner import first_of
from servers.admin.tree import find_parent, resolve
from servers.protocol.checksum import block_sums
from servers.protocol.errors import DcsError, ExtentDamaged, NodeFailed, Refused, TooFewNodes, TryAgain
from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, NodeNumber, extent_text
from servers.protocol.limits import CHUNKS_PER_CALL_MAX, MIB
from servers.protocol.naming_api import Attributes, pack_segments, unpack_attributes
from servers.protocol.placement import NodeView, choose_nodes
from servers.protocol.storage_api import ExtentHeader

READ_BYTES = 4 * MIB
"""What is read from the source at once, if chunks are not larger."""
IN_FLIGHT_BYTES = 32 * MIB
CHUNKS_IN_FLIGHT_MIN, CHUNKS_IN_FLIGHT_MAX = 2, 16
WRITE_SECONDS = 30.0
"""How long a chunk is tried again when too few nodes take it."""
PAUSE_SECONDS = 0.5
SILENCE_SECONDS = 10.0
"""A node that was sent a chunk has it on stable storage within this."""
PUT_SECONDS = 30.0
PUT_BYTES_PER_SECOND_MIN = MIB
"""With PUT_SECONDS, the deadline of one upload: 94 s for the largest chunk."""
PIECE_BYTES = MIB
SYNCED_ALONE_BYTES = MIB
"""Chunks from this size on are synced one by one; smaller ones by a barrier before each commit,
which costs each node one group commit for 256 chunks instead of 256 of them."""
BARRIER_SECONDS = 30.0
COMMIT_SECONDS = 10.0
"""What is stored is committed so often, however slow the source: nobody else knows of it before, and a node that is
drained would be called empty with it."""
LATE_SECONDS = 30.0
"""What was sent to the nodes longer ago is asked for before it is committed, for the same reason: less than
`drain_grace_seconds` of the naming servers."""


@dataclass(frozen=True)
class Creation:
    """What to make."""

    path: bytes
    mode: int
    uid: int
    gid: int
    overwrite: bool
    chunk_size: int | None
    """None takes that of the directory."""
    replicas_min: int


@dataclass(frozen=True)
class Created:
    size: int
    extents: int
    thin_extents: int
    """Those with fewer replicas than wanted."""


async def create(connection: Connection, source: LocalSource, wanted: Creation, bar: Bar) -> Created:
    """The file is there, whole and on stable storage. Raises Problem, DcsError, OSError; then nothing is there."""
    bar.begin(source.size)
    parent, name = await find_parent(connection, wanted.path)
    if not wanted.overwrite:
        await _expect_free(connection, wanted.path)
    async with connection.session("dcs create") as session:
        chunk_size = {"chunk_size": wanted.chunk_size} if wanted.chunk_size else {}
        ino, blob = await session.change(
            "stub", mode=wanted.mode, uid=wanted.uid, gid=wanted.gid, parent=parent, **chunk_size
        )
        stub = unpack_attributes(ino, blob)
        upload = _Upload(connection, session, stub, name, wanted.replicas_min, bar)
        try:
            await upload.run(source)
            source.check_unchanged()
            await session.change(
                "publish", ino=ino, parent=parent, name=name, size=upload.size, overwrite=wanted.overwrite
            )
        except Refused as error:
            raise _taken(wanted.path) if error.errno == errno.EEXIST else about(wanted.path, error) from error
    return Created(upload.size, upload.extents, upload.thin_extents)


async def _expect_free(connection: Connection, path: bytes) -> None:
    """Said before the upload; `publish` has the last word."""
    try:
        await resolve(connection, path)
    except Refused as error:
        if error.errno != errno.ENOENT:
            raise
    else:
        raise _taken(path)


def _taken(path: bytes) -> Problem:
    return Problem(f"{about(path, Refused(errno.EEXIST))}; --overwrite replaces a file")


@dataclass(frozen=True, slots=True)
class _Stored:
    """An extent that is not committed yet."""

    index: int
    segment: Segment
    begun: float
    """When it was sent to the nodes, of time.monotonic()."""


class _Upload:
    def __init__(
        self,
        connection: Connection,
        session: Session,
        stub: Attributes,
        name: bytes,
        replicas_min: int,
        bar: Bar,
    ) -> None:
        self.size = 0
        self.extents = 0
        self.thin_extents = 0
        self._connection = connection
        self._session = session
        self._stub = stub
        self._name = name
        self._replicas_min = min(replicas_min, stub.replicas)
        self._bar = bar
        self._nodes = NodeTable(connection.naming)
        self._chance = random.Random()
        self._began_ns = time.time_ns()
        self._syncs_alone = stub.chunk_size >= SYNCED_ALONE_BYTES
        self._has_reached_all = False
        self._stored: list[_Stored] = []

    async def run(self, source: LocalSource) -> None:
        """All of the source is in extents on stable storage, and in the inode's map."""
        await self._nodes.load()
        choose_nodes(self._nodes.alive(), self._stub.replicas, 0, self._chance)
        chunk = self._stub.chunk_size
        room = asyncio.Semaphore(max(CHUNKS_IN_FLIGHT_MIN, min(CHUNKS_IN_FLIGHT_MAX, IN_FLIGHT_BYTES // chunk)))
        over = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._commit_until(over))
                async with asyncio.TaskGroup() as group:
                    async for index, piece in self._chunks(source):
                        await room.acquire()
                        group.create_task(self._take(index, piece, room))
                over.set()
        except BaseExceptionGroup as errors:
            raise first_of(errors) from errors
        await self._commit()  # Also what was stored while the last of the others was under way.

    async def _chunks(self, source: LocalSource) -> AsyncIterator[tuple[int, memoryview]]:
        """The chunks that have bytes, with their indexes; counts `size` up as they come."""
        chunk = self._stub.chunk_size
        block_bytes = max(chunk, READ_BYTES)
        while block := await source.read(block_bytes):
            start = self.size
            self.size += len(block)
            for at in range(0, len(block), chunk):
                piece = block[at : at + chunk]
                if source.is_hole(start + at, len(piece)):
                    self._bar.advance(len(piece))
                else:
                    yield (start + at) // chunk, piece
            if len(block) < block_bytes:
                return

    async def _take(self, index: int, piece: memoryview, room: asyncio.Semaphore) -> None:
        begun = time.monotonic()
        segment = await self._store(index, piece)
        self._bar.advance(len(piece))
        self._stored.append(_Stored(index, segment, begun))
        if len(self._stored) >= CHUNKS_PER_CALL_MAX:
            await self._commit()
        room.release()

    async def _commit_until(self, over: asyncio.Event) -> None:
        """Commits what is stored every COMMIT_SECONDS, also while the source gives nothing."""
        while not over.is_set():
            try:
                await asyncio.wait_for(over.wait(), COMMIT_SECONDS)
            except TimeoutError:
                await self._commit()

    async def _commit(self) -> None:
        stored, self._stored = sorted(self._stored, key=lambda one: one.index), []
        if not stored:
            return
        late = time.monotonic() - LATE_SECONDS
        asked = [one.segment for one in stored if one.begun < late or not self._syncs_alone]
        unsynced = await self._unsynced_nodes(asked) if asked else set()
        chunks: list[int | list[int | bytes]] = []
        for one in stored:
            chunks += (one.index, pack_segments([self._without(one.segment, unsynced)]))
        end = max(one.index * self._stub.chunk_size + one.segment.length for one in stored)
        await self._session.change("commit", ino=self._stub.ino, chunks=chunks, end=end, synced=True)

    async def _unsynced_nodes(self, segments: list[Segment]) -> set[NodeNumber]:
        """The nodes that could not bring what they took to stable storage, or have lost some of it."""
        extents: dict[NodeNumber, list[ExtentId]] = {}
        for segment in segments:
            for number in segment.nodes:
                extents.setdefault(number, []).append(segment.extent)
        await self._nodes.refresh()
        asked = self._nodes.by_promise(tuple(extents), 0)
        outcomes = await asyncio.gather(*(self._barrier(node, extents[node.number]) for node in asked))
        return extents.keys() - {node.number for node, is_synced in zip(asked, outcomes, strict=True) if is_synced}

    async def _barrier(self, node: NodeView, extents: list[ExtentId]) -> bool:
        try:
            await self._connection.storage.barrier(node.place, extents=extents, deadline_seconds=BARRIER_SECONDS)
        except (TryAgain, NodeFailed):
            self._nodes.failed(node.number)
            return False
        return True

    def _without(self, segment: Segment, unsynced: set[NodeNumber]) -> Segment:
        kept = tuple(number for number in segment.nodes if number not in unsynced)
        if len(kept) < self._replicas_min:
            raise NodeFailed(f"only {len(kept)} nodes could bring {extent_text(segment.extent)} to stable storage")
        self.thin_extents += len(kept) < len(segment.nodes) == self._stub.replicas
        return replace(segment, nodes=kept)

    async def _store(self, index: int, piece: memoryview) -> Segment:
        """The piece is stored on all its nodes, or on enough of them; synced if large, else up to `_commit`."""
        extent = self._session.new_extent()
        header = ExtentHeader(
            self._session.volume, self._stub.ino, index, self._began_ns, self._name, block_sums([piece]),
            self._stub.chunk_size, (0, len(piece)),
        )  # fmt: skip
        stored: list[NodeNumber] = []
        failures: dict[NodeNumber, DcsError] = {}
        deadline = time.monotonic() + WRITE_SECONDS
        while True:
            await self._nodes.refresh()
            await self._round(extent, piece, header, stored, failures)
            if len(stored) == self._stub.replicas:
                self._has_reached_all = True
                break
            if self._has_reached_all and len(stored) >= self._replicas_min:
                self.thin_extents += 1
                break
            if not self._has_reached_all or time.monotonic() > deadline:
                causes = "; ".join(f"node {number}: {error}" for number, error in failures.items())
                raise TooFewNodes(f"Fewer than {self._stub.replicas} storage servers available: {causes}")
            await asyncio.sleep(PAUSE_SECONDS)
        self.extents += 1
        return Segment(0, extent, 0, len(piece), tuple(stored))

    async def _round(
        self,
        extent: ExtentId,
        piece: memoryview,
        header: ExtentHeader,
        stored: list[NodeNumber],
        failures: dict[NodeNumber, DcsError],
    ) -> None:
        """Asks nodes until all replicas are stored or nobody is left to ask."""
        tried = set(stored)
        while lacking := self._stub.replicas - len(stored):
            able = [node for node in self._nodes.alive() if node.number not in tried and node.free_bytes > len(piece)]
            if not able:
                return
            beside = self._nodes.by_promise(tuple(stored), 0)
            chosen = choose_nodes(able, min(lacking, len(able)), len(piece), self._chance, beside=beside)
            tried.update(node.number for node in chosen)
            errors = await asyncio.gather(*(self._put(node, extent, piece, header) for node in chosen))
            for node, error in zip(chosen, errors, strict=True):
                if error is None:
                    stored.append(node.number)
                else:
                    failures[node.number] = error
                    self._nodes.failed(node.number)

    async def _put(self, node: NodeView, extent: ExtentId, piece: memoryview, header: ExtentHeader) -> DcsError | None:
        """Why the node does not have it; None when it has."""
        pieces = [piece[at : at + PIECE_BYTES] for at in range(0, len(piece), PIECE_BYTES)]
        try:
            await self._connection.storage.put(
                node.place, extent, pieces, header, sync=self._syncs_alone, first_byte_seconds=SILENCE_SECONDS,
                deadline_seconds=PUT_SECONDS + len(piece) / PUT_BYTES_PER_SECOND_MIN,
            )  # fmt: skip
        except (TryAgain, NodeFailed, ExtentDamaged) as error:  # Damaged: its disk did not keep what it took.
            return error
        return None
