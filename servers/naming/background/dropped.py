"""Copies that are not said to be there any more, or never were: deleted after the grace, unless they are wanted again.

What is being copied to a node is not deleted there, and what is being deleted there is not copied: never the same
replica at once, by `_fetching` and `_deleting` here, and by the numbers of delete orders (servers/naming/deletion.py)
where another naming server led before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from servers.naming.background.garbage import AWAY_SECONDS, RETRY_SECONDS, delete_on
from servers.naming.background.repair_plan import Replica
from servers.naming.keyspace import prefix
from servers.naming.service import Service, rest_after
from servers.protocol.errors import NodeFailed, Refused, TryAgain
from servers.protocol.ids import ExtentId, NodeNumber
from servers.protocol.naming_api import pack_nodes, unpack_nodes
from servers.protocol.placement import NodeView

log = logging.getLogger(__name__)

DELETIONS_PER_TURN = 1024
COPIES_LEFT_MIN = 2
"""A surplus copy is deleted only while so many others, none known to be bad, can be reached, or all of fewer."""


class Dropped:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._key = prefix(service.settings.volume) + ":dropped"
        self._fetching: set[Replica] = set()
        self._deleting: set[Replica] = set()

    async def delete(self) -> None:
        """Has the nodes delete those whose grace is over."""
        while True:
            began = time.monotonic()
            rows = await self._service.store.ask("dropped", count=DELETIONS_PER_TURN)
            took = time.monotonic() - began
            if not rows:
                return
            # Not one await between the list and this: what is copied in between may be in the map by now.
            mine = {_replica(row) for row in rows[::3]} - self._fetching
            self._deleting |= mine
            try:
                await self._delete(rows, mine)
            finally:
                self._deleting -= mine
            await asyncio.sleep(rest_after(took))

    async def _delete(self, rows: Sequence[Any], mine: Collection[Replica]) -> None:
        views = {view.number: view for view in await self._service.nodes()}
        by_node: dict[NodeNumber, list[ExtentId]] = {}
        done = {row for row in rows[::3] if _replica(row)[1] not in views}  # Its node is forgotten.
        for row, others, good in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
            extent, number = _replica(row)
            # While too few good ones are there it may be needed again.
            alive = sum(n in views and views[n].state == "alive" for n in unpack_nodes(good))
            if row not in done and (extent, number) in mine and alive >= min(others, COPIES_LEFT_MIN):
                by_node.setdefault(number, []).append(extent)
        gone = await asyncio.gather(
            *(delete_on(self._service, views.get(n), extents) for n, extents in by_node.items())
        )
        done |= {e + pack_nodes([n]) for n, extents in zip(by_node, gone, strict=True) for e in extents}
        left = [row for row in rows[::3] if row not in done]
        away = [row for row in left if views[_replica(row)[1]].state == "dead"]
        store = self._service.store
        await store.ask("dropped_done", gone=list(done), left=left, retry_ms=int(RETRY_SECONDS * 1000))
        if away:
            await store.ask("dropped_done", gone=[], left=away, retry_ms=int(AWAY_SECONDS * 1000))

    @contextlib.asynccontextmanager
    async def wanted_again(
        self, to: NodeView, extents: Collection[ExtentId], within_seconds: float
    ) -> AsyncIterator[set[ExtentId]]:
        """Those of the extents that are not being deleted on the node, nor will be, whatever was ordered before. The
        grace after that time those are dropped that are in no map: whoever copied them may have died."""
        mine = {(extent, to.number) for extent in extents} - self._deleting
        self._fetching |= mine
        try:
            replicas = [extent + pack_nodes([number]) for extent, number in mine]
            scores = await self._service.store.command("ZMSCORE", self._key, *replicas) if replicas else []
            waiting = [replica for replica, score in zip(replicas, scores, strict=True) if score is not None]
            if waiting and not await self._end_orders(to):
                replicas = [replica for replica in replicas if replica not in waiting]
            if replicas:
                within_ms = int((within_seconds + self._service.settings.condemned_grace_seconds) * 1000)
                await self._service.store.ask("fetching", replicas=replicas, within_ms=within_ms)
            yield {_replica(replica)[0] for replica in replicas}
        finally:
            self._fetching -= mine

    async def _end_orders(self, node: NodeView) -> bool:
        """Whether the node has done what it was ordered to delete, and obeys no earlier order from here on."""
        try:
            await self._service.deletions.order(node, [])
        except (TryAgain, NodeFailed, Refused) as error:
            log.info("node %d is not copied to now: %s", node.number, error)
            return False
        return True


def _replica(row: bytes) -> Replica:
    return ExtentId(row[:16]), NodeNumber(int.from_bytes(row[16:], "big"))
