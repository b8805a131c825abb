"""A directory that a storage node keeps replicas in, one for each disk, and the lock that makes it one node's own.

    DATA_DIR/
      lock                          held by the one process that may use the directory
      node.uuid                     whose directory this is: the node's name, the same on all its disks
      disk.uuid                     this disk's own name; when it changes or goes, so did the disk
      volume                        whose extents these are, see known_volume.py
      orders                        the last delete order that was obeyed, see obedience.py
      scrub                         how far the scrub has come, see scrub_cursor.py
      tmp/<2 hex>/                  stores under way; emptied at start
      extents/<2 hex>/<id>          a replica, see extent_file.py; the 2 hex are the id's last byte
      damaged/<id>.<n>              a replica that was found damaged, see set_aside.py
      condemned/<period>/<id>       a replica that was ordered deleted, kept for a while, see condemned.py

Knows where things lie, not what is in them. Any thread; nothing here changes after the start.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from servers.protocol.ids import ExtentId, extent_text, parse_extent_text
from servers.protocol.limits import MIB
from servers.storage.disk import (
    OpenFile,
    rename_if_absent,
    spread_subdirectories,
    sync_directory,
    sync_file_system,
    write_all,
)

BUCKETS = 256
TMP_DIRECTORIES = 64
"""ext4 makes an inode near its directory, and there it looks past every inode deleted in the last five minutes: after
a large deletion a store would take 20 times as long. Directories far from each other share that out."""
ONE_BY_ONE_MAX = 16
"""So many directories are synced each for itself, without what others have written; more with the file system."""
RESERVE_BYTES_MAX = 1024 * MIB
"""Kept free unless told otherwise, or a hundredth of a smaller disk: deleting and starting need room too."""

logger = logging.getLogger(__name__)


class CannotStart(Exception):
    """The data directory cannot be used; the message is one line for the operator."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    free_bytes: int
    """For extents: without the reserve."""
    total_bytes: int
    space: str
    """Names the file system: equal for nodes that share one."""


class DataDirectory:
    def __init__(self, root: Path, reserve_bytes: int | None = None) -> None:
        """Locks the directory and makes what is missing. Raises CannotStart."""
        self.root = root
        self.damaged = root / "damaged"
        self._tmp = root / "tmp"
        self._extents = f"{root}/extents"
        self._tmp_number = itertools.count()
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(root)
            self._make_directories()
            self.node_uuid = self._read_uuid("node.uuid")
            """None before `belong_to`."""
            disk_uuid = self._read_uuid("disk.uuid")
            if disk_uuid is None and self.node_uuid is not None and next(self.names(None), None) is None:
                self._disown()
            self.disk_uuid = disk_uuid or self._write_uuid("disk.uuid", uuid.uuid4().hex)
            state = os.statvfs(root)
        except OSError as error:
            raise CannotStart(f"cannot use {root} as data directory: {error}") from error
        total = state.f_blocks * state.f_frsize
        self._reserve_bytes = min(RESERVE_BYTES_MAX, total // 100) if reserve_bytes is None else reserve_bytes
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        self._space = f"{boot}-{state.f_fsid & 0xFFFFFFFFFFFFFFFF:x}"

    def bucket(self, extent: ExtentId) -> str:
        """The directory that the extent's replica is in."""
        return f"{self._extents}/{extent[-1]:02x}"

    def path(self, extent: ExtentId) -> str:
        return f"{self._extents}/{extent[-1]:02x}/{extent_text(extent)}"

    def new_tmp_path(self, extent: ExtentId) -> str:
        number = next(self._tmp_number)
        return f"{self._tmp}/{number % TMP_DIRECTORIES:02x}/{extent_text(extent)}.{number}"

    def names(self, after: ExtentId | None) -> Iterator[ExtentId]:
        """All extents in the order of (last byte of the id, id), from the one behind `after` on."""
        first = after[-1] if after is not None else 0
        for bucket in range(first, BUCKETS):
            for extent in sorted(self.bucket_names(bucket)):
                if after is None or bucket > first or extent > after:
                    yield extent

    def bucket_names(self, bucket: int) -> Iterator[ExtentId]:
        """The extents of one bucket, in no order."""
        return _extent_ids(os.listdir(f"{self._extents}/{bucket:02x}"))

    def bucket_sizes(self, bucket: int) -> Iterator[tuple[ExtentId, int]]:
        """With the size of each file, footer too."""
        for extent in self.bucket_names(bucket):
            with suppress(FileNotFoundError):
                yield extent, os.stat(self.path(extent)).st_size

    def is_there(self) -> bool:
        """Whether this is still the disk that it was at the start. Raises OSError when that cannot be told."""
        try:
            return self._read_uuid("disk.uuid") == self.disk_uuid
        except CannotStart:
            return False

    def is_writable(self) -> bool:
        path = self._tmp / "probe"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            path.unlink()
        except OSError:
            return False
        return True

    def _disown(self) -> None:
        """What was emptied but for its node's name is a new disk: it has nothing of what that node should have."""
        (self.root / "node.uuid").unlink()
        sync_directory(self.root)
        self.node_uuid = None

    def belong_to(self, node: str) -> None:
        """The directory is this node's from now on."""
        self.node_uuid = self._write_uuid("node.uuid", node)

    def space(self, reclaimable_bytes: int = 0) -> DiskSpace:
        """`reclaimable_bytes` on the disk count as free."""
        state = os.statvfs(self.root)
        free = max(0, state.f_bavail * state.f_frsize + reclaimable_bytes - self._reserve_bytes)
        return DiskSpace(free, state.f_blocks * state.f_frsize, self._space)

    def sync_names(self, extents: Collection[ExtentId]) -> None:
        """Which of the extents have a replica here is so on stable storage, too. Raises OSError."""
        buckets = {self.bucket(extent) for extent in extents}
        if len(buckets) <= ONE_BY_ONE_MAX:
            for bucket in buckets:
                sync_directory(bucket)
            return
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_file_system(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Lets another process use the directory."""
        os.close(self._lock)

    def _make_directories(self) -> None:
        tmp, extents = self._tmp, self.root / "extents"
        self.damaged.mkdir(exist_ok=True)
        tmp.mkdir(exist_ok=True)
        spread_subdirectories(tmp)
        extents.mkdir(exist_ok=True)
        for parent, count in ((tmp, TMP_DIRECTORIES), (extents, BUCKETS)):
            for number in range(count):
                (parent / f"{number:02x}").mkdir(exist_ok=True)
        for leftover in tmp.glob("**/*"):
            if not leftover.is_dir():
                leftover.unlink()
        sync_directory(extents)
        sync_directory(self.root)

    def _read_uuid(self, name: str) -> str | None:
        path = self.root / name
        try:
            return uuid.UUID(path.read_text("ascii").strip()).hex
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CannotStart(f"{path} does not hold a uuid") from error

    def _write_uuid(self, name: str, text: str) -> str:
        tmp = self._tmp / "00" / name
        file = OpenFile(os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        write_all(file.fd, (f"{text}\n".encode(),))
        os.fsync(file.fd)
        rename_if_absent(tmp, self.root / name)
        sync_directory(self.root)
        return text


def _lock(root: Path) -> int:
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise CannotStart(f"another storage node uses {root} already") from None
    return fd


def _extent_ids(names: Iterable[str]) -> Iterator[ExtentId]:
    for name in names:
        try:
            yield parse_extent_text(name)
        except ValueError:
            logger.warning("a file that is not an extent lies among them: %r", name)
