"""A storage node: its store and what runs beside it, put together from settings."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from servers.client.asyncio_transport import AsyncioTransport
from servers.client.http import HttpxTransport
from servers.client.storage import StorageClient
from servers.serving.access import Secret
from servers.serving.memory import MemoryBudget
from servers.storage.compose import Composer
from servers.storage.condemned import PERIODS_PER_KEEP, Condemned
from servers.storage.data_directory import DataDirectory
from servers.storage.extent_store import ExtentStore
from servers.storage.heartbeat import Heartbeat, Report, naming_addresses, reachable_address
from servers.storage.known_volume import KnownVolume
from servers.storage.obedience import Obedience
from servers.storage.replicate import Pace, Replicator
from servers.storage.settings import Settings
from servers.storage.syncer import Syncer

DISK_THREADS = 8
"""Each for reads and for stores, so that a disk that is slow to write does not keep readers waiting."""
REPLIES_BYTES_MAX = 256 * 1024 * 1024
"""Of all replies being sent at once; small ones are not counted."""
PURGE_SECONDS = 60.0
FREE_SHARE_MIN = 0.05
"""Below this share of the disk, condemned extents are deleted before their time."""

logger = logging.getLogger(__name__)


class StorageNode:
    def __init__(self, settings: Settings, secret: Secret, bound: str) -> None:
        """Opens the data directory. Raises CannotStart, ValueError."""
        self._naming = naming_addresses(settings.naming_url)
        self._settings = settings
        self._bound = bound
        self.directory = DataDirectory(settings.data_dir, settings.reserve_bytes)
        self.store = ExtentStore(self.directory, settings.condemned_keep_seconds)
        self.syncer = Syncer(self.store)
        self._transport = HttpxTransport(secret.text)
        self._peers = AsyncioTransport(secret.text)
        self._volume = KnownVolume(settings.data_dir)
        self.obedience = Obedience(settings.data_dir, self.directory.uuid, self._volume, secret.text)
        self.heartbeat = Heartbeat(self._transport, self._naming, self.report, self._volume.learn)
        self.failed = False
        self.replies = MemoryBudget(REPLIES_BYTES_MAX)
        self.readers = ThreadPoolExecutor(DISK_THREADS, "read")
        self.writers = ThreadPoolExecutor(DISK_THREADS, "store")
        peers, pace = StorageClient(self._peers), Pace(settings.repair_bytes_per_second)
        self.replicator = Replicator(self.store, self.syncer, peers, self.writers, pace)
        self.composer = Composer(self.store, peers, self.writers, pace)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Heartbeats and background syncs; at the end all is on stable storage and the directory is free."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._or_stop(self.syncer.run()))
                purge = tasks.create_task(self._or_stop(self._purge_condemned()))
                heart = tasks.create_task(self._or_stop(self.heartbeat.run()))
                try:
                    yield
                finally:
                    heart.cancel()
                    purge.cancel()
                    self.syncer.stop()
        finally:
            await self._transport.close()
            await self._peers.close()
            self.readers.shutdown()
            self.writers.shutdown()
            self.directory.close()

    async def _or_stop(self, work: Coroutine[None, None, None]) -> None:
        """Stops the whole process when `work` fails: a node that does not sync must not go on taking extents."""
        try:
            await work
        except Exception:
            logger.exception("what a storage node cannot do without has failed; it stops")
            self.failed = True
            signal.raise_signal(signal.SIGTERM)

    async def _purge_condemned(self) -> None:
        """Deletes what was condemned and kept long enough, and older ones before the disk is full; until cancelled."""
        condemned, keep_seconds = self.store.condemned, self._settings.condemned_keep_seconds
        while keep_seconds > 0:
            await asyncio.sleep(min(PURGE_SECONDS, keep_seconds / PERIODS_PER_KEEP))
            if condemned.count:
                try:
                    await asyncio.to_thread(self._purge, condemned)
                except OSError as error:
                    logger.warning("what is condemned cannot be purged now: %s", error)

    def _purge(self, condemned: Condemned) -> None:
        space = self.directory.space()
        condemned.purge(time.time(), max(0, int(space.total_bytes * FREE_SHARE_MIN) - space.free_bytes))

    def report(self) -> Report:
        space = self.directory.space(self.store.condemned.file_bytes)
        return Report(
            uuid=self.directory.uuid,
            address=self._settings.advertise or reachable_address(self._bound, self._naming),
            used_bytes=self.store.used_bytes(),
            free_bytes=space.free_bytes,
            total_bytes=space.total_bytes,
            space=space.space,
            rack=self._settings.rack,
            volume=self._volume.uuid,
            seq=self._volume.seq,
        )
