"""Nodes that are too full beside the others give to emptier ones, slowly.

Walks over the extents of those nodes, a part in each turn, and has copies made; repair then
takes the surplus copy from the fullest. Does nothing while there is something to repair.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from servers.naming.background.rebalance_plan import rebalance_step, surplus_bytes
from servers.naming.background.repair import SURVEY_COUNT, Repair
from servers.naming.background.repair_plan import Copy, Outlook, held_of
from servers.naming.service import Service
from servers.protocol.ids import NodeNumber
from servers.protocol.limits import MIB
from servers.protocol.naming_api import pack_nodes

log = logging.getLogger(__name__)

BYTES_PER_TURN = 256 * MIB
CALLS_PER_TURN = 200
COPIES_PER_ORDER = 64
SEEN_LATER_SECONDS = 15.0
"""A node tells only after a while that what was deleted is gone."""


class Rebalance:
    def __init__(self, service: Service, repair: Repair) -> None:
        self._service = service
        self._repair = repair
        self._cursor = b"0"
        self._given: deque[tuple[float, NodeNumber, int]] = deque()
        """When, by whom, how many bytes: not yet to be seen in what the node says it uses."""
        self.moved_bytes = 0

    async def run(self) -> None:
        outlook = self._repair.outlook
        if outlook is None or self._service.store.fault is not None:
            return
        surplus = self._surplus(outlook)
        if not surplus:
            return
        copies = await self._find(outlook, surplus)
        if not copies:
            return
        log.info("nodes %s are too full beside the others: %d copies move", sorted(surplus), len(copies))
        by_node: dict[NodeNumber, list[Copy]] = {}
        for copy in copies:
            by_node.setdefault(copy.to.number, []).append(copy)
        await asyncio.gather(*(self._copy(batch) for batch in by_node.values()))

    def _surplus(self, outlook: Outlook) -> dict[NodeNumber, int]:
        kept = self._service.settings.condemned_grace_seconds + SEEN_LATER_SECONDS
        while self._given and time.monotonic() - self._given[0][0] > kept:
            self._given.popleft()
        surplus = surplus_bytes(outlook)
        for _, number, size in self._given:
            if number in surplus:
                surplus[number] -= size
        return {number: size for number, size in surplus.items() if size > 0}

    async def _find(self, outlook: Outlook, surplus: dict[NodeNumber, int]) -> list[Copy]:
        """Copies that bring the nodes of `surplus` nearer to the others; looks at a bounded part of the files."""
        found: list[Copy] = []
        left = BYTES_PER_TURN
        async for rows in self._looked_at(outlook, surplus):
            for held in held_of(rows):
                givers = [number for number in held.nodes if surplus.get(number, 0) > 0]
                gift = rebalance_step(held, outlook, self._repair.damaged, givers, self._service.chance)
                if gift is None or left <= 0:
                    continue
                found.append(gift.copy)
                left -= held.length
                surplus[gift.giver] -= held.length
                self._given.append((time.monotonic(), gift.giver, held.length))
            if left <= 0 or not any(size > 0 for size in surplus.values()):
                break
        return found

    async def _looked_at(self, outlook: Outlook, surplus: Collection[NodeNumber]) -> AsyncIterator[Sequence[Any]]:
        """What lies on the nodes of `surplus`: a part of all files in each turn, from where the last one ended."""
        calls = CALLS_PER_TURN
        wanted = {
            "count": SURVEY_COUNT,
            "settled": pack_nodes(sorted(outlook.staying)),
            "leaving": pack_nodes(sorted(surplus)),
        }
        while calls > 0:
            self._cursor, later, rows = await self._service.ask_gently("survey", cursor=self._cursor, **wanted)
            calls -= 1
            yield rows
            for ino in later:
                cursor = b""
                while calls > 0 and cursor != b"0":
                    cursor, rows = await self._service.ask_gently(
                        "survey_file", ino=ino, cursor=cursor or b"0", **wanted
                    )
                    calls -= 1
                    yield rows
            if self._cursor == b"0":
                return

    async def _copy(self, batch: list[Copy]) -> None:
        for first in range(0, len(batch), COPIES_PER_ORDER):
            part = batch[first : first + COPIES_PER_ORDER]
            await self._repair.copy_to(part[0].to, part)
            self.moved_bytes += sum(copy.held.length for copy in part)
