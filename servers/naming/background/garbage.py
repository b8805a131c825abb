"""Space comes back: orphans are forgotten, condemned extents deleted, what crashed writers left found.

An extent is deleted on a node only when it was condemned and its grace is over, or when no
file ever showed it, its session is over, and it was seen in that state for the grace. A
node that does not answer is asked again later; its extents stay on the list until it said
that they are gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from servers.naming.service import Service
from servers.protocol.errors import DcsError, NodeFailed, TryAgain
from servers.protocol.ids import ExtentId, NodeNumber, extent_text
from servers.protocol.limits import EXTENTS_PER_CALL_MAX
from servers.protocol.naming_api import pack_nodes, unpack_nodes
from servers.protocol.placement import NodeView

log = logging.getLogger(__name__)

ORPHANS_PER_RUN = 256
DELETIONS_PER_RUN = 1024
RETRY_SECONDS = 10.0
REAPS_PER_RUN = 64

VERDICT_GARBAGE = 0


async def reap(service: Service) -> None:
    """Forgets orphans nobody has open and lets go of their chunks, in bounded steps."""
    for _ in range(REAPS_PER_RUN):
        reaped, freed = await service.store.ask("reap", count=ORPHANS_PER_RUN)
        if not reaped and not freed:
            return


async def delete_condemned(service: Service) -> None:
    """Has the nodes delete what is condemned, and notes which did not."""
    while True:
        rows = await service.store.ask("condemned", count=DELETIONS_PER_RUN)
        if not rows:
            return
        pending = {ExtentId(e): set(unpack_nodes(n)) for e, n in zip(rows[::2], rows[1::2], strict=True)}
        nodes = {node.number: node for node in await service.nodes()}
        by_node: dict[NodeNumber, list[ExtentId]] = {}
        for extent, numbers in pending.items():
            for number in numbers:
                by_node.setdefault(number, []).append(extent)
        answers = await asyncio.gather(*(_delete_on(service, nodes.get(n), wanted) for n, wanted in by_node.items()))
        for number, gone in zip(by_node, answers, strict=True):
            for extent in gone:
                pending[extent].discard(number)
        left = [part for e, n in pending.items() if n for part in (e, pack_nodes(sorted(n)))]
        await service.store.ask(
            "deleted", gone=[e for e, n in pending.items() if not n], left=left, retry_ms=int(RETRY_SECONDS * 1000)
        )


async def _delete_on(service: Service, node: NodeView | None, extents: list[ExtentId]) -> set[ExtentId]:
    """Those that are certainly not on the node any more."""
    if node is None or node.state == "dead":
        return set()
    try:
        return await service.storage.delete(node.address, extents, node=node.uuid)
    except (TryAgain, NodeFailed) as error:
        log.info("node %d does not delete now: %s", node.number, error)
        return set()


class GarbageCollector:
    """Finds extents that no file shows and no session will commit, and deletes them after the grace.

    Keeps in memory since when it has seen each; a restart begins anew, which only delays.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._since: dict[tuple[str, ExtentId], float] = {}
        self.deleted = 0

    async def run(self) -> None:
        seen: set[tuple[str, ExtentId]] = set()
        for node in await self._service.nodes():
            if node.state != "alive":
                seen.update(key for key in self._since if key[0] == node.uuid)
                continue
            try:
                seen |= await self._visit(node)
            except DcsError as error:
                log.info("garbage on node %d waits: %s", node.number, error)
                seen.update(key for key in self._since if key[0] == node.uuid)
        self._since = {key: since for key, since in self._since.items() if key in seen}

    async def _visit(self, node: NodeView) -> set[tuple[str, ExtentId]]:
        seen: set[tuple[str, ExtentId]] = set()
        after: str | None = None
        while True:
            page = await self._service.storage.inventory(node.address, after, EXTENTS_PER_CALL_MAX)
            garbage = await self._garbage_of(page.lengths)
            now = time.monotonic()
            for extent in garbage:
                self._since.setdefault((node.uuid, extent), now)
                seen.add((node.uuid, extent))
            grace = self._service.settings.garbage_grace_seconds
            await self._delete(node, [e for e in garbage if now - self._since[node.uuid, e] >= grace])
            after = page.next
            if after is None:
                return seen

    async def _delete(self, node: NodeView, due: list[ExtentId]) -> None:
        if not due:
            return
        # In one step Redis looks again and sees to it that nobody commits them any more: only then they may go.
        doomed = [ExtentId(e) for e in await self._service.store.ask("collect", extents=due)]
        if not doomed:
            return
        for extent in await self._service.storage.delete(node.address, doomed, node=node.uuid):
            self.deleted += 1
            log.info("deleted garbage %s on node %d", extent_text(extent), node.number)

    async def _garbage_of(self, extents: Iterable[ExtentId]) -> list[ExtentId]:
        asked = list(extents)
        if not asked:
            return []
        verdicts = await self._service.store.ask("known", extents=asked)
        return [e for e, verdict in zip(asked, verdicts, strict=True) if verdict == VERDICT_GARBAGE]
