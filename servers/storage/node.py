"""A storage node: its store and what runs beside it, put together from settings."""

from __future__ import annotations

import asyncio
import logging
import signal
import uuid
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from servers.client.asyncio_transport import AsyncioTransport
from servers.client.http import HttpxTransport
from servers.client.storage import StorageClient
from servers.protocol.requests import FIGURES_TOLD, Requests, figures
from servers.serving.access import Secret
from servers.serving.memory import MemoryBudget
from servers.storage.compose import Composer
from servers.storage.condemned import PERIODS_PER_KEEP
from servers.storage.damage_reports import DamageReports
from servers.storage.data_directory import BUCKETS
from servers.storage.disk_health import DiskState
from servers.storage.disks import Disk, open_disks
from servers.storage.extent_store import ExtentStore
from servers.storage.heartbeat import DiskReport, Heartbeat, Report, naming_addresses, reachable_address
from servers.storage.known_volume import KnownVolume
from servers.storage.obedience import Obedience
from servers.storage.recent import verify_recent
from servers.storage.replicate import Pace, Replicator
from servers.storage.scrub import Scrub
from servers.storage.settings import Settings
from servers.storage.syncer import Syncer

WALKS_AT_ONCE = 2
"""Over all files of a disk: they would take the threads that heartbeats need on a node with many disks."""
DISK_THREADS = 8
"""Each for reads and for stores, so that a disk that is slow to write does not keep readers waiting."""
REPLIES_BYTES_MAX = 256 * 1024 * 1024
"""Of all replies being sent at once; small ones are not counted."""
PURGE_SECONDS = 60.0
FREE_SHARE_MIN = 0.05
"""Below this share of the disk, condemned extents are deleted before their time."""

logger = logging.getLogger(__name__)


class DisksGone(Exception):
    """There is nothing left to serve."""


class StorageNode:
    def __init__(self, settings: Settings, secret: Secret, bound: str) -> None:
        """Opens the data directories. Raises CannotStart, ValueError."""
        self._naming = naming_addresses(settings.naming_url)
        self._settings = settings
        self._bound = bound
        self.disks = open_disks(settings.data_dir, settings.reserve_bytes, settings.condemned_keep_seconds)
        self.uuid = self.disks.node_uuid
        self.store = ExtentStore(self.disks)
        self.syncer = Syncer(self.store)
        self.scrubs = {disk: self._scrub_of(disk) for disk in self.disks}
        self._start = uuid.uuid4().hex
        self._transport = HttpxTransport(secret.text)
        self._peers = AsyncioTransport(secret.text)
        self._volume = KnownVolume(self.disks.roots)
        self.obedience = Obedience(self.disks.roots, self.uuid, self._volume, secret.text)
        self.heartbeat = Heartbeat(self._transport, self._naming, self.report, self._volume.learn)
        self._damage_reports = DamageReports(
            self._transport, self._naming, lambda: self.heartbeat.node_number, self.disks,
            settings.damaged_grace_seconds,
        )  # fmt: skip
        self.requests = Requests()
        self.failed = False
        self.replies = MemoryBudget(REPLIES_BYTES_MAX)
        self.readers = ThreadPoolExecutor(DISK_THREADS, "read")
        self.writers = ThreadPoolExecutor(DISK_THREADS, "store")
        peers, pace = StorageClient(self._peers), Pace(settings.repair_bytes_per_second)
        self.replicator = Replicator(self.store, self.syncer, peers, self.writers, pace)
        self.composer = Composer(self.store, peers, self.writers, pace)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Heartbeats and background syncs; at the end all is on stable storage, the naming server knows, and the
        directory is free."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._or_stop(self.syncer.run()))
                others = [self.heartbeat.run(), self._damage_reports.run(), self._watch_disks()]
                others += [self._purge_condemned(), *(scrub.run() for scrub in self.scrubs.values())]
                rate = self._settings.scrub_bytes_per_second_max
                walks = asyncio.Semaphore(WALKS_AT_ONCE)
                others += [verify_recent(self.store, disk, rate, walks) for disk in self.disks]
                running = [tasks.create_task(self._or_stop(other)) for other in others]
                try:
                    yield
                finally:
                    for task in running:
                        task.cancel()
                    # What is being stored is stored before the last sync, also where its sender has left.
                    await asyncio.to_thread(self.writers.shutdown, cancel_futures=True)
                    self.syncer.stop()
            if not self.failed:
                await self.heartbeat.end()
        finally:
            await self._transport.close()
            await self._peers.close()
            self.readers.shutdown()
            self.writers.shutdown()
            self.disks.close()

    async def _or_stop(self, work: Coroutine[None, None, None]) -> None:
        """Stops the whole process when `work` fails: a node that does not sync must not go on taking extents."""
        try:
            await work
        except Exception:
            logger.exception("what a storage node cannot do without has failed; it stops")
            self.failed = True
            signal.raise_signal(signal.SIGTERM)

    def _scrub_of(self, disk: Disk) -> Scrub:
        return Scrub(self.store, disk, self._settings.scrub_period_seconds, self._settings.scrub_bytes_per_second_max)

    async def _watch_disks(self) -> None:
        """Looks at the disks and recounts a part of what they hold, again and again, until cancelled.

        Ends with an error when no disk is left: started again, the node is what its disks say then.
        """
        pause = self._settings.recount_period_seconds / BUCKETS
        while True:
            for bucket in range(BUCKETS):
                await asyncio.to_thread(self._look, bucket)
                if all(disk.health.is_gone for disk in self.disks):
                    raise DisksGone("all disks of this node were taken away")
                await asyncio.sleep(pause)

    def _look(self, bucket: int) -> None:
        for disk in self.disks:
            disk.look()
            if disk.health.state is DiskState.FAILED:
                continue
            try:
                lost = disk.holdings.recount(bucket)
            except OSError as error:
                disk.health.note(error)
                continue
            if lost:
                logger.error("%d replicas are not in %s any more, without an order", lost, disk.directory.root)

    async def _purge_condemned(self) -> None:
        """Deletes what was condemned and kept long enough, and older ones before the disk is full; until cancelled."""
        keep_seconds = self._settings.condemned_keep_seconds
        while keep_seconds > 0:
            await asyncio.sleep(min(PURGE_SECONDS, keep_seconds / PERIODS_PER_KEEP))
            for disk in self.disks:
                if disk.condemned.count:
                    try:
                        await asyncio.to_thread(_purge, disk)
                    except OSError as error:
                        logger.warning("what is condemned cannot be purged now: %s", error)

    def report(self) -> Report:
        space, held, counts = self.disks.space(), self.disks.held(), self.store.statistics()
        return Report(
            uuid=self.uuid,
            address=self._settings.advertise or reachable_address(self._bound, self._naming),
            used_bytes=held.bytes,
            free_bytes=space.free_bytes,
            total_bytes=space.total_bytes,
            space=space.space,
            rack=self._settings.rack,
            volume=self._volume.uuid,
            seq=self._volume.seq,
            start=self._start,
            held=str(held),
            lost=self.lost_replicas(),
            store_ms=round(self.store.store_seconds * 1000),
            disks=tuple(self._disk_report(disk) for disk in self.disks),
            stored_bytes=counts["put_bytes"],
            read_bytes=counts["get_bytes"],
            errors=self.store.errors(),
            requests=figures(self.requests)[:FIGURES_TOLD],
        )

    def lost_replicas(self) -> int:
        """Those that went away or bad without an order, since the start."""
        counters = self.store.statistics()
        return self.disks.lost() + counters["set_aside"] + counters["unsyncable"]

    def _disk_report(self, disk: Disk) -> DiskReport:
        held, scrub = disk.holdings.total, self.scrubs[disk].state()
        return DiskReport(
            path=str(disk.directory.root),
            state=disk.health.state,
            used_bytes=held.bytes,
            free_bytes=disk.free_bytes(),
            total_bytes=disk.total_bytes(),
            replicas=held.count,
            set_aside=len(disk.damaged),
            errors=disk.health.errors,
            scrubbed_s=scrub.completed_s,
            scrub_late=scrub.is_late,
        )


def _purge(disk: Disk) -> None:
    space = disk.directory.space()
    disk.purge(max(0, int(space.total_bytes * FREE_SHARE_MIN) - space.free_bytes))
