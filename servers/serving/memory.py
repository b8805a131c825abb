"""A bound on the bytes that big bodies and replies may hold at once in one server.

Taken before a buffer is made, given back when it is let go. First come, first served: a big
taker is not overtaken for ever by small ones. Event loop only; nothing here awaits while it
holds something half done.
"""

from __future__ import annotations

import asyncio
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
