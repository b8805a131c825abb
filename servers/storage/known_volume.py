"""Which volume's extents this node keeps, and the latest change of it that the node was told of.

Kept in the data directory, so that metadata that was lost, or went back in time, is noticed by
those who keep the bytes: `UUID SEQ` in the file `volume`. One task at a time.
"""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path

logger = logging.getLogger(__name__)

_TEXT = re.compile(r"([0-9a-f]{32}) ([0-9]{1,16})\n", re.ASCII)


class KnownVolume:
    def __init__(self, root: Path) -> None:
        self._path = root / "volume"
        self.uuid = ""
        self.seq = 0
        self._ahead_ms: float | None = None
        """Redis's clock less our monotonic one."""
        try:
            match = _TEXT.fullmatch(self._path.read_text("ascii"))
        except FileNotFoundError:
            return
        except ValueError:
            match = None
        if match is None:
            logger.warning("%s is not readable: the node learns anew which volume it belongs to", self._path)
        else:
            self.uuid, self.seq = match[1], int(match[2])

    def now_ms(self) -> int | None:
        """The time by Redis's clock; None before anybody told it."""
        return None if self._ahead_ms is None else int(self._ahead_ms + time.monotonic() * 1000)

    def learn(self, uuid: str, seq: int, now_ms: int = 0) -> None:
        """The first volume is kept for good and on stable storage; its later changes, soon. Raises OSError.

        `now_ms` is Redis's time as it was told, 0 when it was not."""
        is_first = not self.uuid
        if now_ms and uuid == (self.uuid or uuid):
            self._ahead_ms = now_ms - time.monotonic() * 1000
        if (not is_first and uuid != self.uuid) or (seq <= self.seq and not is_first):
            return
        if _TEXT.fullmatch(f"{uuid} {seq}\n") is None:
            raise ValueError(f"not a volume: {uuid[:40]!r} {seq}")
        beside = self._path.with_name("volume.new")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, f"{uuid} {seq}\n".encode())
            if is_first:
                os.fsync(fd)
        finally:
            os.close(fd)
        beside.replace(self._path)
        self.uuid, self.seq = uuid, seq
