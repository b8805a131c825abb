"""The directory that a storage node keeps everything in, and the lock that makes it one node's own.

    DATA_DIR/
      lock                          held by the one process that may use the directory
      node.uuid                     who this node is, made at first start
      volume                        whose extents these are, see known_volume.py
      orders                        the last delete order that was obeyed, see obedience.py
      tmp/<2 hex>/                  stores under way; emptied at start
      extents/<2 hex>/<id>          a replica, see extent_file.py; the 2 hex are the id's last byte
      condemned/<period>/<id>       a replica that was ordered deleted, kept for a while, see condemned.py

Knows where things lie, not what is in them. Any thread; nothing here changes after the start.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from servers.protocol.ids import ExtentId, extent_text, parse_extent_text
from servers.protocol.limits import MIB
from servers.storage.disk import OpenFile, rename_if_absent, spread_subdirectories, sync_directory, write_all

BUCKETS = 256
TMP_DIRECTORIES = 64
"""ext4 makes an inode near its directory, and there it looks past every inode deleted in the last five minutes: after
a large deletion a store would take 20 times as long. Directories far from each other share that out."""
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
        self._tmp = root / "tmp"
        self._extents = f"{root}/extents"
        self._tmp_number = itertools.count()
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(root)
            self._make_directories()
            self.uuid = self._load_or_make_uuid()
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
            for extent in sorted(_extent_ids(os.listdir(f"{self._extents}/{bucket:02x}"))):
                if after is None or bucket > first or extent > after:
                    yield extent

    def used_bytes(self) -> int:
        """Of all replicas, footers too; looks at every file."""
        used = 0
        for bucket in range(BUCKETS):
            with os.scandir(f"{self._extents}/{bucket:02x}") as entries:
                used += sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
        return used

    def space(self, reclaimable_bytes: int = 0) -> DiskSpace:
        """`reclaimable_bytes` on the disk count as free."""
        state = os.statvfs(self.root)
        free = max(0, state.f_bavail * state.f_frsize + reclaimable_bytes - self._reserve_bytes)
        return DiskSpace(free, state.f_blocks * state.f_frsize, self._space)

    def close(self) -> None:
        """Lets another process use the directory."""
        os.close(self._lock)

    def _make_directories(self) -> None:
        tmp, extents = self._tmp, self.root / "extents"
        tmp.mkdir(exist_ok=True)
        spread_subdirectories(tmp)
        extents.mkdir(exist_ok=True)
        for parent, count in ((tmp, TMP_DIRECTORIES), (extents, BUCKETS)):
            for number in range(count):
                (parent / f"{number:02x}").mkdir(exist_ok=True)
        for leftover in tmp.glob("*/*"):
            leftover.unlink()
        sync_directory(extents)
        sync_directory(self.root)

    def _load_or_make_uuid(self) -> str:
        path = self.root / "node.uuid"
        try:
            return uuid.UUID(path.read_text("ascii").strip()).hex
        except FileNotFoundError:
            made = uuid.uuid4().hex
        except ValueError as error:
            raise CannotStart(f"{path} does not hold a uuid") from error
        tmp = self._tmp / "00" / path.name
        file = OpenFile(os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        write_all(file.fd, (f"{made}\n".encode(),))
        os.fsync(file.fd)
        rename_if_absent(tmp, path)
        sync_directory(self.root)
        return made


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
