"""The disks of a node: which one has a replica, which one takes the next.

Each is a directory with its lock, its own name, its holdings and its health. A replica lies on
one of them; which one is found by looking, because a look costs microseconds and a table of
millions would have to be kept right. Any thread.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from servers.protocol.errors import NodeFull
from servers.protocol.ids import ExtentId
from servers.protocol.limits import MIB
from servers.storage.condemned import Condemned
from servers.storage.data_directory import CannotStart, DataDirectory, DiskSpace
from servers.storage.disk_health import DiskHealth, DiskState
from servers.storage.holdings import Held, Holdings, total
from servers.storage.set_aside import Damaged

PURGED_AT_ONCE_BYTES = 64 * MIB
"""A store that finds no room has so much of what is condemned deleted, so that the next ones find some."""

logger = logging.getLogger(__name__)


class Disk:
    def __init__(self, directory: DataDirectory, condemned_keep_seconds: float) -> None:
        """Looks at every file. Raises OSError."""
        self.directory = directory
        self.holdings = Holdings(directory)
        self.health = DiskHealth(str(directory.root))
        self.damaged = Damaged(directory.damaged)
        self.condemned = Condemned(directory.root, condemned_keep_seconds)

    def free_bytes(self) -> int:
        """For extents, with what the condemned ones occupy: nothing unless it is good. Raises nothing."""
        if self.health.state is not DiskState.GOOD:
            return 0
        try:
            return self.directory.space(self.condemned.file_bytes).free_bytes
        except OSError as error:
            self.health.note(error)
            return 0

    def is_tight(self, size: int) -> bool:
        """Whether there is no room for so many bytes but what the condemned extents occupy."""
        try:
            return self.directory.space().free_bytes < size
        except OSError:
            return True

    def make_room(self, size: int) -> None:
        """There is room for so many bytes, as `free_bytes` promised, if need be because condemned extents went.

        Raises NodeFull, OSError.
        """
        if not self.condemned.count or not self.is_tight(size):
            return
        if self.purge(max(size, PURGED_AT_ONCE_BYTES)):
            logger.info("what is condemned makes room for a store")
            if not self.is_tight(size):
                return
        raise NodeFull("no room on the disk")

    def purge(self, bytes_wanted: int) -> int:
        """As `Condemned.purge`, now. Raises OSError, which counts."""
        try:
            return self.condemned.purge(time.time(), bytes_wanted)
        except OSError as error:
            self.health.note(error)
            raise

    def total_bytes(self) -> int:
        """0 when the disk does not say."""
        try:
            return self.directory.space().total_bytes
        except OSError:
            return 0

    def look(self) -> None:
        """Notices a disk that is another one now or is not there, and one that can be written again."""
        if self.health.state is DiskState.FAILED:
            return
        try:
            if not self.directory.is_there():
                self.health.is_another()
        except OSError as error:
            self.health.note(error)
        if self.health.state is DiskState.READ_ONLY and self.directory.is_writable():
            self.health.is_writable_again()


class Disks:
    def __init__(self, directories: Sequence[DataDirectory], condemned_keep_seconds: float) -> None:
        """One node's, which becomes theirs where they are new. Raises CannotStart."""
        self.node_uuid = _one_node(directories)
        try:
            for directory in directories:
                if directory.node_uuid is None:
                    directory.belong_to(self.node_uuid)
            self._disks = [Disk(directory, condemned_keep_seconds) for directory in directories]
        except OSError as error:
            raise CannotStart(f"cannot use the data directories: {error}") from error

    def __iter__(self) -> Iterator[Disk]:
        return iter(self._disks)

    @property
    def roots(self) -> list[Path]:
        return [disk.directory.root for disk in self._disks]

    def for_new(self, extent: ExtentId, size: int) -> Disk:
        """A disk with room, in proportion to their free space, and the same one as long as that does not change
        much: two stores of one extent at once should meet. Raises NodeFull, and OSError when no disk is good."""
        free = {disk: disk.free_bytes() for disk in self._disks}
        rooms = {disk: room for disk, room in free.items() if room > size}
        if rooms:
            return max(rooms, key=lambda disk: _weight(extent, disk, rooms[disk]))
        if any(disk.health.state is DiskState.GOOD for disk in self._disks):
            raise NodeFull("no room on the disk" if len(self._disks) == 1 else "no room on any disk")
        raise OSError(errno.EROFS, "no disk of this node can be written to")

    def space(self) -> DiskSpace:
        """Of all disks together; file systems that two of them share count once. Raises nothing."""
        spaces: dict[str, DiskSpace] = {}
        for disk in self._disks:
            try:
                space = disk.directory.space(disk.condemned.file_bytes)
            except OSError as error:
                disk.health.note(error)
                continue
            if disk.health.state is not DiskState.GOOD:
                space = DiskSpace(0, space.total_bytes, space.space)
            if space.space not in spaces or spaces[space.space].free_bytes < space.free_bytes:
                spaces[space.space] = space
        return DiskSpace(
            sum(space.free_bytes for space in spaces.values()),
            sum(space.total_bytes for space in spaces.values()),
            "+".join(sorted(spaces)),
        )

    def held(self) -> Held:
        """What counts: nothing of failed disks."""
        return total(disk.holdings.total for disk in self._disks if disk.health.state is not DiskState.FAILED)

    def lost(self) -> int:
        """Grows whenever replicas that were here do not count any more and nobody was told which."""
        return sum(
            disk.holdings.lost + (disk.holdings.total.count if disk.health.state is DiskState.FAILED else 0)
            for disk in self._disks
        )

    def condemned_count(self) -> int:
        return sum(disk.condemned.count for disk in self._disks)

    def condemned_bytes(self) -> int:
        return sum(disk.condemned.file_bytes for disk in self._disks)

    def close(self) -> None:
        for disk in self._disks:
            disk.directory.close()


def open_disks(roots: Sequence[Path], reserve_bytes: int | None = None, condemned_keep_seconds: float = 0) -> Disks:
    """Raises CannotStart."""
    if len({os.path.realpath(root) for root in roots}) < len(roots):
        raise CannotStart("DATA_DIR names one directory twice")
    directories: list[DataDirectory] = []
    try:
        for root in roots:
            directories.append(DataDirectory(root, reserve_bytes))  # noqa: PERF401  # Those opened are to be closed.
        return Disks(directories, condemned_keep_seconds)
    except CannotStart:
        for directory in directories:
            directory.close()
        raise


def _one_node(directories: Sequence[DataDirectory]) -> str:
    names = {directory.node_uuid: directory.root for directory in directories if directory.node_uuid is not None}
    if len(names) > 1:
        (one, here), (other, there), *_ = names.items()
        raise CannotStart(f"{here} belongs to node {one}, {there} to node {other}: DATA_DIR mixes disks of two nodes")
    for directory in directories:
        if names and directory.node_uuid is None:
            logger.warning("%s is new to node %s: whatever it held there before is healed", directory.root, *names)
    return next(iter(names), None) or uuid.uuid4().hex


def _weight(extent: ExtentId, disk: Disk, free_bytes: int) -> float:
    """Rendezvous hashing: the largest wins, each disk with a chance in proportion to its free bytes."""
    mixed = blake2b(extent, key=disk.directory.disk_uuid.encode(), digest_size=8).digest()
    even = (int.from_bytes(mixed, "big") + 1) / (2**64 + 1)
    return -free_bytes / math.log(even)
