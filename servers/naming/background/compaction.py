"""Chunks that were written in many small pieces become few extents again.

A storage node reads the pieces and stores them as one new extent, other nodes copy it, and one change in
Redis puts it in the place of exactly the pieces that were seen; what was appended meanwhile follows it. When
somebody wrote over them it does nothing, and the new extent is condemned. Readers with the old map read the old
extents for as long as those are kept, and then ask for the map again. A naming server that dies on the way leaves
garbage.
"""

from __future__ import annotations

import asyncio
import logging

from servers.client.storage import WantedCopy
from servers.naming.background.compaction_plan import Run, compacted, plan_runs
from servers.naming.service import Service, alive
from servers.protocol.errors import DcsError, NodeFailed, Refused
from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, InodeNumber, NodeNumber
from servers.protocol.limits import VERY_LONG_SEGMENTS_MIN
from servers.protocol.naming_api import NS, pack_nodes, pack_segments, unpack_segments
from servers.protocol.placement import NodeView, choose_nodes

log = logging.getLogger(__name__)

CHUNKS_PER_RUN = 16
LATER_RUNS = 12
"""What failed is tried again after so many runs: a minute, as it is set by default."""
STEP_SECONDS = 60.0
COPIES_MIN = 2
ENOENT = 2


class Compaction:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._quiet_seconds = service.settings.compaction_quiet_seconds
        self._bytes_per_second = service.settings.compaction_bytes_per_second
        self._later_ms = int(LATER_RUNS * service.settings.compaction_interval_seconds * 1000)
        self._written_bytes = 0
        """All copies counted, also those made in vain."""
        self.compacted = 0
        self.given_up = 0
        """Somebody wrote to the chunk meanwhile."""
        self.failed = 0

    def statistics(self) -> dict[str, int]:
        return {
            "compacted_chunks": self.compacted,
            "compactions_given_up": self.given_up,
            "compactions_failed": self.failed,
        }

    async def run(self) -> None:
        store = self._service.store
        now_ms = (await store.ask("deletions"))[0]
        before_ms = max(0, now_ms - int(self._quiet_seconds * 1000))
        rows = await store.ask("long", before_ms=before_ms, count=CHUNKS_PER_RUN)
        for ino, index in zip(rows[::2], rows[1::2], strict=True):
            written_before = self._written_bytes
            await store.ask("put_off", ino=ino, index=index, ms=self._later_ms)
            try:
                await self._compact(InodeNumber(ino), index)
            except DcsError as error:
                self.failed += 1
                log.info("chunk %d of inode %d is not compacted now: %s", index, ino, error)
            await asyncio.sleep((self._written_bytes - written_before) / self._bytes_per_second)

    async def _compact(self, ino: InodeNumber, index: int) -> None:
        store = self._service.store
        try:
            blob, seen, replicas, seconds, nanoseconds, chunk_size = await store.ask("long_chunk", ino=ino, index=index)
        except Refused as error:
            if error.errno != ENOENT:
                raise
            await store.ask("not_long", ino=ino, index=index)
            return
        segments = unpack_segments(blob)
        runs = plan_runs(segments)
        if not runs:
            await store.ask("not_long", ino=ino, index=index)
            return
        # Each write goes through the whole list: what is very long is not left until there are nodes for all copies.
        copies_min = min(COPIES_MIN, replicas) if len(segments) >= VERY_LONG_SEGMENTS_MIN else replicas
        made: dict[int, tuple[ExtentId, list[NodeNumber]]] = {}
        try:
            for number, run in enumerate(runs):
                made[number] = (await self._service.new_extent(), [])
                await self._make(
                    run, made[number], ino, index, seconds * NS + nanoseconds, chunk_size, replicas, copies_min
                )
            is_done = await self._commit(ino, index, seen, len(segments), compacted(segments, made, runs), made)
        except DcsError:
            if any(nodes for _, nodes in made.values()):
                await self._commit(ino, index, b"", 0, [], made)
            raise
        if is_done:
            self.compacted += 1
            log.info("chunk %d of inode %d: %d segments are %d extents now", index, ino, len(segments), len(runs))
        else:
            self.given_up += 1
            await store.ask("put_off", ino=ino, index=index, ms=0)

    async def _make(
        self,
        run: Run,
        made: tuple[ExtentId, list[NodeNumber]],
        ino: InodeNumber,
        index: int,
        mtime_ns: int,
        chunk_size: int,
        replicas: int,
        copies_min: int,
    ) -> None:
        """The run is one extent on as many nodes as are wanted, or can be had; they are added to `made` as they have
        it. Raises TooFewNodes and what the nodes raise."""
        extent, stored = made
        nodes = await self._service.nodes()
        places = {node.number: node.place for node in nodes if node.state == "alive"}
        able = sum(node.takes_copies and node.free_bytes > run.length for node in nodes)
        count = min(replicas, max(able, copies_min))
        home, *others = choose_nodes(alive(nodes), count, run.length, self._service.chance, local=run.home)
        self._written_bytes += run.length
        stored.append(home.number)
        await self._service.storage.compose(
            home.place, home.uuid, extent, volume=self._service.store.volume_uuid, inode=ino, chunk=index,
            mtime_ns=mtime_ns, chunk_size=chunk_size, offset=run.offset,
            parts=[(s.extent, s.extent_offset, s.length, _sources(s, home, places)) for s in run.segments],
            deadline_seconds=STEP_SECONDS,
        )  # fmt: skip
        wanted = [WantedCopy(extent, run.length, [home.place])]
        for other in others:
            self._written_bytes += run.length
            stored.append(other.number)
            done = await self._service.storage.copy(other.place, wanted, node=other.uuid, deadline_seconds=STEP_SECONDS)
            if extent not in done.stored:
                raise NodeFailed(f"node {other.number}: {done.failed.get(extent, 'no copy')}")

    async def _commit(
        self, ino: InodeNumber, index: int, seen: bytes, count: int, segments: list[Segment],
        made: dict[int, tuple[ExtentId, list[NodeNumber]]],
    ) -> bool:  # fmt: skip
        """Whether the chunk began as `seen`, with so many segments, and is as it should be now."""
        flat = [part for extent, nodes in made.values() if nodes for part in (extent, pack_nodes(nodes))]
        reply = await self._service.change(
            "compact", ino=ino, index=index, seen=seen, count=count, segments=pack_segments(segments), made=flat
        )
        return bool(reply[0])


def _sources(segment: Segment, home: NodeView, places: dict[NodeNumber, str]) -> list[str]:
    return [places[n] for n in segment.nodes if n != home.number and n in places]
