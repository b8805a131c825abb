"""Extents, stored and fetched whatever single nodes do.

Called by the file writer and, through the block cache, by the file reader. Knows extents and
nodes; knows neither files nor what has been committed. Every byte that it hands out was
checked against the sums that the writer computed.

Runs in the mount's one trio loop; any number of calls may be under way.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import trio

from fusefs.chunks.fetching import Fetching, ReportDamage
from fusefs.chunks.limits import PAUSE_SECONDS_FIRST, PAUSE_SECONDS_MAX, Limits
from fusefs.chunks.replicas import Replicas
from fusefs.chunks.silent_nodes import SilentNodes
from fusefs.chunks.storing import Storing
from servers.client.storage import StorageClient
from servers.protocol.checksum import BlockSums, Buffer
from servers.protocol.errors import DcsError, TryAgain, Unavailable
from servers.protocol.ids import ExtentId, InodeNumber, NodeNumber
from servers.protocol.limits import BLOCK_BYTES, MIB
from servers.protocol.placement import NodeView
from servers.protocol.storage_api import BARRIER_EXTENTS_MAX, ExtentHeader

ASKED_AGAIN_SECONDS = 1.0
"""The kernel asks again, for a single page, at once after its read-ahead has failed: who has waited out the
deadline for an extent does not wait it out twice."""
UNREACHED_MAX = 1000


@dataclass(frozen=True, slots=True)
class StoredExtent:
    extent: ExtentId
    length: int
    nodes: tuple[NodeNumber, ...]
    """Exactly those that acknowledged it."""
    synced: bool
    """Whether it is on stable storage there; if not, a barrier brings it."""


class ExtentClient:
    def __init__(
        self,
        storage: StorageClient,
        replicas: Replicas,
        *,
        new_id: Callable[[], ExtentId],
        volume: str,
        report_damage: ReportDamage,
        limits: Limits | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._storage = storage
        self._replicas = replicas
        self._new_id = new_id
        self._volume = volume
        self._report_damage = report_damage
        self._limits = limits or Limits()
        self._chance = chance or random.Random()
        self._silent_nodes = SilentNodes(storage, replicas, self._limits)
        self._unreached_at: dict[ExtentId, float] = {}
        """When a fetch of the extent last ended at its deadline."""
        self._stored = self._stored_bytes = self._stored_short = self._store_failures = 0
        self._fetched = self._fetched_bytes = self._hedged = self._bad_replicas = self._fetch_failures = 0

    async def store(
        self,
        pieces: Sequence[Buffer],
        *,
        inode: InodeNumber,
        chunk: int,
        name: bytes,
        mtime_ns: int,
        replicas: int,
        sync: bool,
        chunk_size: int = 0,
        places: tuple[int, ...] = (),
    ) -> StoredExtent:
        """The pieces, laid end to end, as a new extent on `replicas` nodes, or on as many as can be had but
        at least `Limits.min_write_replicas` of them. The pieces hold at least one byte and must not change meanwhile.

        Raises NodeFull when the nodes have no room, Unavailable when too few took it in time.
        """
        length = sum(map(len, pieces))
        if not length:
            raise ValueError("an extent has at least one byte")
        end_at = trio.current_time() + self._limits.write_deadline_seconds
        header = ExtentHeader(self._volume, inode, chunk, mtime_ns, name, await _sums(pieces), chunk_size, places)
        storing = Storing(
            self._storage, self._replicas, self._limits, self._chance, self._new_id(), pieces, length,
            header, replicas, sync, end_at,
        )  # fmt: skip
        try:
            nodes = await storing.run()
        except DcsError:
            self._store_failures += 1
            raise
        self._stored += 1
        self._stored_bytes += storing.length
        self._stored_short += len(nodes) < replicas
        return StoredExtent(storing.extent, storing.length, nodes, sync)

    async def fetch(
        self,
        extent: ExtentId,
        nodes: Sequence[NodeNumber],
        start: int,
        end: int,
        *,
        until: int | None = None,
        deadline_seconds: float | None = None,
    ) -> memoryview:
        """Bytes [start, end) of the extent; with `until`, on to there or to the extent's end if that comes first.

        Raises ExtentDamaged when every one of the nodes answered and none has the bytes as they were
        written, Unavailable when none of them could be reached in time.
        """
        first = start - start % BLOCK_BYTES
        length = -(-max(end, until or 0) // BLOCK_BYTES) * BLOCK_BYTES - first
        seconds = self._limits.read_deadline_seconds if deadline_seconds is None else deadline_seconds
        if trio.current_time() - self._unreached_at.get(extent, -math.inf) < ASKED_AGAIN_SECONDS:
            seconds = min(seconds, ASKED_AGAIN_SECONDS)
        fetching = Fetching(
            self._storage, self._replicas, self._limits, self._report_damage, self._silent_nodes.note,
            extent, nodes, first, length, end - first, trio.current_time() + seconds,
        )  # fmt: skip
        try:
            view = await fetching.run()
        except DcsError as error:
            if isinstance(error, Unavailable):
                self._note_unreached(extent)
            self._fetch_failures += 1
            raise
        finally:
            self._hedged += fetching.hedged
            self._bad_replicas += len(fetching.bad)
        self._fetched += 1
        self._fetched_bytes += len(view)
        return view[start - first : (end if until is None else max(end, until)) - first]

    def _note_unreached(self, extent: ExtentId) -> None:
        self._unreached_at[extent] = trio.current_time()
        if len(self._unreached_at) > UNREACHED_MAX:
            del self._unreached_at[next(iter(self._unreached_at))]

    async def barrier(
        self,
        nodes: Collection[NodeNumber],
        *,
        extents: Mapping[NodeNumber, Sequence[ExtentId]] = MappingProxyType({}),
        enough: Callable[[set[NodeNumber]], bool] = lambda confirmed: False,
        deadline: float = math.inf,
    ) -> set[NodeNumber]:
        """Those of the nodes that have all they took before this call on stable storage, and have lost none of the
        `extents` that they took: a node that lost power meanwhile does not know of what it took before.

        Waits for all of them until the deadline, which is not later than that of a write, and asks those again that
        cannot be reached: they may be starting. Once `enough` says of those that confirmed that they are, the others
        get a straggler's time, and none if they were in trouble already.
        """
        confirmed: set[NodeNumber] = set()
        waiting = set(nodes)
        end_at = min(deadline, trio.current_time() + self._limits.write_deadline_seconds)
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = end_at

            async def ask(number: NodeNumber) -> None:
                if await self._confirms(number, extents.get(number, ()), end_at):
                    confirmed.add(number)
                waiting.discard(number)
                if enough(confirmed):
                    now = trio.current_time()
                    trusted = any(self._replicas.is_trusted(other, now) for other in waiting)
                    seconds = self._limits.straggler_seconds if trusted else 0.0
                    nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, now + seconds)

            for number in waiting:
                nursery.start_soon(ask, number)
        now = trio.current_time()
        for number in waiting:
            if self._replicas.is_trusted(number, now):  # Others had no time to show that they are well.
                self._replicas.failed(number, now)
        return confirmed

    async def listen(self) -> None:
        """Asks the nodes that kept a reader waiting, until they answer. Runs until cancelled."""
        await self._silent_nodes.run()

    def statistics(self) -> dict[str, int]:
        return {
            "stored": self._stored,
            "stored_bytes": self._stored_bytes,
            "stored_with_fewer_replicas": self._stored_short,
            "store_failures": self._store_failures,
            "fetched": self._fetched,
            "fetched_bytes": self._fetched_bytes,
            "fetch_failures": self._fetch_failures,
            "hedged": self._hedged,
            "bad_replicas": self._bad_replicas,
            **self._replicas.statistics(trio.current_time()),
        }

    async def _confirms(self, number: NodeNumber, extents: Sequence[ExtentId], end_at: float) -> bool:
        pause = PAUSE_SECONDS_FIRST
        while True:
            node = self._replicas.node(number)
            try:
                if node is not None:
                    await self._sync(node, extents, end_at)
                    return True
            except TryAgain:
                self._replicas.failed(number, trio.current_time())
            except DcsError:  # It has an answer, and no better one next time.
                self._replicas.failed(number, trio.current_time())
                return False
            if trio.current_time() + pause >= end_at:
                return False
            await trio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def _sync(self, node: NodeView, extents: Sequence[ExtentId], end_at: float) -> None:
        for at in range(0, max(len(extents), 1), BARRIER_EXTENTS_MAX):
            some = extents[at : at + BARRIER_EXTENTS_MAX]
            await self._storage.barrier(node.place, extents=some, deadline_seconds=end_at - trio.current_time())


async def _sums(pieces: Sequence[Buffer]) -> bytes:
    """The table of sums. Others get a turn after every MiB."""
    sums = BlockSums()
    since_turn = 0
    for piece in pieces:
        view = memoryview(piece)
        for at in range(0, len(view), MIB):
            part = view[at : at + MIB]
            sums.update(part)
            since_turn += len(part)
            if since_turn >= MIB:
                since_turn = 0
                await trio.lowlevel.checkpoint()
    return sums.table()
