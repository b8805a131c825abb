"""Extents that were ordered deleted, kept for a while: a deletion that was a mistake can be undone.

    DATA_DIR/condemned/<period>/<id>    the replica, whole; the period says when, see `_period`

Their bytes count as free: when the disk has no room for a store, the oldest of them go first.
Called by the store and by the node's own loop. Any thread; `_lock` guards the sums, and one
purge runs at a time. Blocks for the disk.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from servers.protocol.ids import ExtentId, extent_text, parse_extent_text

PERIODS_PER_KEEP = 8
"""Deleted together: an extent is kept for its time, and for at most an eighth of it longer."""
PURGED_TOGETHER = 256
BETWEEN_PARTS_SECONDS = 0.001
"""Whoever waits for the lock has it then; who takes it again at once keeps it from all others."""


@dataclass(frozen=True, slots=True)
class CondemnedExtent:
    extent: ExtentId
    path: Path
    file_bytes: int
    condemned_s: float
    """When the period began in which it was condemned, and when that ends."""
    condemned_until_s: float


class Condemned:
    def __init__(self, root: Path, keep_seconds: float) -> None:
        """Raises OSError."""
        self._root = root / "condemned"
        self._root.mkdir(exist_ok=True)
        self._keep_seconds = keep_seconds
        self._period_seconds = max(1, int(keep_seconds / PERIODS_PER_KEEP))
        self._lock = threading.Lock()
        self._purging = threading.Lock()
        found = list(self.listing())
        self._count, self._bytes = len(found), sum(one.file_bytes for one in found)

    @property
    def file_bytes(self) -> int:
        """Of all of them. Does not block."""
        return self._bytes

    @property
    def count(self) -> int:
        return self._count

    def take(self, path: str, extent: ExtentId) -> int:
        """The replica is kept here and not there any more; returns its size. Raises FileNotFoundError, OSError."""
        size = os.stat(path).st_size
        if self._keep_seconds <= 0:
            os.unlink(path)
            return size
        directory = self._root / str(self._period(time.time()))
        directory.mkdir(exist_ok=True)
        target = directory / extent_text(extent)
        with suppress(FileNotFoundError):  # Stored and condemned once more within the period.
            self._add(-1, -os.stat(target).st_size)
        os.replace(path, target)
        self._add(1, size)
        return size

    def listing(self) -> Iterator[CondemnedExtent]:
        """The oldest first."""
        for directory in sorted((d for d in self._root.iterdir() if d.name.isdecimal()), key=lambda d: int(d.name)):
            began = int(directory.name)
            with suppress(FileNotFoundError), os.scandir(directory) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError, ValueError):  # Purged meanwhile, or not ours.
                        size = entry.stat(follow_symlinks=False).st_size
                        yield CondemnedExtent(
                            parse_extent_text(entry.name), Path(entry.path), size, began, began + self._period_seconds
                        )

    def forget(self, one: CondemnedExtent) -> None:
        """It was moved away from here."""
        self._add(-1, -one.file_bytes)

    def purge(self, now_s: float, bytes_wanted: int = 0) -> int:
        """Deletes what was kept long enough, and older ones first until so many bytes are free; how many were freed.

        A few at a time: a store that needs room waits for those only."""
        freed, is_done = 0, False
        while not is_done:
            with self._purging:
                part, is_done = self._purge_some(now_s, bytes_wanted - freed)
            freed += part
            time.sleep(0 if is_done else BETWEEN_PARTS_SECONDS)
        return freed

    def _purge_some(self, now_s: float, bytes_wanted: int) -> tuple[int, bool]:
        """How many bytes were freed, and whether all was done."""
        freed = 0
        for count, one in enumerate(self.listing()):
            if freed >= bytes_wanted and one.condemned_until_s + self._keep_seconds > now_s:
                break
            if count == PURGED_TOGETHER:
                return freed, False
            with suppress(FileNotFoundError):
                one.path.unlink()
                self.forget(one)
                freed += one.file_bytes
        for directory in self._root.iterdir():
            # Into the present one, and the next, something may just be put.
            if directory.name.isdecimal() and int(directory.name) < self._period(now_s):
                with suppress(OSError):  # Not empty.
                    directory.rmdir()
        return freed, True

    def _period(self, now_s: float) -> int:
        """When the period of this moment began, in seconds since 1970."""
        return int(now_s) // self._period_seconds * self._period_seconds

    def _add(self, count: int, size: int) -> None:
        with self._lock:
            self._count += count
            self._bytes += size
