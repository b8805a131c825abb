"""How much memory written and not yet stored data takes in the mount, all files together.

Called by file writers. Beyond the bound, writers wait; `on_pressure` is called so that
somebody stores something.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from servers.protocol.errors import Unavailable

PRESS_AGAIN_SECONDS = 1.0


class WriteBudget:
    def __init__(self, bytes_max: int, on_pressure: Callable[[], None]) -> None:
        self._bytes_max = bytes_max
        self._on_pressure = on_pressure
        self._freed = trio.Event()
        self.held_bytes = 0
        self.waits = 0

    async def wait_for_room(self, count: int, deadline_seconds: float) -> None:
        """Returns when `count` more bytes fit, or nothing is held at all. Raises Unavailable."""
        if self.held_bytes + count <= self._bytes_max or not self.held_bytes:
            return
        self.waits += 1
        with trio.move_on_after(deadline_seconds):
            while self.held_bytes and self.held_bytes + count > self._bytes_max:
                self._on_pressure()
                with trio.move_on_after(PRESS_AGAIN_SECONDS):  # What was tried then may have failed meanwhile.
                    await self._freed.wait()
            return
        raise Unavailable(f"{self.held_bytes} bytes wait to be stored, and no storage node takes them")

    def hold(self, count: int) -> None:
        self.held_bytes += count

    def free(self, count: int) -> None:
        self.held_bytes -= count
        if count:
            self._freed.set()
            self._freed = trio.Event()
