"""The replicas on this node's disks: stored, read, deleted, listed.

A store writes a temporary file, renames it without replacing and, if asked, syncs the file, then
the directory. So a name below `extents/` is always a whole file as far as the disk kept what it was
given, and after a power failure the footer tells whether it did. The file is synced under its new
name because ext4 and xfs then bring file and name to the disk in one journal commit, not two; the
directory's own fsync, which finds nothing left there, keeps the promise on any file system.
A replica that is found damaged is read again, and if that was no accident, set aside.

Called by the routes and the syncer; knows nothing of HTTP. Every method may be called from any
thread and blocks for the disk, but those that say otherwise. `_lock` guards what is counted and
what waits for a sync, and is never held while something may wait for the disk.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

from servers.protocol.checksum import Buffer, block_sums, first_damaged_block
from servers.protocol.errors import DcsError, ExtentDamaged, ExtentMissing, NodeFull
from servers.protocol.ids import ExtentId, extent_text
from servers.protocol.limits import BLOCK_BYTES, KIB
from servers.protocol.storage_api import ExtentHeader
from servers.storage.condemned import CondemnedExtent
from servers.storage.disk import (
    OpenFile,
    raise_open_files_limit,
    rename_if_absent,
    sync_directory,
    write_all,
    write_around_cache,
)
from servers.storage.disk_health import DiskState
from servers.storage.disks import Disk, Disks
from servers.storage.extent_file import Footer, pack_footer
from servers.storage.replica import Replica, ReplicaCache, open_replica, open_set_aside
from servers.storage.verify import Verified, verify_file

OPEN_FILES_MAX = 1024
"""Of replicas kept open for readers; a quarter of the descriptors this process may have, if that is less."""
UNSYNCED_FILES_MAX = 1024
"""Of replicas not on stable storage yet, which stay open for their fsync; with more, stores sync for themselves."""
AROUND_CACHE_BYTES_MIN = 256 * KIB
"""From here on data goes straight to the disk, and a later sync finds little left."""
SMOOTHING = 0.1
"""The weight of the last store in `store_seconds`."""
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

logger = logging.getLogger(__name__)


class OtherContent(DcsError):
    """There are other bytes under this extent's id."""


class BadBody(DcsError):
    """The body is not what its header says."""


@dataclass
class Counters:
    puts: int = 0
    put_bytes: int = 0
    gets: int = 0
    get_bytes: int = 0
    deletes: int = 0
    copies: int = 0
    """Fetched from other nodes; among the puts, too."""
    copied_bytes: int = 0
    restored: int = 0
    """Condemned and brought back."""
    damaged: int = 0
    """Times that damage was met, not replicas."""
    set_aside: int = 0
    """Replicas that were moved out of the way because they are damaged."""
    read_errors: int = 0
    sync_failures: int = 0
    unsyncable: int = 0
    """Replicas that were dropped for it after they had been acknowledged."""


@dataclass(frozen=True, slots=True)
class Unsynced:
    """A replica that is not known to be on stable storage; its file stays open, so that no error is missed."""

    extent: ExtentId
    disk: Disk
    file: OpenFile
    stored_at: float
    """Of the monotonic clock."""


class ExtentStore:
    def __init__(self, disks: Disks) -> None:
        self.disks = disks
        descriptors = raise_open_files_limit()
        self._cache = ReplicaCache(min(OPEN_FILES_MAX, descriptors // 4))
        self._unsynced_files_max = min(UNSYNCED_FILES_MAX, descriptors // 4)
        self._started_ns = time.time_ns()
        self._lock = threading.Lock()
        self._unsynced: dict[ExtentId, Unsynced] = {}
        self._counters = Counters()
        self.store_seconds = 0.0
        """What a store takes, smoothed over the last ones."""

    # Storing.

    def put(self, extent: ExtentId, header: ExtentHeader | None, body: Buffer, *, sync: bool) -> bool:
        """The extent is stored, with `sync` on stable storage; False when it was there already.

        Raises BadBody, OtherContent, NodeFull and OSError; then nothing is left behind.
        """
        began = time.monotonic()
        try:
            placed, is_new = self.place(extent, header, body)
            if sync:
                self._sync_stored(placed)
            elif is_new:
                self._sync_later(placed)
            return is_new
        finally:
            self._took(began)

    def sync(self, placed: Unsynced) -> None:
        """What was placed is on stable storage. Raises NodeFull, OSError; then it is not here any more."""
        try:
            self._sync_stored(placed)
        finally:
            self._took(placed.stored_at)

    def _took(self, began: float) -> None:
        self.store_seconds += (time.monotonic() - began - self.store_seconds) * SMOOTHING

    def place(self, extent: ExtentId, header: ExtentHeader | None, body: Buffer) -> tuple[Unsynced, bool]:
        """The extent is stored, and whether it is new; the caller syncs it. Raises as `put`."""
        began = time.monotonic()
        footer = Footer(extent, len(body), _checked_header(header, body))
        packed = _packed(footer)
        found = self._had_already(footer)
        if found is not None:
            return Unsynced(extent, found.disk, found.file, began), False
        size = len(body) + len(packed)
        disk = self.disks.for_new(extent, size)
        disk.make_room(size)
        try:
            with disk.holdings.changing(extent):
                file = self._put(disk, extent, body, packed)
                disk.holdings.add(extent, size)
        except OSError as error:
            disk.health.note(error)
            if error.errno in NO_ROOM:
                raise NodeFull("no room on the disk") from error
            # Another store of the same extent may have been quicker.
            if isinstance(error, FileExistsError) and (found := self._had_already(footer)) is not None:
                return Unsynced(extent, found.disk, found.file, began), False
            raise
        self._keep(disk, footer, file, size)
        return Unsynced(extent, disk, file, began), True

    def _put(self, disk: Disk, extent: ExtentId, body: Buffer, packed: bytes) -> OpenFile:
        tmp = disk.directory.new_tmp_path(extent)
        try:
            file = self._write(tmp, body, packed)
            rename_if_absent(tmp, disk.directory.path(extent))
        except OSError:
            with suppress(OSError):
                os.unlink(tmp)
            raise
        return file

    def _write(self, tmp: str, body: Buffer, packed: bytes) -> OpenFile:
        file = OpenFile(os.open(tmp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        done = write_around_cache(file.fd, body) if len(body) >= AROUND_CACHE_BYTES_MIN else 0
        write_all(file.fd, (memoryview(body)[done:], packed))
        return file

    def _had_already(self, footer: Footer) -> Replica | None:
        """The good replica with this content that is here.

        Sets a damaged one aside, so that storing again repairs. Raises OtherContent.
        """
        try:
            replica = self.open(footer.extent)
            if replica.is_set_aside or replica.disk.health.state is DiskState.FAILED:
                return None
            if (replica.footer.length, replica.footer.sums) != (footer.length, footer.sums):
                raise OtherContent(f"{extent_text(footer.extent)} has other content here")
            self.verify(replica)
        except ExtentMissing:
            return None
        except ExtentDamaged as damage:
            logger.warning("%s; it is replaced", damage)
            return None
        return replica

    def _keep(self, disk: Disk, footer: Footer, file: OpenFile, file_bytes: int) -> None:
        self._cache.put(Replica(file, footer, file_bytes, os.fstat(file.fd).st_mtime_ns, disk))
        with self._lock:
            self._counters.puts += 1
            self._counters.put_bytes += footer.length

    def _sync_later(self, placed: Unsynced) -> None:
        with self._lock:
            crowded = self.is_crowded()
            self._unsynced[placed.extent] = placed
        if crowded:  # The syncer does not keep up: be as slow as the disk.
            self._sync_stored(placed)
            with self._lock:
                self._unsynced.pop(placed.extent, None)

    def must_make_room(self, size: int) -> bool:
        """Whether condemned extents have to go before so much can be stored. Does not block for long."""
        return any(disk.condemned.count and disk.is_tight(size) for disk in self.disks)

    def is_crowded(self) -> bool:
        """Whether so much waits for the syncer that a store has to sync for itself. Does not block."""
        return len(self._unsynced) >= self._unsynced_files_max

    def _sync_stored(self, placed: Unsynced) -> None:
        try:
            os.fsync(placed.file.fd)
            sync_directory(placed.disk.directory.bucket(placed.extent))
        except OSError as error:
            placed.disk.health.note(error)
            self.drop_unsyncable(placed.extent)
            if error.errno in NO_ROOM:
                raise NodeFull("no room on the disk") from error
            raise

    # Reading. The data is not compared with its sums: the reader does that.

    def opened(self, extent: ExtentId) -> Replica | None:
        """The replica if it is open already and unchanged. Does not block."""
        return self._cache.get(extent)

    def open(self, extent: ExtentId) -> Replica:
        """A good one, else what was set aside. Raises ExtentMissing, ExtentDamaged, OSError."""
        replica = self._cache.get(extent)
        if replica is None:
            replica = self._open(extent)
            if not replica.is_set_aside:
                self._cache.put(replica)
        return replica

    def _open(self, extent: ExtentId) -> Replica:
        trouble: DcsError | OSError = ExtentMissing(f"{extent_text(extent)} is not here")

        def is_last_choice(disk: Disk) -> bool:
            return disk.health.state is DiskState.FAILED or disk.damaged.is_unmoved(extent)

        for disk in sorted(self.disks, key=is_last_choice):
            try:
                return open_replica(disk, extent)
            except ExtentMissing:
                continue
            except OSError as error:
                disk.health.note(error)
                trouble = error
            except ExtentDamaged as damage:
                self._met(disk, extent, damage)
                trouble = damage
        for disk in self.disks:
            with suppress(ExtentMissing):
                return open_set_aside(disk, extent)
        raise trouble

    def read(self, replica: Replica, start: int, end: int) -> bytes:
        """Bytes [start, end) of the data. Raises ExtentDamaged."""
        piece = self._read_verified(replica, start, end) if replica.is_set_aside else self._read(replica, start, end)
        self.count(gets=1, get_bytes=len(piece))
        return piece

    def _read(self, replica: Replica, start: int, end: int) -> bytes:
        try:
            piece = os.pread(replica.file.fd, end - start, start)
        except OSError as error:
            raise self._damage(replica, f"{error.strerror} while reading") from error
        if len(piece) != end - start:
            raise self._damage(replica, "the file became shorter")
        return piece

    def _read_verified(self, replica: Replica, start: int, end: int) -> bytes:
        """As `_read`; the blocks that this touches match their sums."""
        first, last = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        at = first * BLOCK_BYTES
        blocks = self._read(replica, at, min(last * BLOCK_BYTES, replica.footer.length))
        bad = first_damaged_block(blocks, replica.footer.sums[4 * first : 4 * last])
        if bad is not None:
            raise self._damage(replica, f"block {first + bad} has a wrong CRC32C")
        return blocks[start - at : end - at]

    def read_cached(self, replica: Replica, start: int, end: int) -> bytearray | None:
        """As `read`, but None unless the kernel has it all in memory; nor of what was set aside. Does not block."""
        if replica.is_set_aside:
            return None
        piece = bytearray(end - start)
        try:
            count = os.preadv(replica.file.fd, [piece], start, os.RWF_NOWAIT)
        except OSError:  # EAGAIN, or trouble that `read` will meet too, and name.
            return None
        if count != end - start:
            return None
        self.count(gets=1, get_bytes=count)
        return piece

    def verify(self, replica: Replica) -> None:
        """What its disk has, whatever is in memory, is the data of its sums. Raises ExtentDamaged, ExtentMissing,
        OSError."""
        extent = replica.footer.extent
        if replica.is_set_aside:
            self._read_verified(replica, 0, replica.footer.length)
        elif self.check_replica(replica.disk, extent) is None:
            raise ExtentDamaged(f"damaged: {extent_text(extent)}: the disk does not have what was written")

    def _damage(self, replica: Replica, what: str) -> ExtentDamaged:
        extent = replica.footer.extent
        damage = ExtentDamaged(f"damaged: {extent_text(extent)}: {what}")
        if replica.is_set_aside:
            self.count(damaged=1)
        else:
            self._met(replica.disk, extent, damage)
        return damage

    # Damage.

    def check_replica(self, disk: Disk, extent: ExtentId) -> Verified | None:
        """Reads the replica from the disk and verifies it; None when it is damaged, and set aside.

        Raises ExtentMissing, OSError.
        """
        found = self._examine(disk, extent)
        if found is None:
            self.count(damaged=1)
        return found

    def _examine(self, disk: Disk, extent: ExtentId) -> Verified | None:
        """What seems damaged is read twice before that is believed."""
        path = disk.directory.path(extent)
        try:
            return verify_file(path, extent)
        except ExtentDamaged as damage:
            self._note_cause(disk, damage)
        try:
            return verify_file(path, extent)
        except ExtentDamaged as damage:
            if disk.health.state is not DiskState.FAILED:  # Nothing is moved there: all of it counts as lost.
                self._set_aside(disk, extent, damage)
            return None

    def _met(self, disk: Disk, extent: ExtentId, damage: ExtentDamaged) -> None:
        """Damage was met in passing."""
        self.count(damaged=1)
        with suppress(ExtentMissing, OSError):  # It will be met again.
            if self._examine(disk, extent) is not None:
                self._note_cause(disk, damage)

    def _note_cause(self, disk: Disk, damage: ExtentDamaged) -> None:
        if isinstance(damage.__cause__, OSError):
            self.count(read_errors=1)
            disk.health.note(damage.__cause__)

    def _set_aside(self, disk: Disk, extent: ExtentId, damage: ExtentDamaged) -> None:
        path = disk.directory.path(extent)
        try:
            with disk.holdings.changing(extent):
                size = os.stat(path).st_size
                if disk.damaged.take(path, extent, str(damage)):
                    disk.holdings.remove(extent, size)
                    self.count(set_aside=1)
        except FileNotFoundError:
            pass
        except OSError as error:
            disk.health.note(error)
            disk.damaged.cannot_take(extent)
            logger.error("%s is damaged and could not be set aside: %s", extent_text(extent), error)
        self._forget(extent)

    # Deleting.

    def delete(self, extent: ExtentId) -> None:
        """The extent is not here any more; also when it never was. What was set aside stays. Raises OSError."""
        for disk in self.disks:
            path = disk.directory.path(extent)
            with disk.holdings.changing(extent), suppress(FileNotFoundError):
                size = os.stat(path).st_size
                os.unlink(path)
                disk.holdings.remove(extent, size)
                self.count(deletes=1)
        self._forget(extent)

    def _forget(self, extent: ExtentId) -> None:
        self._cache.drop(extent)
        with self._lock:
            self._unsynced.pop(extent, None)

    def condemn(self, extent: ExtentId) -> None:
        """The extent is not here any more, or never was; for a while it can be brought back. Raises OSError."""
        for disk in self.disks:
            try:
                with disk.holdings.changing(extent), suppress(FileNotFoundError):
                    disk.holdings.remove(extent, disk.condemned.take(disk.directory.path(extent), extent))
                    self.count(deletes=1)
            except OSError as error:
                disk.health.note(error)
                raise
        self._forget(extent)

    def bring_back(self, disk: Disk, condemned: CondemnedExtent) -> bool:
        """The condemned extent is here again; False when it is already, or was purged. Raises OSError."""
        with disk.holdings.changing(condemned.extent):
            try:
                rename_if_absent(condemned.path, disk.directory.path(condemned.extent))
            except (FileExistsError, FileNotFoundError):
                return False
            disk.holdings.add(condemned.extent, condemned.file_bytes)
        disk.condemned.forget(condemned)
        self.count(restored=1)
        return True

    def drop_unsyncable(self, extent: ExtentId) -> None:
        """Removes a replica whose sync failed. It is not tried again: the kernel may have thrown the pages
        away and call the next fsync a success."""
        self.count(sync_failures=1)
        logger.error("%s could not be synced; this replica is dropped", extent_text(extent))
        with suppress(OSError):
            self.delete(extent)

    # Syncing: what was stored without it waits here for the syncer.

    def is_from_now(self, extent: ExtentId) -> bool:
        """Whether the replica is open here and was stored since the start. Does not block."""
        replica = self._cache.get(extent)
        return replica is not None and replica.changed_ns >= self._started_ns

    def is_whole(self, extent: ExtentId) -> bool:
        """Whether a good replica is here; one from before the start, which may have been a loss of power, is read."""
        try:
            replica = self.open(extent)
            if replica.is_set_aside or replica.disk.health.state is DiskState.FAILED:
                return False
            if replica.changed_ns < self._started_ns:
                self.verify(replica)
        except (ExtentMissing, ExtentDamaged):
            return False
        return True

    def take_unsynced(self) -> list[Unsynced]:
        """All that waits, from now on the caller's to sync. Does not block."""
        with self._lock:
            taken = list(self._unsynced.values())
            self._unsynced.clear()
        return taken

    def unsynced(self) -> tuple[int, float]:
        """How many wait, and since when the first of them. Does not block."""
        with self._lock:
            first = next(iter(self._unsynced.values()), None)
            return len(self._unsynced), first.stored_at if first is not None else 0.0

    # Listing.

    def length(self, extent: ExtentId) -> int | None:
        """None when it is not here, -1 when there is none that counts as good."""
        try:
            replica = self.open(extent)
        except ExtentMissing:
            return None
        except ExtentDamaged:
            return -1
        is_good = not replica.is_set_aside and replica.disk.health.state is not DiskState.FAILED
        return replica.footer.length if is_good else -1

    def page(
        self, after: ExtentId | None, limit: int, *, names_only: bool = False
    ) -> tuple[list[tuple[ExtentId, int]], ExtentId | None]:
        """Up to `limit` extents with their lengths (-1 for damaged), and the last one's id when more follow.

        With `names_only` no file is opened, and every length is 0.

        Pages follow each other in a fixed order, so all that is there during the whole listing is in
        it exactly once. What lies on a failed disk is not. Raises OSError rather than leave something out.
        """
        good = [disk for disk in self.disks if disk.health.state is not DiskState.FAILED]
        names = heapq.merge(*(disk.directory.names(after) for disk in good), key=lambda e: (e[-1], e))
        found = list(itertools.islice((extent for extent, _ in itertools.groupby(names)), limit + 1))
        page = found[:limit]
        if names_only:
            rows = [(extent, 0) for extent in page]
        else:
            rows = [(extent, length) for extent in page if (length := self.length(extent)) is not None]
        return rows, page[-1] if len(found) > limit else None

    def used_bytes(self) -> int:
        """Does not block."""
        return self.disks.held().bytes

    def count(self, **increments: int) -> None:
        """Adds to the counters of these names. Does not block."""
        with self._lock:
            for name, increment in increments.items():
                setattr(self._counters, name, getattr(self._counters, name) + increment)

    def statistics(self) -> dict[str, int]:
        """Does not block."""
        with self._lock:
            return {**asdict(self._counters), "unsynced": len(self._unsynced), "open_files": len(self._cache)}

    def errors(self) -> dict[str, int]:
        """What went wrong with the disks, by kind. Does not block."""
        with self._lock:
            counts = self._counters
            return {"damage": counts.damaged, "read": counts.read_errors, "sync": counts.sync_failures}


def _checked_header(header: ExtentHeader | None, body: Buffer) -> ExtentHeader:
    """The header with the sums of the body. Raises BadBody when the writer's sums are others."""
    if not len(body):
        raise BadBody("an extent has at least one byte")
    if header is None:
        return ExtentHeader("", 0, 0, 0, b"", block_sums([body]))
    block = first_damaged_block(body, header.sums)
    if block is not None:
        raise BadBody(f"block {block} of the body does not have the CRC32C that its header says")
    if header.places and sum(header.places[1::2]) != len(body):
        raise BadBody(f"the places in its header are not those of {len(body)} bytes")
    return header


def _packed(footer: Footer) -> bytes:
    try:
        return pack_footer(footer)
    except (ValueError, OverflowError) as error:
        raise BadBody(str(error)) from error
