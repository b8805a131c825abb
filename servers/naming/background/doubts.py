"""Nodes that may have lost replicas are asked for each extent that the metadata says they have.

A node is in doubt (lua/damage.lua) when it says so, came back without having ended in order, or
with something else than it had then. What it does not have, or has damaged, is noted as damaged,
and so healed. It is believed again after a whole pass, unless it could not be asked or gave new
reason meanwhile: so does a commit of what it took before it came back.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from itertools import islice

import msgpack

from servers.naming.keyspace import glob_literal, prefix
from servers.naming.service import Service
from servers.protocol.errors import NodeFailed, TryAgain
from servers.protocol.ids import ExtentId, NodeNumber, extent_text
from servers.protocol.naming_api import unpack_nodes

log = logging.getLogger(__name__)

PAGES_PER_RUN = 20
KEYS_PER_PAGE = 500
EXTENTS_PER_CALL = 128
"""A node opens a file for each; where nothing is cached a slow disk takes some 30 ms for it, and has 10 s for all."""


class Doubts:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._cursor = "0"
        self._process = ""
        """Of Redis, which the cursor belongs to."""
        self._asked: dict[NodeNumber, int] = {}
        """The nodes of this pass, and since when each is in doubt."""
        self.missing = 0
        """Replicas found missing or damaged, since the start."""

    async def run(self) -> None:
        for _ in range(PAGES_PER_RUN):
            if self._process != self._service.store.process:
                self._process, self._cursor = self._service.store.process, "0"
            if self._cursor == "0" and not await self._begin():
                return
            await self._page()
            if self._cursor == "0" and self._process == self._service.store.process:
                await self._end()

    async def _begin(self) -> bool:
        rows = await self._service.store.ask("doubted")
        alive = {node.number for node in await self._service.nodes() if node.state == "alive"}
        doubted = {NodeNumber(int(n)): int(since) for n, since in zip(rows[::2], rows[1::2], strict=True)}
        self._asked = {number: since for number, since in doubted.items() if number in alive}
        return bool(self._asked)

    async def _page(self) -> None:
        store, key = self._service.store, prefix(self._service.settings.volume) + ":m:"
        cursor, maps = await self._service.gently(
            store.command("SCAN", self._cursor, "MATCH", glob_literal(key) + "*", "COUNT", KEYS_PER_PAGE)
        )
        wanted: dict[NodeNumber, set[ExtentId]] = {number: set() for number in self._asked}
        for name in maps:
            async for blobs in self._service.parts_of_map(name):
                for blob in blobs[1::2]:
                    _note_wanted(wanted, blob)
                for number, extents in wanted.items():
                    if len(extents) >= EXTENTS_PER_CALL:
                        await self._ask(number, extents)
                        extents.clear()
        for number, extents in wanted.items():
            await self._ask(number, extents)
        self._cursor = cursor.decode()

    async def _ask(self, number: NodeNumber, extents: Collection[ExtentId]) -> None:
        node = next((node for node in await self._service.nodes() if node.number == number), None)
        rest = iter(sorted(extents))
        while part := list(islice(rest, EXTENTS_PER_CALL)):
            try:
                if node is None or node.state != "alive":
                    raise NodeFailed(f"node {number} is not alive")
                lengths = await self._service.storage.check(node.place, part)
            except (TryAgain, NodeFailed) as error:
                log.info("node %d stays in doubt: %s", number, error)
                self._asked.pop(number, None)
                return
            for extent in part:
                if lengths.get(extent, 0) in (None, -1):
                    await self._note(extent, number, "missing" if lengths[extent] is None else "damaged")

    async def _note(self, extent: ExtentId, number: NodeNumber, why: str) -> None:
        (new,) = await self._service.store.ask("damage", extent=extent, node=number, why=why.encode())
        if new:
            self.missing += 1
            log.warning("%s on node %d is %s", extent_text(extent), number, why)

    async def _end(self) -> None:
        for number, since in self._asked.items():
            log.info("node %d was asked for each of its extents", number)
            await self._service.store.ask("believed", node=number, since=since)
        self._asked = {}


def _note_wanted(wanted: Mapping[NodeNumber, set[ExtentId]], blob: bytes) -> None:
    flat = msgpack.unpackb(blob, raw=True)
    for extent, nodes in zip(flat[1::5], flat[4::5], strict=True):
        for number in unpack_nodes(nodes):
            if number in wanted:
                wanted[number].add(ExtentId(extent))
