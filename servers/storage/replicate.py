"""Copies of extents fetched from other nodes, when a naming server says so: repair without a detour.

The data comes with the header that its writer gave it, and is compared with the writer's sums
when it has come and again when it is stored. An order is answered when all that it names is on
stable storage or has a reason why not. A replica that is here already but damaged is replaced.

What is fetched and what is verified shares one pace, so that repair leaves room for clients.
Called by the routes; event loop only, threads for the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple

from servers.client.storage import StorageClient
from servers.protocol.checksum import Buffer
from servers.protocol.errors import DcsError, ExtentDamaged, ExtentMissing
from servers.protocol.ids import ExtentId
from servers.protocol.storage_api import ExtentHeader
from servers.storage.extent_store import ExtentStore
from servers.storage.syncer import Syncer

COPIES_AT_ONCE_MAX = 4
"""Bounds the memory, too: so many of the largest extents."""
FETCH_SECONDS = 60.0
FIRST_BYTE_SECONDS = 5.0


Found = TypeVar("Found")
Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True)
class Copy:
    extent: ExtentId
    length: int
    """It has at least so many bytes."""
    sources: Sequence[str]
    """Addresses of nodes that should have it, the best first."""


@dataclass
class Outcome:
    stored: list[ExtentId] = field(default_factory=list)
    """On this node's stable storage now."""
    failed: dict[ExtentId, str] = field(default_factory=dict)
    damaged: list[tuple[ExtentId, str, str]] = field(default_factory=list)
    """Extent, source and why: that replica is damaged or missing."""


class Pace:
    """So many bytes a second, first come, first served."""

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0

    def take(self, size: int, now: float) -> float:
        """How long to wait before these bytes may pass."""
        begin = max(self._free_at, now)
        self._free_at = begin + size / self._bytes_per_second
        return begin - now


class Replicator:
    def __init__(
        self, store: ExtentStore, syncer: Syncer, peers: StorageClient, threads: ThreadPoolExecutor, pace: Pace
    ) -> None:
        self._store = store
        self._syncer = syncer
        self._peers = peers
        self._threads = threads
        self._pace = pace
        self._places = asyncio.Semaphore(COPIES_AT_ONCE_MAX)

    async def copy(self, copies: Sequence[Copy]) -> Outcome:
        """Raises SyncFailed and TimeoutError when what was stored could not be brought to stable storage."""
        outcome = Outcome()
        await asyncio.gather(*(self._copy(copy, outcome) for copy in copies))
        if outcome.stored:
            await self._syncer.barrier()
        return outcome

    async def lengths(self, extents: Sequence[ExtentId]) -> dict[ExtentId, int | None]:
        """The length of each whose data, read now, matches its sums; None for what is not here, -1 for damaged."""
        found: dict[ExtentId, int | None] = {}
        for extent in extents:
            found[extent] = length = await self._in_thread(self._verified_length, extent)
            await self._wait(length or 0)
        return found

    async def _copy(self, copy: Copy, outcome: Outcome) -> None:
        async with self._places:
            if (await self._in_thread(self._verified_length, copy.extent) or -1) >= copy.length:
                outcome.stored.append(copy.extent)
                return
            reasons = []
            for source in copy.sources:
                try:
                    header, data = await self._fetch(copy, source)
                    await self._in_thread(self._keep, copy.extent, header, data)
                except (ExtentDamaged, ExtentMissing) as error:
                    outcome.damaged.append((copy.extent, source, str(error)))
                    reasons.append(str(error))
                except (DcsError, OSError) as error:
                    reasons.append(str(error) or type(error).__name__)
                else:
                    outcome.stored.append(copy.extent)
                    return
            outcome.failed[copy.extent] = "; ".join(reasons) or "no source was named"

    async def _fetch(self, copy: Copy, source: str) -> tuple[ExtentHeader, Buffer]:
        await self._wait(copy.length)
        header, data = await self._peers.get_whole(
            source, copy.extent, first_byte_seconds=FIRST_BYTE_SECONDS, deadline_seconds=FETCH_SECONDS
        )
        if len(data) < copy.length:
            raise ExtentDamaged(f"{source} has {len(data)} bytes of at least {copy.length}")
        return header, data

    def _keep(self, extent: ExtentId, header: ExtentHeader, data: Buffer) -> None:
        self._store.put(extent, header, data, sync=False)
        self._store.count(copies=1, copied_bytes=len(data))

    def _verified_length(self, extent: ExtentId) -> int | None:
        length = self._store.length(extent)
        if length is None or length < 0:
            return length
        try:
            self._store.verify(self._store.open(extent))
        except ExtentMissing:
            return None
        except (ExtentDamaged, OSError):
            return -1
        return length

    async def _wait(self, size: int) -> None:
        await asyncio.sleep(self._pace.take(max(0, size), time.monotonic()))

    async def _in_thread(self, work: Callable[[*Arguments], Found], *arguments: *Arguments) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
