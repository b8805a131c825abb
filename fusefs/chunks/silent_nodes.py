"""Nodes that kept a reader waiting, asked in the background until they answer, so that no other reader waits.

Told by fetches, run by the mount. A node is asked for a block of what it kept back: at once, since it may only
have been slow with much, then after 10 s, then every 60 s. Until it has answered it is read last.

One task for each such node; nothing awaits between a look at `_asked` and a change of it.
"""

from __future__ import annotations

import logging

import trio

from fusefs.chunks.limits import Limits
from fusefs.chunks.replicas import Replicas
from servers.client.storage import StorageClient
from servers.protocol.errors import DcsError, ExtentDamaged, ExtentMissing
from servers.protocol.ids import ExtentId, NodeNumber
from servers.protocol.limits import BLOCK_BYTES
from servers.protocol.placement import NodeView

logger = logging.getLogger(__name__)


class SilentNodes:
    def __init__(self, storage: StorageClient, replicas: Replicas, limits: Limits) -> None:
        self._storage = storage
        self._replicas = replicas
        self._limits = limits
        self._noted: dict[NodeNumber, tuple[ExtentId, int]] = {}
        """What those kept back that nobody asks yet."""
        self._asked: set[NodeNumber] = set()
        self._news = trio.Event()

    def note(self, extent: ExtentId, number: NodeNumber, start: int) -> None:
        """The node kept back the extent's block at `start`. Does not wait."""
        self._replicas.silent(number)
        if number not in self._asked:
            self._noted[number] = extent, start
            self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while self._noted:
                    number, (extent, start) = self._noted.popitem()
                    self._asked.add(number)
                    nursery.start_soon(self._ask_until_heard, number, extent, start)
                await self._news.wait()
                self._news = trio.Event()

    async def _ask_until_heard(self, number: NodeNumber, extent: ExtentId, start: int) -> None:
        pause, *later = self._limits.unheard_seconds
        while self._replicas.is_silent(number):
            node = self._replicas.node(number)
            if node is not None and await self._answers(node, extent, start):
                self._replicas.heard(number)
                break
            logger.info("node %d keeps readers waiting: it is read last, and asked again in %.0f s", number, pause)
            await trio.sleep(pause)
            if later:
                pause = later.pop(0)
        self._asked.discard(number)

    async def _answers(self, node: NodeView, extent: ExtentId, start: int) -> bool:
        try:
            await self._storage.get(
                node.place, extent, start, BLOCK_BYTES,
                deadline_seconds=self._limits.first_byte_seconds, first_byte_seconds=self._limits.hedge_seconds,
            )  # fmt: skip
        except (ExtentDamaged, ExtentMissing):  # Bad news, and in time.
            return True
        except DcsError:
            return False
        return True
