"""Copies that are not said to be there any more: deleted after the grace, unless they are wanted again.

What is being copied to a node is not deleted there, and what is being deleted there is not copied: never the same
replica at once, by `_fetching` and `_deleting` here, and by the numbers of delete orders (servers/naming/deletion.py)
where another naming server led before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from servers.naming.background.garbage import delete_on
from servers.naming.background.repair_plan import Replica
from servers.naming.service import Service
from servers.protocol.errors import NodeFailed, Refused, TryAgain
from servers.protocol.ids import ExtentId, NodeNumber
from servers.protocol.naming_api import pack_nodes, unpack_nodes
from servers.protocol.placement import NodeView

DELETIONS_PER_TURN = 1024
COPIES_LEFT_MIN = 2
"""A surplus copy is deleted only while so many others can be reached, or all of fewer."""
RETRY_SECONDS = 10.0


class Dropped:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._fetching: set[Replica] = set()
        self._deleting: set[Replica] = set()

    async def delete(self) -> None:
        """Has the nodes delete those whose grace is over."""
        while rows := await self._service.store.ask("dropped", count=DELETIONS_PER_TURN):
            mine = {_replica(row) for row in rows[::2]} - self._fetching
            self._deleting |= mine
            try:
                await self._delete(rows, mine)
            finally:
                self._deleting -= mine

    async def _delete(self, rows: Sequence[Any], mine: Collection[Replica]) -> None:
        views = {view.number: view for view in await self._service.nodes()}
        by_node: dict[NodeNumber, list[ExtentId]] = {}
        done = {row for row in rows[::2] if _replica(row)[1] not in views}  # Its node is forgotten.
        for row, nodes in zip(rows[::2], rows[1::2], strict=True):
            extent, number = _replica(row)
            others = unpack_nodes(nodes)
            alive = sum(n in views and views[n].state == "alive" for n in others)
            if row not in done and (extent, number) in mine and alive >= min(len(others), COPIES_LEFT_MIN):
                by_node.setdefault(number, []).append(extent)  # Of the others one may be needed again.
        gone = await asyncio.gather(
            *(delete_on(self._service, views.get(n), extents) for n, extents in by_node.items())
        )
        done |= {e + pack_nodes([n]) for n, extents in zip(by_node, gone, strict=True) for e in extents}
        left = [row for row in rows[::2] if row not in done]
        await self._service.store.ask("dropped_done", gone=list(done), left=left, retry_ms=int(RETRY_SECONDS * 1000))

    @contextlib.asynccontextmanager
    async def wanted_again(self, to: NodeView, extents: Collection[ExtentId]) -> AsyncIterator[set[ExtentId]]:
        """Those of the extents that are not being deleted on the node, nor will be, whatever was ordered before."""
        mine = fetching = {(extent, to.number) for extent in extents} - self._deleting
        self._fetching |= fetching
        try:
            replicas = [extent + pack_nodes([number]) for extent, number in mine]
            (count,) = await self._service.store.ask("undrop", replicas=replicas)
            if count:
                try:
                    await self._service.deletions.order(to, [])  # No earlier order is obeyed from here on.
                except (TryAgain, NodeFailed, Refused):  # Later, then: what was ordered before soon expires.
                    mine = set()
            yield {extent for extent, _ in mine}
        finally:
            self._fetching -= fetching


def _replica(row: bytes) -> Replica:
    return ExtentId(row[:16]), NodeNumber(int.from_bytes(row[16:], "big"))
