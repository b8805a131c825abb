"""The replicas on this node's disk: stored, read, deleted, listed.

A store writes a temporary file, syncs it if asked, renames it without replacing, syncs the
directory if asked. So a name below `extents/` is always a whole file as far as the disk kept
what it was given, and after a power failure the footer tells whether it did.

Called by the routes and the syncer; knows nothing of HTTP. Every method may be called from any
thread and blocks for the disk, but those that say otherwise. `_lock` guards what is counted and
what waits for a sync, and is never held while something may wait for the disk.
"""

from __future__ import annotations

import errno
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
from servers.protocol.limits import KIB, MIB
from servers.protocol.storage_api import ExtentHeader
from servers.storage.condemned import Condemned, CondemnedExtent
from servers.storage.data_directory import DataDirectory
from servers.storage.disk import (
    OpenFile,
    raise_open_files_limit,
    rename_if_absent,
    sync_directory,
    write_all,
    write_around_cache,
)
from servers.storage.extent_file import Footer, pack_footer
from servers.storage.replica import Replica, ReplicaCache, open_replica

OPEN_FILES_MAX = 1024
"""Of replicas kept open for readers; a quarter of the descriptors this process may have, if that is less."""
UNSYNCED_FILES_MAX = 1024
"""Of replicas not on stable storage yet, which stay open for their fsync; with more, stores sync for themselves."""
AROUND_CACHE_BYTES_MIN = 256 * KIB
"""From here on data goes straight to the disk, and a later sync finds little left."""
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
PURGED_AT_ONCE_BYTES = 64 * MIB
"""A store that finds no room has so much of what is condemned deleted, so that the next ones find some."""

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
    sync_failures: int = 0


@dataclass(frozen=True, slots=True)
class Unsynced:
    """A replica that is not known to be on stable storage; its file stays open, so that no error is missed."""

    extent: ExtentId
    file: OpenFile
    stored_at: float
    """Of the monotonic clock."""


class ExtentStore:
    def __init__(self, directory: DataDirectory, condemned_keep_seconds: float = 0) -> None:
        self.directory = directory
        self.condemned = Condemned(directory.root, condemned_keep_seconds)
        descriptors = raise_open_files_limit()
        self._cache = ReplicaCache(min(OPEN_FILES_MAX, descriptors // 4))
        self._unsynced_files_max = min(UNSYNCED_FILES_MAX, descriptors // 4)
        self._lock = threading.Lock()
        self._unsynced: dict[ExtentId, Unsynced] = {}
        self._used_bytes = directory.used_bytes()
        self._counters = Counters()

    # Storing.

    def put(self, extent: ExtentId, header: ExtentHeader | None, body: Buffer, *, sync: bool) -> bool:
        """The extent is stored, with `sync` on stable storage; False when it was there already.

        Raises BadBody, OtherContent, NodeFull and OSError; then nothing is left behind.
        """
        footer = Footer(extent, len(body), _checked_header(header, body))
        packed = _packed(footer)
        if self._had_already(footer, sync):
            return False
        self._check_room(len(body) + len(packed))
        tmp = self.directory.new_tmp_path(extent)
        try:
            file = self._write(tmp, body, packed, sync)
            rename_if_absent(tmp, self.directory.path(extent))
        except OSError as error:
            with suppress(OSError):
                os.unlink(tmp)
            if error.errno in NO_ROOM:
                raise NodeFull("no room on the disk") from error
            # Another store of the same extent may have been quicker.
            if isinstance(error, FileExistsError) and self._had_already(footer, sync):
                return False
            raise
        self._keep(footer, file, len(body) + len(packed))
        if sync:
            self._sync_name(extent)
        else:
            self._sync_later(extent, file)
        return True

    def _write(self, tmp: str, body: Buffer, packed: bytes, sync: bool) -> OpenFile:
        file = OpenFile(os.open(tmp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        done = write_around_cache(file.fd, body) if len(body) >= AROUND_CACHE_BYTES_MIN else 0
        write_all(file.fd, (memoryview(body)[done:], packed))
        if sync:
            try:
                os.fdatasync(file.fd)
            except OSError:
                self.count(sync_failures=1)
                raise
        return file

    def _had_already(self, footer: Footer, sync: bool) -> bool:
        """Whether a good replica with this content is here, with `sync` on stable storage.

        Removes a damaged one, so that storing again repairs. Raises OtherContent.
        """
        try:
            replica = self.open(footer.extent)
            if (replica.footer.length, replica.footer.sums) != (footer.length, footer.sums):
                raise OtherContent(f"{extent_text(footer.extent)} has other content here")
            self.verify(replica)
        except ExtentMissing:
            return False
        except ExtentDamaged as damage:
            logger.warning("%s; it is replaced", damage)
            self.delete(footer.extent)
            return False
        if sync:
            self._sync_stored(footer.extent, replica.file)
        return True

    def _keep(self, footer: Footer, file: OpenFile, file_bytes: int) -> None:
        self._cache.put(Replica(file, footer, file_bytes, os.fstat(file.fd).st_mtime_ns))
        with self._lock:
            self._used_bytes += file_bytes
            self._counters.puts += 1
            self._counters.put_bytes += footer.length

    def _sync_later(self, extent: ExtentId, file: OpenFile) -> None:
        with self._lock:
            crowded = len(self._unsynced) >= self._unsynced_files_max
            self._unsynced[extent] = Unsynced(extent, file, time.monotonic())
        if crowded:  # The syncer does not keep up: be as slow as the disk.
            self._sync_stored(extent, file)
            with self._lock:
                self._unsynced.pop(extent, None)

    def _sync_stored(self, extent: ExtentId, file: OpenFile) -> None:
        try:
            os.fdatasync(file.fd)
        except OSError:
            self.drop_unsyncable(extent)
            raise
        self._sync_name(extent)

    def _sync_name(self, extent: ExtentId) -> None:
        try:
            sync_directory(self.directory.bucket(extent))
        except OSError:
            self.drop_unsyncable(extent)
            raise

    def _check_room(self, size: int) -> None:
        if self.directory.space().free_bytes >= size:
            return
        if self.condemned.count and self.condemned.purge(time.time(), max(size, PURGED_AT_ONCE_BYTES)):
            logger.info("what is condemned makes room for a store")
            if self.directory.space().free_bytes >= size:
                return
        raise NodeFull("no room on the disk")

    # Reading. The data is not compared with its sums: the reader does that.

    def opened(self, extent: ExtentId) -> Replica | None:
        """The replica if it is open already and unchanged. Does not block."""
        return self._cache.get(extent)

    def open(self, extent: ExtentId) -> Replica:
        """Raises ExtentMissing, ExtentDamaged, OSError."""
        replica = self._cache.get(extent)
        if replica is None:
            try:
                replica = open_replica(self.directory.path(extent), extent)
            except ExtentDamaged:
                self.count(damaged=1)
                raise
            self._cache.put(replica)
        return replica

    def read(self, replica: Replica, start: int, end: int) -> bytes:
        """Bytes [start, end) of the data. Raises ExtentDamaged."""
        piece = self._read(replica, start, end)
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

    def read_cached(self, replica: Replica, start: int, end: int) -> bytearray | None:
        """As `read`, but None unless the kernel has it all in memory. Does not block."""
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
        """Reads all of the data and compares it with its sums. Raises ExtentDamaged."""
        data = self._read(replica, 0, replica.footer.length)
        block = first_damaged_block(data, replica.footer.sums)
        if block is not None:
            raise self._damage(replica, f"block {block} has a wrong CRC32C")

    def _damage(self, replica: Replica, what: str) -> ExtentDamaged:
        self.count(damaged=1)
        return ExtentDamaged(f"damaged: {extent_text(replica.footer.extent)}: {what}")

    # Deleting.

    def delete(self, extent: ExtentId) -> None:
        """The extent is not here any more; also when it never was."""
        path = self.directory.path(extent)
        with suppress(FileNotFoundError):
            size = os.stat(path).st_size
            os.unlink(path)
            with self._lock:
                self._used_bytes -= size
                self._counters.deletes += 1
        self._cache.drop(extent)
        with self._lock:
            self._unsynced.pop(extent, None)

    def condemn(self, extent: ExtentId) -> None:
        """The extent is not here any more, or never was; for a while it can be brought back."""
        with suppress(FileNotFoundError):
            size = self.condemned.take(self.directory.path(extent), extent)
            with self._lock:
                self._used_bytes -= size
                self._counters.deletes += 1
        self._cache.drop(extent)
        with self._lock:
            self._unsynced.pop(extent, None)

    def bring_back(self, condemned: CondemnedExtent) -> bool:
        """The condemned extent is here again; False when it is already, or was purged. Raises OSError."""
        try:
            rename_if_absent(condemned.path, self.directory.path(condemned.extent))
        except (FileExistsError, FileNotFoundError):
            return False
        self.condemned.forget(condemned)
        with self._lock:
            self._used_bytes += condemned.file_bytes
            self._counters.restored += 1
        return True

    def drop_unsyncable(self, extent: ExtentId) -> None:
        """Removes a replica whose sync failed. It is not tried again: the kernel may have thrown the pages
        away and call the next fsync a success."""
        self.count(sync_failures=1)
        logger.error("%s could not be synced; this replica is dropped", extent_text(extent))
        with suppress(OSError):
            self.delete(extent)

    # Syncing: what was stored without it waits here for the syncer.

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
        """None when it is not here, -1 when it is damaged."""
        try:
            return self.open(extent).footer.length
        except ExtentMissing:
            return None
        except ExtentDamaged:
            return -1

    def page(
        self, after: ExtentId | None, limit: int, *, names_only: bool = False
    ) -> tuple[list[tuple[ExtentId, int]], ExtentId | None]:
        """Up to `limit` extents with their lengths (-1 for damaged), and the last one's id when more follow.

        With `names_only` no file is opened, and every length is 0.

        Pages follow each other in a fixed order, so all that is there during the whole listing is in
        it exactly once. Raises OSError rather than leave something out.
        """
        found = list(itertools.islice(self.directory.names(after), limit + 1))
        page = found[:limit]
        if names_only:
            rows = [(extent, 0) for extent in page]
        else:
            rows = [(extent, length) for extent in page if (length := self.length(extent)) is not None]
        return rows, page[-1] if len(found) > limit else None

    def used_bytes(self) -> int:
        """Does not block."""
        return self._used_bytes

    def count(self, **increments: int) -> None:
        """Adds to the counters of these names. Does not block."""
        with self._lock:
            for name, increment in increments.items():
                setattr(self._counters, name, getattr(self._counters, name) + increment)

    def statistics(self) -> dict[str, int]:
        """Does not block."""
        with self._lock:
            return {**asdict(self._counters), "unsynced": len(self._unsynced), "open_files": len(self._cache)}


def _checked_header(header: ExtentHeader | None, body: Buffer) -> ExtentHeader:
    """The header with the sums of the body. Raises BadBody when the writer's sums are others."""
    if not len(body):
        raise BadBody("an extent has at least one byte")
    if header is None:
        return ExtentHeader("", 0, 0, 0, b"", block_sums([body]))
    block = first_damaged_block(body, header.sums)
    if block is not None:
        raise BadBody(f"block {block} of the body does not have the CRC32C that its header says")
    return header


def _packed(footer: Footer) -> bytes:
    try:
        return pack_footer(footer)
    except (ValueError, OverflowError) as error:
        raise BadBody(str(error)) from error
