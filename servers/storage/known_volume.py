"""Which volume's extents this node keeps, and the latest change of it that the node was told of.

Kept in the data directories, on every disk, so that metadata that was lost, or went back in
time, is noticed by those who keep the bytes: `UUID SEQ` in the file `volume`. One task at a time.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from servers.storage.data_directory import CannotStart
from servers.storage.disk import sync_directory

logger = logging.getLogger(__name__)

_TEXT = re.compile(r"([0-9a-f]{32}) ([0-9]{1,16})\n", re.ASCII)


class KnownVolume:
    def __init__(self, roots: Sequence[Path]) -> None:
        """Raises CannotStart when the disks hold extents of different volumes."""
        self._paths = [root / "volume" for root in roots]
        self.uuid = ""
        self.seq = 0
        self._ahead_ms: float | None = None
        """Redis's clock less our monotonic one."""
        for path in self._paths:
            uuid, seq = _read(path)
            if uuid and self.uuid not in ("", uuid):
                raise CannotStart(f"{path} tells of volume {uuid}, another disk of this node of {self.uuid}")
            self.uuid, self.seq = uuid or self.uuid, max(seq, self.seq)

    def now_ms(self) -> int | None:
        """The time by Redis's clock; None before anybody told it."""
        return None if self._ahead_ms is None else int(self._ahead_ms + time.monotonic() * 1000)

    def learn(self, uuid: str, seq: int, now_ms: int = 0) -> None:
        """The first volume is kept for good and on stable storage; its later changes, soon, over the one before: a loss
        of power leaves one or the other. Raises OSError when no disk takes the first.

        `now_ms` is Redis's time as it was told, 0 when it was not."""
        is_first = not self.uuid
        if now_ms and uuid == (self.uuid or uuid):
            self._ahead_ms = now_ms - time.monotonic() * 1000
        if (not is_first and uuid != self.uuid) or (seq <= self.seq and not is_first):
            return
        text = f"{uuid} {seq:016d}\n"
        if _TEXT.fullmatch(text) is None:
            raise ValueError(f"not a volume: {uuid[:40]!r} {seq}")
        failed: list[OSError] = []
        for path in self._paths:
            try:
                _write(path, text)
            except OSError as error:
                failed.append(error)
        if is_first and len(failed) == len(self._paths):
            raise failed[0]
        self.uuid, self.seq = uuid, seq


def _read(path: Path) -> tuple[str, int]:
    try:
        match = _TEXT.fullmatch(path.read_text("ascii"))
    except FileNotFoundError:
        return "", 0
    except ValueError:
        match = None
    if match is None:
        logger.warning("%s is not readable: the node learns anew which volume it belongs to", path)
        return "", 0
    return match[1], int(match[2])


def _write(path: Path, text: str) -> None:
    """In place, where it is as long already, and less than a disk writes at once: heartbeats do not wait for a sync."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        pass
    else:
        try:
            if os.fstat(fd).st_size == len(text):
                os.pwrite(fd, text.encode(), 0)
                return
        finally:
            os.close(fd)
    beside = path.with_name("volume.new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    beside.replace(path)
    sync_directory(path.parent)
