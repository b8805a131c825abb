"""When files were last read, as far as the metadata does not know it yet.

Called by the file system for each read, readlink and readdir. Follows the rule of relatime: a
time of access moves when it is not after the last change, or is a day old. What moved is shown
here at once, and told to the metadata soon after, many inodes in one operation: reading must
not cost a change each. A crash forgets the last second of it.

`_telling` lives on for a round after it was told, because attributes may be remembered that long.
Nothing but `keep_told` and `forget` awaits.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any

import trio

from servers.protocol.errors import DcsError
from servers.protocol.ids import InodeNumber
from servers.protocol.limits import NAMES_PER_CALL_MAX
from servers.protocol.naming_api import Attributes, pack_time

log = logging.getLogger(__name__)

DAY_NS = 24 * 60 * 60 * 1_000_000_000
TELL_SECONDS = 1.0
WAITING_MAX = 100_000
"""More inodes than these, read within a round, keep the times they had."""


def is_due(atime_ns: int, changed_ns: int, now_ns: int) -> bool:
    """Whether reading moves the time of access: relatime in mount(8)."""
    return atime_ns <= changed_ns or now_ns - atime_ns >= DAY_NS


class AccessTimes:
    def __init__(
        self, ask: Callable[..., Awaitable[list[Any]]], now_ns: Callable[[], int], *, seconds: float, kept: bool
    ) -> None:
        """`kept` is False where nobody wants them: noatime, or a read-only mount. `seconds`: how long attributes
        are remembered."""
        self._ask = ask
        self._now_ns = now_ns
        self._kept = kept
        self._round_seconds = max(TELL_SECONDS, seconds)
        self._waiting: dict[InodeNumber, int] = {}
        self._telling: dict[InodeNumber, int] = {}
        self._under_way = trio.Lock()

    def is_due(self, ino: InodeNumber, atime_ns: int, changed_ns: int) -> bool:
        """Whether a read would move the time of an inode that was changed last at `changed_ns`."""
        return self._kept and is_due(max(atime_ns, self._noted(ino, atime_ns)), changed_ns, self._now_ns())

    def read(self, ino: InodeNumber, atime_ns: int, changed_ns: int) -> None:
        """The inode was read just now."""
        if self.is_due(ino, atime_ns, changed_ns) and len(self._waiting) < WAITING_MAX:
            self._waiting[ino] = self._now_ns()

    def shown(self, known: Attributes) -> Attributes:
        """The attributes with the time of access as it is."""
        if self._waiting or self._telling:
            noted = self._noted(known.ino, known.atime_ns)
            if noted > known.atime_ns:
                return known._replace(atime_ns=noted)
        return known

    def _noted(self, ino: InodeNumber, otherwise: int) -> int:
        return self._waiting.get(ino) or self._telling.get(ino, otherwise)

    async def forget(self, ino: InodeNumber) -> None:
        """Somebody sets the inode's time: what was noted before neither shows nor comes after it."""
        self._waiting.pop(ino, None)
        if self._telling.pop(ino, None) is not None:
            async with self._under_way:
                pass

    async def keep_told(self) -> None:
        """Tells the metadata, round after round. Until cancelled."""
        while True:
            await trio.sleep(self._round_seconds)
            await self.tell()

    async def tell(self) -> None:
        """What cannot be told now is not told at all: no read is worth keeping a metadata server busy later."""
        async with self._under_way:
            self._telling, self._waiting = self._waiting, {}
            for at in range(0, len(self._telling), NAMES_PER_CALL_MAX):
                some = islice(self._telling.items(), at, at + NAMES_PER_CALL_MAX)
                rows = [value for ino, time_ns in some for value in (ino, *pack_time(time_ns))]
                try:
                    await self._ask("accessed", times=rows)
                except DcsError as error:
                    log.debug("times of access were not told: %s", error)
                    return
