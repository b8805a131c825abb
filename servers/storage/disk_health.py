"""Whether a disk may be written to and believed: a function of the errors it gave, and when.

              EROFS                    writable again
    GOOD ─────────────▶ READ_ONLY ─────────────▶ GOOD
      │                     │
      └──────────┬──────────┘
    two errors in 10 minutes, or it is another disk
                 ▼
               FAILED       until the node starts again

A read-only disk serves what it has. What a failed disk has is served as long as it can be read
and matches its sums, but counts as lost, so that it is copied elsewhere. Neither takes anything.
Any thread.
"""

from __future__ import annotations

import enum
import errno
import logging
import threading
import time
from collections import deque

ERRORS_MAX = 2
WINDOW_SECONDS = 600.0
OF_THE_DISK = frozenset(
    {errno.EIO, errno.ENXIO, errno.ENODEV, errno.EUCLEAN, errno.EREMOTEIO, errno.EILSEQ, errno.ETIMEDOUT}
)
"""What a disk or its file system answers when it is broken; all else may be ours, or a lack of something."""

logger = logging.getLogger(__name__)


class DiskState(enum.StrEnum):
    GOOD = "good"
    READ_ONLY = "read-only"
    FAILED = "failed"


class DiskHealth:
    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._errors: deque[float] = deque(maxlen=ERRORS_MAX)
        self.state = DiskState.GOOD
        self.errors = 0
        """Since the start."""
        self.is_gone = False
        """Another disk, or none, lies in its place."""

    def note(self, error: OSError) -> None:
        """The disk answered with this error."""
        if error.errno == errno.EROFS and self.state is DiskState.GOOD:
            self._become(DiskState.READ_ONLY, str(error))
        if error.errno not in OF_THE_DISK:
            return
        now = time.monotonic()
        with self._lock:
            self.errors += 1
            self._errors.append(now)
            is_too_many = len(self._errors) == ERRORS_MAX and now - self._errors[0] <= WINDOW_SECONDS
        if is_too_many:
            self.fail(f"{ERRORS_MAX} errors within {WINDOW_SECONDS:.0f} s, the last: {error}")
        else:
            logger.error("disk %s: %s", self._name, error)

    def fail(self, why: str) -> None:
        self._become(DiskState.FAILED, why)

    def is_another(self) -> None:
        self.is_gone = True
        self.fail("its disk.uuid is not there: another disk, or none, lies in its place now")

    def is_writable_again(self) -> None:
        if self.state is DiskState.READ_ONLY:
            self._become(DiskState.GOOD, "it can be written again")

    def _become(self, state: DiskState, why: str) -> None:
        if self.state not in (state, DiskState.FAILED):
            self.state = state
            level = logging.WARNING if state is DiskState.GOOD else logging.ERROR
            logger.log(level, "disk %s is %s: %s", self._name, state, why)
