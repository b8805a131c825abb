"""Reads all that a disk holds within a period, so that what rots is found while there are good copies.

One scrub per disk, at a rate at which it is through well within the period, and never above a
given one. It goes on where it was before a restart. Damage is set aside by the store, and
reported from there.

What it reads does not go through the page cache. One thread at a time; the event loop only
waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from servers.protocol.errors import ExtentMissing
from servers.protocol.ids import ExtentId
from servers.protocol.limits import KIB, MIB
from servers.storage.disk_health import DiskState
from servers.storage.disks import Disk
from servers.storage.extent_store import ExtentStore
from servers.storage.holdings import Held
from servers.storage.scrub_cursor import load_cursor, save_cursor

REPLICA_COST_BYTES = 64 * KIB
"""What finding and opening a replica counts as, so that many small ones do not come all at once."""
SLACK = 0.8
"""The part of the period that a pass is planned for."""
SAVE_SECONDS = 10.0
STEP_SECONDS = 0.2
"""The scrub reads for what it may, then waits so long at least: few thread hops and timers."""
STEP_BYTES_MAX = 16 * MIB
SLEEP_SECONDS_MAX = 60.0
"""Then the rate is looked at again: much may have been stored."""
IDLE_SECONDS = 5.0
"""Between looks at a disk that holds nothing or has failed."""
LATE = 1.5
"""Periods after the last complete pass: then the scrub is late, and an operator should know."""
STALLED_SECONDS = 3600.0
STALLED_GAPS = 2
"""So is one that verified nothing for so long, and for so many times what it plans between two replicas."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScrubState:
    """What an operator wants to know."""

    completed_s: int
    """The end of the last complete pass, in seconds since 1970."""
    is_late: bool
    replicas: int
    bytes: int
    damaged: int
    """All three since the start."""


def bytes_per_second(held: Held, period_seconds: float, rate_max: float) -> float:
    """The rate at which all of it, and what finding it costs, is read within the period."""
    cost = held.bytes + held.count * REPLICA_COST_BYTES
    return min(rate_max, max(1.0, cost / (SLACK * period_seconds)))


class Scrub:
    def __init__(self, store: ExtentStore, disk: Disk, period_seconds: float, rate_max: float) -> None:
        """Raises OSError."""
        self._store = store
        self._disk = disk
        self._period_seconds = period_seconds
        self._rate_max = rate_max
        self._path = disk.directory.root / "scrub"
        self._cursor = load_cursor(self._path, time.time())
        self._replicas = self._bytes = self._damaged = 0
        self._saved_at = 0.0
        self._went_on_at = time.monotonic()

    async def run(self) -> None:
        """Until cancelled."""
        budget, last = 0.0, time.monotonic()
        while True:
            held = self._disk.holdings.total
            if not held.count or self._disk.health.state is DiskState.FAILED:
                await asyncio.to_thread(self._complete)
                await asyncio.sleep(min(IDLE_SECONDS, self._period_seconds / 4))
                budget, last = 0.0, time.monotonic()
                continue
            rate = bytes_per_second(held, self._period_seconds, self._rate_max)
            now = time.monotonic()
            budget = min(budget + (now - last) * rate, STEP_BYTES_MAX)
            last = now
            if budget >= REPLICA_COST_BYTES:
                budget -= await asyncio.to_thread(self._step, budget)
            seconds_to_next = (REPLICA_COST_BYTES - budget) / rate
            await asyncio.sleep(min(max(STEP_SECONDS, seconds_to_next), SLEEP_SECONDS_MAX))

    def state(self) -> ScrubState:
        age, quiet = time.time() - self._cursor.completed_s, time.monotonic() - self._went_on_at
        gap = self._period_seconds / max(1, self._disk.holdings.total.count)
        is_late = age > LATE * self._period_seconds or quiet > STALLED_SECONDS + STALLED_GAPS * gap
        return ScrubState(self._cursor.completed_s, is_late, self._replicas, self._bytes, self._damaged)

    def _step(self, budget: float) -> float:
        """Verifies replicas for so many bytes, one at least; what it cost. Blocks."""
        spent = 0.0
        try:
            for extent in self._disk.directory.names(self._cursor.position):
                spent += self._verify(extent)
                self._cursor = self._cursor.at(extent)
                self._went_on_at = time.monotonic()
                if spent >= budget:
                    break
            else:
                self._complete()
                return spent + REPLICA_COST_BYTES
            self._save(SAVE_SECONDS)
        except OSError as error:
            self._disk.health.note(error)
            logger.error("the scrub of %s waits: %s", self._disk.directory.root, error)
        return max(spent, REPLICA_COST_BYTES)

    def _verify(self, extent: ExtentId) -> float:
        try:
            found = self._store.check_replica(self._disk, extent)
        except ExtentMissing:
            return 0.0  # Deleted meanwhile.
        self._replicas += 1
        if found is None:
            self._damaged += 1
            return REPLICA_COST_BYTES
        self._bytes += found.file_bytes
        return found.file_bytes + REPLICA_COST_BYTES

    def _complete(self) -> None:
        """A pass has ended; the next one begins. A failed disk is not scrubbed, and therefore gets late."""
        if self._disk.health.state is not DiskState.FAILED:
            self._cursor = self._cursor.completed(time.time())
            self._went_on_at = time.monotonic()
            self._save(0.0 if self._disk.holdings.total.count else SAVE_SECONDS)

    def _save(self, after_seconds: float) -> None:
        if time.monotonic() - self._saved_at < after_seconds or self._disk.health.state is not DiskState.GOOD:
            return
        self._saved_at = time.monotonic()
        try:
            save_cursor(self._path, self._cursor)
        except OSError as error:
            self._disk.health.note(error)
