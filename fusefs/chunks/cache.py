"""What was fetched lately, in runs of whole blocks.

Called by the file reader. Extents never change, so an entry is never wrong, only old: the run
used longest ago goes first. Readers of the same blocks share one fetch, and a reader that is
cancelled leaves it to the next one that waits.

    (nothing) ──begin──▶ loading ──arrived──▶ held ──room needed──▶ (nothing)
                            └────failed, cancelled────────────────▶ (nothing)

Runs never overlap: a block belongs to at most one. All bookkeeping is done between two awaits.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import trio

from servers.protocol.errors import DcsError, ExtentDamaged
from servers.protocol.ids import ExtentId, NodeNumber, extent_text
from servers.protocol.limits import BLOCK_BYTES, KIB, MIB

CACHED_BYTES_MAX = 64 * MIB
PREFETCHES_MAX = 8
RUN_OVERHEAD_BYTES = 1 * KIB
"""Counted for every run besides its data, so that many tiny ones are bounded too."""

logger = logging.getLogger(__name__)


class Fetch(Protocol):
    async def __call__(
        self, extent: ExtentId, nodes: Sequence[NodeNumber], start: int, end: int, *, until: int | None = None
    ) -> memoryview:
        """`ExtentClient.fetch`."""
        ...


class BlockCache:
    def __init__(
        self, fetch: Fetch, *, cached_bytes_max: int = CACHED_BYTES_MAX, prefetches_max: int = PREFETCHES_MAX
    ) -> None:
        self._fetch = fetch
        self._cached_bytes_max = cached_bytes_max
        self._prefetches_max = prefetches_max
        self._blocks: dict[tuple[ExtentId, int], _Run] = {}
        """Which run a block belongs to, loading or held."""
        self._held: OrderedDict[_Run, None] = OrderedDict()
        """The run used longest ago first."""
        self._cached_bytes = 0
        self._prefetches = 0
        self._hits = self._misses = self._prefetched = 0

    async def read(
        self, extent: ExtentId, nodes: Sequence[NodeNumber], start: int, end: int, unit: int
    ) -> list[memoryview]:
        """Bytes [start, end) of the extent, in pieces of what is held: one piece where one run covers them.

        What is missing is fetched in multiples of `unit`, itself a multiple of 64 KiB. Raises as `ExtentClient.fetch`.
        """
        pieces: list[memoryview] = []
        at = start
        while at < end:
            run = self._blocks.get((extent, at // BLOCK_BYTES))
            if run is None:
                self._misses += 1
                run = self._begin(extent, at, end, unit, end)
                await self._load(run, nodes)
            elif run.view is not None:
                self._hits += 1
                self._held.move_to_end(run)
            else:
                await run.ended.wait()
                if run.error is not None and run.failed_for(end):
                    raise run.error
            if run.view is None:
                continue  # Who was loading it was cancelled, or wanted more than this reader.
            piece = run.view[at - run.start : end - run.start]
            if not piece:
                # The extent ended before `at` where this was fetched; elsewhere it may not.
                self._drop(run)
                continue
            pieces.append(piece)
            at += len(piece)
        return pieces

    def prefetch(
        self, nursery: trio.Nursery, extent: ExtentId, nodes: Sequence[NodeNumber], start: int, end: int, unit: int
    ) -> bool:
        """Starts to fetch what is missing of [start, end); False where too much is under way already."""
        at = start
        while at < end:
            run = self._blocks.get((extent, at // BLOCK_BYTES))
            if run is None:
                if self._prefetches >= self._prefetches_max:
                    return False
                run = self._begin(extent, at, min(end, at - at % unit + unit), unit, end)
                self._prefetches += 1
                self._prefetched += 1
                nursery.start_soon(self._load_quietly, run, nodes)
            # A held run may end within the block, where the extent does.
            at = max(run.end, (at // BLOCK_BYTES + 1) * BLOCK_BYTES)
        return True

    def put(self, extent: ExtentId, data: bytes) -> None:
        """The whole of an extent that this mount has just stored: who reads it soon need not fetch it."""
        blocks = -(-len(data) // BLOCK_BYTES)
        if blocks == 0 or any((extent, block) in self._blocks for block in range(blocks)):
            return
        run = _Run(extent, 0, blocks * BLOCK_BYTES, len(data))
        for block in range(blocks):
            self._blocks[extent, block] = run
        self._hold(run, memoryview(data))
        run.ended.set()

    def statistics(self) -> dict[str, int]:
        return {
            "cached_bytes": self._cached_bytes,
            "runs": len(self._held),
            "hits": self._hits,
            "misses": self._misses,
            "prefetched": self._prefetched,
        }

    def _begin(self, extent: ExtentId, at: int, end: int, unit: int, needed_end: int) -> _Run:
        """A run to be loaded: what no run covers around `at`, within the units that [at, end) touches."""
        lowest, highest = at // unit * unit // BLOCK_BYTES, -(-end // unit) * unit // BLOCK_BYTES
        first = at // BLOCK_BYTES
        last = first + 1
        while first > lowest and (extent, first - 1) not in self._blocks:
            first -= 1
        while last < highest and (extent, last) not in self._blocks:
            last += 1
        run = _Run(extent, first * BLOCK_BYTES, last * BLOCK_BYTES, needed_end)
        for block in range(first, last):
            self._blocks[extent, block] = run
        return run

    async def _load(self, run: _Run, nodes: Sequence[NodeNumber]) -> None:
        """The run is held afterwards, or gone. Raises what the fetch raises."""
        try:
            view = await self._fetch(run.extent, nodes, run.start, run.needed_end, until=run.end)
        except DcsError as error:
            run.error = error
            raise
        else:
            self._hold(run, view)
        finally:
            if run.view is None:
                self._unlist(run, run.start)
            run.ended.set()

    async def _load_quietly(self, run: _Run, nodes: Sequence[NodeNumber]) -> None:
        try:
            await self._load(run, nodes)
        except DcsError as error:
            logger.debug("prefetch of %s failed: %s", extent_text(run.extent), error)
        finally:
            self._prefetches -= 1

    def _hold(self, run: _Run, view: memoryview) -> None:
        run.view = view
        self._unlist(run, run.start + len(view))
        self._held[run] = None
        self._cached_bytes += len(view) + RUN_OVERHEAD_BYTES
        while self._cached_bytes > self._cached_bytes_max:
            self._drop(next(iter(self._held)))

    def _drop(self, run: _Run) -> None:
        if run in self._held:
            del self._held[run]
            self._cached_bytes -= run.end - run.start + RUN_OVERHEAD_BYTES
            self._unlist(run, run.start)

    def _unlist(self, run: _Run, start: int) -> None:
        """The run is without its blocks from the first that begins at or after `start`."""
        for block in range(-(-start // BLOCK_BYTES), -(-run.end // BLOCK_BYTES)):
            del self._blocks[run.extent, block]
        run.end = start


class _Run:
    """Bytes [start, end) of an extent; without a view they are on their way, or did not come."""

    __slots__ = ("end", "ended", "error", "extent", "needed_end", "start", "view")

    def __init__(self, extent: ExtentId, start: int, end: int, needed_end: int) -> None:
        self.extent = extent
        self.start = start
        self.end = end
        self.needed_end = min(needed_end, end)
        """Who began it needs the bytes up to here; the extent may end before `end`."""
        self.view: memoryview | None = None
        self.error: DcsError | None = None
        self.ended = trio.Event()

    def failed_for(self, end: int) -> bool:
        """Whether the error is also that of a reader up to `end`: an extent too short for one may do for another."""
        return not isinstance(self.error, ExtentDamaged) or self.needed_end <= end
