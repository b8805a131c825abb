"""The memory of big bodies and replies: a bound on what one server holds at once, and buffers used again.

Taken before a buffer is made, given back when it is let go. First come, first served: a big
taker is not overtaken for ever by small ones. Event loop only; nothing here awaits while it
holds something half done.
"""

from __future__ import annotations

import asyncio
import mmap
from collections import deque


class MemoryBudget:
    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._free = bytes_max
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken_bytes(self) -> int:
        return self.bytes_max - self._free

    def try_take(self, size: int) -> bool:
        """True when `size` bytes are the caller's now; never before somebody who already waits."""
        if self._waiting or size > self._free:
            return False
        self._free -= size
        return True

    async def take(self, size: int, deadline_seconds: float) -> None:
        """`size` bytes are the caller's. Raises TimeoutError; then, and when cancelled, nothing is taken."""
        if self.try_take(size):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            async with asyncio.timeout(deadline_seconds):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give(size)
            else:
                turn.cancel()
                self._serve_waiting()
            raise

    def give(self, size: int) -> None:
        self._free += size
        self._serve_waiting()

    def _serve_waiting(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
                continue
            if size > self._free:
                return
            self._waiting.popleft()
            self._free -= size
            turn.set_result(None)


def buffer_bytes(length: int) -> int:
    """The size of the buffer for a body of this length: the next power of two, so that few sizes serve all."""
    return 1 << (length - 1).bit_length() if length else 0


class BufferPool:
    """Buffers to use again, aligned to pages so that they can go to a disk as they are.

    Whoever puts one back does not look at it any more.
    """

    def __init__(self, idle_bytes_max: int) -> None:
        self._idle_bytes_max = idle_bytes_max
        self._idle_bytes = 0
        self._idle: dict[int, list[mmap.mmap]] = {}

    def get(self, size: int) -> mmap.mmap:
        """`size` bytes of anything; sizes that `buffer_bytes` gives are found again."""
        buffers = self._idle.get(size)
        if not buffers:
            return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._idle_bytes -= size
        return buffers.pop()

    def put(self, buffer: mmap.mmap) -> None:
        if self._idle_bytes + len(buffer) <= self._idle_bytes_max:
            self._idle_bytes += len(buffer)
            self._idle.setdefault(len(buffer), []).append(buffer)
