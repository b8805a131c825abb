"""What Redis changed after a snapshot of the metadata was taken, part by part.

Called by the snapshots' jobs, one at a time. A mark that nobody could guess, written to Redis, comes back in
its stream behind all that was changed before: so nothing of the stream need be understood here. A part stays the
same until it is stored, because its id can have one content only. Knows the feed from Redis, not the nodes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from servers.naming.redis_feed import Feed, FeedBroken
from servers.protocol.limits import CHUNK_BYTES_DEFAULT, MIB
from servers.protocol.snapshots import TAIL_PARTS_MAX

PART_BYTES_MAX = CHUNK_BYTES_DEFAULT
UNLOGGED_SECONDS = 60.0
"""What is no change that mounts know of, as the copies that repair has made, is stored after so long."""
STALL_SECONDS = 10.0
"""A change that Redis has made comes to its replicas within this."""
HELD_BYTES_MAX = 64 * MIB
"""Of what is not stored yet: a few seconds of more changes than Redis makes."""
BYTES_MAX = 256 * MIB
SNAPSHOTS_MAX = 4


class Tail:
    def __init__(self, snapshot: int, size: int, feed: Feed) -> None:
        """`snapshot`: its number; of `size` bytes."""
        self.snapshot = snapshot
        self.waiting: deque[bytes] = deque()
        """Parts that are to be stored, the next one first."""
        self.parts = 0
        """How many were stored: the number of the next."""
        self.stored = feed.seq
        """The latest change that the snapshot and the stored parts have."""
        self._size = size
        self._feed = feed
        self._held = bytearray()
        self._reached = feed.seq
        self._bytes = 0
        self._stored_at = time.monotonic()

    @property
    def is_long(self) -> bool:
        """It takes more room, and time to recover, than another snapshot would."""
        return self.parts >= TAIL_PARTS_MAX or self._bytes > max(BYTES_MAX, SNAPSHOTS_MAX * self._size)

    def is_due(self, seq: int) -> bool:
        """Redis has made change `seq`."""
        return bool(self.waiting) or seq != self.stored or time.monotonic() - self._stored_at > UNLOGGED_SECONDS

    async def fill(self, mark: bytes, seq: int) -> None:
        """What comes up to the mark, and with it change `seq`, is `waiting`. Raises FeedBroken."""
        looked_at = 0
        while (at := self._held.find(mark, looked_at)) < 0:
            looked_at = max(0, len(self._held) - len(mark))
            await self._hold(STALL_SECONDS)
        end = at + len(mark) + len(b"\r\n")
        while len(self._held) < end:
            await self._hold(STALL_SECONDS)
        for start in range(0, end, PART_BYTES_MAX):
            self.waiting.append(bytes(self._held[start : min(end, start + PART_BYTES_MAX)]))
        del self._held[:end]
        self._reached = seq

    async def keep_up(self) -> None:
        """Takes from Redis what it holds for us. Raises FeedBroken."""
        while await self._hold(0):
            pass

    async def _hold(self, seconds: float) -> int:
        data = await self._feed.read(seconds)
        self._held += data
        if len(self._held) > HELD_BYTES_MAX:
            raise FeedBroken(f"more than {HELD_BYTES_MAX} bytes of changes at once")
        await asyncio.sleep(0)
        return len(data)

    def is_stored(self) -> None:
        """The first of those that were waiting."""
        self._bytes += len(self.waiting.popleft())
        self.parts += 1
        if not self.waiting:
            self.stored = self._reached
            self._stored_at = time.monotonic()

    def close(self) -> None:
        self._feed.close()
