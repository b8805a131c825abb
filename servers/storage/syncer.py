"""Brings what was stored without a sync to stable storage: within 5 s by itself, at once when asked.

A flush serves everybody who asked before it began, and takes all that was stored until then;
there is one at a time. `barrier` so keeps its promise whether its extents are in the flush
under way or in the next.

A replica whose fsync failed is dropped, never synced again: after one failure the kernel may
have thrown the pages away and call the next fsync a success. Barriers fail for LOST_SECONDS
after that, because whoever stored the extent may ask only later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Sequence

from servers.protocol.errors import DcsError
from servers.protocol.ids import ExtentId, extent_text
from servers.storage.disk import start_writeback, sync_directory, sync_file_system
from servers.storage.disks import Disk
from servers.storage.extent_store import ExtentStore, Unsynced

SYNC_AFTER_SECONDS = 2.0
"""The age at which an extent is synced unasked; leaves 3 s for it to be done within 5."""
SYNC_COUNT = 256
"""So many are synced however young they are: far below where stores would have to sync for themselves."""
LOOK_SECONDS = 0.1
ONE_BY_ONE_MAX = 16
"""Up to here each file is synced for itself; more are synced with their whole file system, which costs one
journal commit and one flush of the disk but waits for what others wrote too."""
BARRIER_SECONDS = 30.0
LOST_SECONDS = 60.0

logger = logging.getLogger(__name__)


class SyncFailed(DcsError):
    """Extents that were taken are lost from this node; the message names them."""


class Syncer:
    def __init__(self, store: ExtentStore) -> None:
        self._store = store
        self._asked = asyncio.Event()
        self._flushing = False
        self._next_flush: asyncio.Future[None] | None = None
        self._lost: deque[tuple[float, ExtentId]] = deque(maxlen=1024)
        self._file_systems = {
            disk: os.open(disk.directory.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for disk in store.disks
        }
        self._suspects: set[Disk] = set()
        """Whose file system told of an error at its last sync: it may have been that of a file that was stored
        meanwhile, and is told once. So each file of the next batch is asked."""
        self._stopping = False
        self._begun = asyncio.Event()
        """What earlier lives of this node left is on stable storage: they may have been killed before they synced."""

    async def barrier(self) -> None:
        """All that the store took before this call is on stable storage. Raises SyncFailed, TimeoutError."""
        if not self._begun.is_set():
            async with asyncio.timeout(BARRIER_SECONDS):
                await self._begun.wait()
        if self._flushing or self._store.unsynced()[0]:
            flush = self._next_flush = self._next_flush or asyncio.get_running_loop().create_future()
            self._asked.set()
            async with asyncio.timeout(BARRIER_SECONDS):
                await asyncio.shield(flush)
        self._forget_old_losses()
        if self._lost:
            raise SyncFailed(f"could not be synced, lost here: {', '.join(extent_text(e) for _, e in self._lost)}")

    async def run(self) -> None:
        """Flushes until `stop`, and once more then."""
        try:
            await asyncio.to_thread(self._sync_what_was)
            self._begun.set()
            while not self._stopping:
                await self._wait_for_work()
                await self._flush()
        finally:
            for descriptor in self._file_systems.values():
                os.close(descriptor)

    def _sync_what_was(self) -> None:
        """Blocks."""
        for disk, file_system in self._file_systems.items():
            try:
                sync_file_system(file_system)
            except OSError as error:
                disk.health.note(error)
                logger.error("%s: syncfs: %s", disk.directory.root, error)

    def stop(self) -> None:
        """Ends `run`, once what was stored until now is on stable storage."""
        self._stopping = True
        self._asked.set()

    async def _wait_for_work(self) -> None:
        while not self._asked.is_set():
            count, oldest = self._store.unsynced()
            if count >= SYNC_COUNT or (count and time.monotonic() - oldest >= SYNC_AFTER_SECONDS):
                return
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def _flush(self) -> None:
        self._asked.clear()
        flush, self._next_flush = self._next_flush, None
        self._flushing = True
        try:
            lost = await asyncio.to_thread(self._sync, self._store.take_unsynced())
        except BaseException:
            if flush is not None:
                flush.cancel()  # Whoever waits must not take this for success.
            raise
        finally:
            self._flushing = False
        self._lost.extend((time.monotonic(), extent) for extent in lost)
        if flush is not None:
            flush.set_result(None)

    def _forget_old_losses(self) -> None:
        while self._lost and time.monotonic() - self._lost[0][0] > LOST_SECONDS:
            self._lost.popleft()

    def _sync(self, batch: Sequence[Unsynced]) -> list[ExtentId]:
        """Those of the batch that could not be synced; they are dropped. Blocks."""
        failed: set[ExtentId] = set()
        for disk, file_system in self._file_systems.items():
            failed |= self._sync_disk(disk, file_system, [one for one in batch if one.disk is disk])
        for extent in failed:
            self._store.drop_unsyncable(extent)
        self._store.count(unsyncable=len(failed))
        return sorted(failed)

    def _sync_disk(self, disk: Disk, file_system: int, batch: Sequence[Unsynced]) -> set[ExtentId]:
        """Those of one disk that could not be synced."""
        is_suspect = disk in self._suspects
        self._suspects.discard(disk)
        if len(batch) > ONE_BY_ONE_MAX and not is_suspect:
            try:
                sync_file_system(file_system)
            except OSError as error:
                logger.warning("syncfs: %s; each file is asked now", error)
                self._suspects.add(disk)
            else:
                return set()
        return _failed_files(disk, batch) | _failed_names(disk, batch)


def _failed_files(disk: Disk, batch: Sequence[Unsynced]) -> set[ExtentId]:
    failed = set()
    for one in batch:
        start_writeback(one.file.fd)
    for one in batch:
        try:
            os.fdatasync(one.file.fd)
        except OSError as error:
            disk.health.note(error)
            if os.fstat(one.file.fd).st_nlink > 0:  # Deleted meanwhile is not lost.
                logger.error("%s: fdatasync: %s", extent_text(one.extent), error)
                failed.add(one.extent)
    return failed


def _failed_names(disk: Disk, batch: Sequence[Unsynced]) -> set[ExtentId]:
    failed: set[ExtentId] = set()
    for bucket in {disk.directory.bucket(one.extent) for one in batch}:
        try:
            sync_directory(bucket)
        except OSError as error:
            disk.health.note(error)
            logger.error("%s: fsync: %s", bucket, error)
            failed.update(one.extent for one in batch if disk.directory.bucket(one.extent) == bucket)
    return failed
