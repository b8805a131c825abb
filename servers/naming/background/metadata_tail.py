"""What Redis changed after a snapshot of the metadata was taken, part by part.

Called by the snapshots' jobs, one at a time: `fill`, and where `part` then has something, store it and say
`is_stored`. A part stays the same until it is stored, because its id can have one content only. Knows the feed
from Redis, not the nodes.
"""

from __future__ import annotations

import asyncio
import time

from servers.naming.redis_feed import Feed, FeedBroken
from servers.naming.redis_stream import ChangeStream
from servers.protocol.limits import CHUNK_BYTES_DEFAULT, MIB
from servers.protocol.snapshots import TAIL_PARTS_MAX

PART_BYTES_MIN = CHUNK_BYTES_DEFAULT // 2
"""So much is a part, whatever it is. A part is less than this and one transaction of Redis more."""
UNLOGGED_SECONDS = 60.0
"""What is no change that mounts know of, as the copies that repair has made, is stored after so long."""
STALL_SECONDS = 10.0
"""A change that Redis has made comes to its replicas within this."""
STEP_BYTES = 64 * 1024
"""Read in steps: a millisecond each, in which the naming server does nothing else."""
BYTES_MAX = 256 * MIB
SNAPSHOTS_MAX = 4


class Tail:
    def __init__(self, snapshot: int, size: int, feed: Feed, key: bytes) -> None:
        """`snapshot`: its number; of `size` bytes."""
        self.snapshot = snapshot
        self.part = b""
        self.parts = 0
        """How many were stored: the number of the next."""
        self._size = size
        self._feed = feed
        self._stream = ChangeStream(key, feed.seq)
        self._bytes = 0
        self._stored_at = time.monotonic()
        self.stored = feed.seq
        """The latest change that the snapshot and the stored parts have."""

    @property
    def is_long(self) -> bool:
        """It takes more room, and time to recover, than another snapshot would."""
        return self.parts >= TAIL_PARTS_MAX or self._bytes > max(BYTES_MAX, SNAPSHOTS_MAX * self._size)

    async def fill(self, seq: int) -> None:
        """`part` is what comes next, if there is anything to be stored now: a full part, or all up to change `seq`,
        which Redis has made. Raises FeedBroken, NotAStream."""
        stream = self._stream
        while not self.part and stream.whole_bytes < PART_BYTES_MIN:
            data = await self._feed.read(STALL_SECONDS if stream.reached < seq else 0.0)
            for at in range(0, len(data), STEP_BYTES):
                stream.feed(data[at : at + STEP_BYTES])
                await asyncio.sleep(0)
            if stream.is_over:
                raise FeedBroken("the volume was deleted from Redis: its metadata is kept as it was before")
            if not data:
                break
        is_idle = time.monotonic() - self._stored_at < UNLOGGED_SECONDS
        if not self.part and not (stream.reached == self.stored and is_idle and stream.whole_bytes < PART_BYTES_MIN):
            self.part = stream.take()

    def is_stored(self) -> None:
        self.parts += 1
        self._bytes += len(self.part)
        self.part = b""
        self.stored = self._stream.reached
        self._stored_at = time.monotonic()

    def close(self) -> None:
        self._feed.close()
