"""Open replicas: what a reader needs, and a cache of those read or written last."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

from servers.protocol.errors import ExtentDamaged, ExtentMissing
from servers.protocol.ids import ExtentId, extent_text
from servers.storage.disk import OpenFile
from servers.storage.disks import Disk
from servers.storage.extent_file import FOOTER_BYTES_MAX, Footer, parse_footer


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica that is open for reading and whose footer was found whole."""

    file: OpenFile
    footer: Footer
    file_bytes: int
    changed_ns: int
    disk: Disk
    is_set_aside: bool = False
    """It was found damaged: each block is compared with its sum before it is served."""

    def is_current(self) -> bool:
        """Whether the file is still the one whose footer was read. Does not block."""
        now = os.fstat(self.file.fd)
        return (now.st_size, now.st_mtime_ns) == (self.file_bytes, self.changed_ns) and now.st_nlink > 0


def open_replica(disk: Disk, extent: ExtentId) -> Replica:
    """Raises ExtentMissing, ExtentDamaged (from the OSError where the disk refused), and OSError where the file cannot
    be opened. Blocks."""
    return _open(disk, disk.directory.path(extent), extent)


def open_set_aside(disk: Disk, extent: ExtentId) -> Replica:
    """The first of the extent's damaged replicas here whose footer can be read. Raises ExtentMissing and as above."""
    found: ExtentDamaged | ExtentMissing = ExtentMissing(f"{extent_text(extent)} is not here")
    for one in disk.damaged.of(extent):
        try:
            return replace(_open(disk, str(one.path), extent), is_set_aside=True)
        except (ExtentDamaged, ExtentMissing) as error:
            found = error
    raise found


def _open(disk: Disk, path: str, extent: ExtentId) -> Replica:
    name = extent_text(extent)
    try:
        file = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        raise ExtentMissing(f"{name} is not here") from None
    try:
        state = os.fstat(file.fd)
        tail = os.pread(file.fd, FOOTER_BYTES_MAX, max(0, state.st_size - FOOTER_BYTES_MAX))
        footer = parse_footer(tail, state.st_size)
        if footer.extent != extent:
            raise ExtentDamaged(f"the file holds {extent_text(footer.extent)}")
    except (ExtentDamaged, OSError) as error:
        raise ExtentDamaged(f"damaged: {name}: {error}") from error
    return Replica(file, footer, state.st_size, state.st_mtime_ns, disk)


class ReplicaCache:
    """The replicas used last, kept open. Any thread; never blocks."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._lock = threading.Lock()
        self._replicas: OrderedDict[ExtentId, Replica] = OrderedDict()

    def get(self, extent: ExtentId) -> Replica | None:
        """The replica if it is here and its file unchanged."""
        with self._lock:
            replica = self._replicas.get(extent)
            if replica is None:
                return None
            if not replica.is_current():
                del self._replicas[extent]
                return None
            self._replicas.move_to_end(extent)
            return replica

    def put(self, replica: Replica) -> None:
        with self._lock:
            self._replicas[replica.footer.extent] = replica
            if len(self._replicas) > self._count_max:
                self._replicas.popitem(last=False)

    def drop(self, extent: ExtentId) -> None:
        with self._lock:
            self._replicas.pop(extent, None)

    def __len__(self) -> int:
        return len(self._replicas)
