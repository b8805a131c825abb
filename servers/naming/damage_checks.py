"""When a reader says that a replica is damaged: has the node itself read it.

The node sets it aside when it is; a replica that is good (the damage was on the way) is counted
damaged no more. Bounded: what does not fit is found by the node's scrub. Event loop only.
"""

from __future__ import annotations

import asyncio
import logging

from servers.naming.service import Service
from servers.protocol.errors import DcsError
from servers.protocol.ids import ExtentId, NodeNumber, extent_text

WAITING_MAX = 1024

log = logging.getLogger(__name__)


class DamageChecks:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._waiting: asyncio.Queue[tuple[ExtentId, NodeNumber]] = asyncio.Queue(WAITING_MAX)

    def ask(self, extent: ExtentId, node: NodeNumber) -> None:
        if not self._waiting.full():
            self._waiting.put_nowait((extent, node))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            extent, number = await self._waiting.get()
            try:
                await self._check(extent, number)
            except DcsError as error:
                log.info("%s on node %d is checked by its scrub: %s", extent_text(extent), number, error)

    async def _check(self, extent: ExtentId, number: NodeNumber) -> None:
        node = next((node for node in await self._service.nodes() if node.number == number), None)
        if node is None or node.state == "dead":
            return
        lengths = await self._service.storage.check(node.place, [extent], data=True)
        (rows,) = await self._service.store.ask("whereabouts", extents=[extent])
        if (lengths.get(extent) or -1) >= (rows[2] if rows else 1):
            log.info("%s on node %d is good: it was damaged on the way, or is there again", extent_text(extent), number)
            await self._service.store.ask("sound", extent=extent, node=number)
