"""Replicas that were found damaged: moved out of the way, kept until nobody can need them.

    damaged/<id>.<n>.new      not yet reported to a naming server
    damaged/<id>.<n>          reported

A replica set aside is in no listing and is no good copy. It stays on the disk, because part of
it may be the last there is of a file: what is left of it is served, each block compared with
its sum first, while there is no good one here. It goes when a naming server says that the
extent is healed or not needed, and its grace is over. On a disk that cannot be written it
stays among the others, and is reported all the same.

Any thread; `_lock` is held for the names only.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from servers.protocol.ids import ExtentId, extent_text, parse_extent_text
from servers.storage.disk import rename_if_absent, sync_directory

_NEW = ".new"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SetAside:
    extent: ExtentId
    path: Path
    is_reported: bool


class Damaged:
    """Those of one disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._all: dict[str, SetAside] = {}
        self._unmoved: dict[ExtentId, bool] = {}
        """Damaged replicas that the disk does not let go of, because it cannot be written: whether that was reported.
        Forgotten when the node ends; the next scrub finds them again."""
        for path in directory.iterdir():
            self._add(path)

    def __len__(self) -> int:
        return len(self._all)

    def take(self, path: str, extent: ExtentId, why: str) -> bool:
        """The replica is here from now on; False when it was not there any more. Raises OSError."""
        with self._lock:
            for number in range(len(self._all) + 1):
                target = self._directory / f"{extent_text(extent)}.{number}{_NEW}"
                if target.with_suffix("").name in self._all:
                    continue
                try:
                    rename_if_absent(path, target)
                except FileNotFoundError:
                    return False
                self._add(target)
                break
        with suppress(OSError):  # After a power failure it would be found damaged again.
            sync_directory(self._directory)
        logger.warning("%s is damaged and was set aside: %s", extent_text(extent), why)
        return True

    def cannot_take(self, extent: ExtentId) -> None:
        """The replica is damaged, and stays where it is."""
        with self._lock:
            self._unmoved.setdefault(extent, False)

    def is_unmoved(self, extent: ExtentId) -> bool:
        return extent in self._unmoved

    def unmoved_unreported(self) -> list[ExtentId]:
        with self._lock:
            return [extent for extent, is_reported in self._unmoved.items() if not is_reported]

    def unmoved_reported(self, extent: ExtentId) -> None:
        with self._lock:
            self._unmoved[extent] = True

    def of(self, extent: ExtentId) -> list[SetAside]:
        with self._lock:
            return [one for one in self._all.values() if one.extent == extent]

    def unreported(self) -> list[SetAside]:
        with self._lock:
            return [one for one in self._all.values() if not one.is_reported]

    def reported(self, one: SetAside) -> None:
        """Raises OSError: then it counts as reported until the node ends."""
        with self._lock:
            self._all[_key(one.path)] = replace(one, is_reported=True)
        path = one.path.with_suffix("")
        one.path.rename(path)
        with self._lock:
            self._add(path)

    def older_than(self, seconds: float) -> list[SetAside]:
        """Those that were reported so long ago. Blocks."""
        old = []
        for one in list(self._all.values()):
            with suppress(FileNotFoundError):
                # ctime: the last rename, whatever the times of the data.
                if one.is_reported and time.time() - one.path.stat().st_ctime >= seconds:
                    old.append(one)
        return old

    def remove(self, one: SetAside) -> None:
        """Raises OSError."""
        one.path.unlink(missing_ok=True)
        with self._lock:
            self._all.pop(_key(one.path), None)
        logger.info("%s, set aside as damaged, was removed: it is not needed any more", extent_text(one.extent))

    def bytes(self) -> int:
        """Blocks."""
        size = 0
        for one in list(self._all.values()):
            with suppress(OSError):
                size += os.stat(one.path).st_size
        return size

    def _add(self, path: Path) -> None:
        try:
            extent = parse_extent_text(path.name.partition(".")[0])
        except ValueError:
            logger.warning("a file that is no replica lies among the damaged: %r", path.name)
            return
        self._all[_key(path)] = SetAside(extent, path, path.suffix != _NEW)


def _key(path: Path) -> str:
    return path.name.removesuffix(_NEW)
