"""Verifies, once after the start, what a disk was given shortly before the node ended.

After a loss of power a replica that was not synced has its name, but is empty, short or full of zeros. The node
would go on to count it as its copy until the scrub comes by or somebody reads it; so it is looked for at once, set
aside by the store and reported from there, and copied anew while others have it.

Called by the node, a task for each disk; one thread at a time, at the scrub's rate at most. Which replicas are
recent is told by their times alone: of a clock that jumped meanwhile, the scrub makes up for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import suppress

from servers.protocol.errors import ExtentMissing
from servers.protocol.ids import ExtentId
from servers.storage.data_directory import BUCKETS
from servers.storage.disks import Disk
from servers.storage.extent_store import ExtentStore

RECENT_SECONDS = 30.0
"""Before the last store: longer than a store ever waits for its sync on a disk that works."""

logger = logging.getLogger(__name__)


async def verify_recent(store: ExtentStore, disk: Disk, bytes_per_second_max: float, walks: asyncio.Semaphore) -> None:
    """What was stored last before this call is whole, or set aside. `walks`: of so many disks at once all files are
    looked at, which keeps a thread for minutes."""
    try:
        async with walks:
            recent = await asyncio.to_thread(_stored_last, disk, time.time_ns())
        damaged = 0
        for extent in recent:
            began = time.monotonic()
            with suppress(ExtentMissing):  # Deleted meanwhile.
                found = await asyncio.to_thread(store.check_replica, disk, extent)
                damaged += found is None
                if found is not None:
                    await asyncio.sleep(began + found.file_bytes / bytes_per_second_max - time.monotonic())
    except OSError as error:
        disk.health.note(error)
        logger.error("what was stored last on %s could not be verified: %s", disk.directory.root, error)
        return
    if damaged:
        logger.warning(
            "%s lost %d of the %d replicas that were stored last; others have them", disk.directory.root, damaged,
            len(recent),
        )  # fmt: skip


def _stored_last(disk: Disk, now_ns: int) -> list[ExtentId]:
    """Those of the last RECENT_SECONDS in which the disk took any, and whatever has a later time. Blocks."""
    times: dict[ExtentId, int] = {}
    newest = 0
    for bucket in range(BUCKETS):
        for extent in disk.directory.bucket_names(bucket):
            with suppress(FileNotFoundError):
                times[extent] = mtime = os.stat(disk.directory.path(extent)).st_mtime_ns
                newest = max(newest, min(mtime, now_ns))
        oldest = newest - int(RECENT_SECONDS * 1e9)
        times = {extent: mtime for extent, mtime in times.items() if mtime >= oldest}
    return list(times)
