"""Deleting by order, and bringing back what was deleted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from servers.protocol.ids import ExtentId, extent_text, parse_extent_text
from servers.protocol.limits import EXTENTS_PER_CALL_MAX
from servers.protocol.orders import DeleteOrder
from servers.protocol.storage_api import DELETE_PATH, UNDO_PATH
from servers.storage.disk_health import DiskState
from servers.storage.node import StorageNode
from servers.storage.obedience import OrderRefused
from servers.storage.routes.control import Extents, ExtentText

logger = logging.getLogger(__name__)


class Order(Extents):
    """A delete order: who may give one, and which are obeyed, says `servers.protocol.orders`."""

    volume: str = Field(max_length=64)
    node: str = Field(max_length=64, description="uuid of the node that is meant: another one does not obey")
    number: int = Field(ge=0, le=2**53)
    seq: int = Field(ge=0, le=2**53)
    expires_ms: int = Field(ge=0, le=2**53)
    signature: str = Field(max_length=64)

    def read(self) -> DeleteOrder:
        return DeleteOrder(self.volume, self.node, self.number, self.seq, self.expires_ms, tuple(self.ids()))


class Undo(BaseModel):
    extents: list[ExtentText] | None = Field(None, max_length=EXTENTS_PER_CALL_MAX, description="null: all")
    seconds: float | None = Field(None, ge=0, description="only what was condemned so long ago at most")
    limit: int = Field(EXTENTS_PER_CALL_MAX, ge=1, le=EXTENTS_PER_CALL_MAX)


class Restored(BaseModel):
    extents: list[str]
    """Brought back; ask again until there are none."""


class Deleted(BaseModel):
    failed: list[str]
    """Those that are still there."""


def deletion_routes(node: StorageNode) -> APIRouter:
    routes = APIRouter()
    turns = asyncio.Lock()

    @routes.post(DELETE_PATH)
    async def delete(order: Order) -> Deleted:
        """Deletes many, so that they can be brought back for a while. What is not there counts as deleted. 409 for an
        order that must not be obeyed: not signed, late, replayed, for another node, or from older metadata.

        One after another: when an order is answered those before it are done, or will not be obeyed."""
        wanted = order.read()
        async with turns:
            try:
                await asyncio.to_thread(node.obedience.accept, wanted, order.signature)
            except OrderRefused as error:
                logger.warning("delete order %d is refused: %s", wanted.number, error)
                raise HTTPException(409, str(error)) from error
            return Deleted(failed=await asyncio.to_thread(_delete_all, node, wanted.extents))

    @routes.post(UNDO_PATH)
    async def undelete(undo: Undo) -> Restored:
        """Brings back what was deleted, as far as it is kept."""
        return Restored(extents=await asyncio.to_thread(_bring_back, node, undo))

    return routes


def _delete_all(node: StorageNode, extents: Sequence[ExtentId]) -> list[str]:
    """On stable storage: what came back after a loss of power would be garbage, and much of it needs an operator."""
    failed = []
    for extent in extents:
        try:
            node.store.condemn(extent)
        except OSError:
            failed.append(extent_text(extent))
    for disk in node.disks:
        if disk.health.state is DiskState.GOOD:
            try:
                disk.directory.sync_names(extents)
            except OSError as error:
                disk.health.note(error)
    return failed


def _bring_back(node: StorageNode, undo: Undo) -> list[str]:
    """Up to the limit, the latest condemned first where one was condemned twice."""
    wanted = None if undo.extents is None else {parse_extent_text(text) for text in undo.extents}
    oldest = 0.0 if undo.seconds is None else time.time() - undo.seconds
    restored: list[str] = []
    condemned = ((disk, one) for disk in node.disks for one in disk.condemned.listing())
    for disk, one in condemned:
        if len(restored) >= undo.limit:
            break
        is_wanted = one.condemned_until_s >= oldest and (wanted is None or one.extent in wanted)
        if is_wanted and node.store.bring_back(disk, one):
            restored.append(extent_text(one.extent))
    if restored:
        logger.warning("%d deleted extents were brought back", len(restored))
    return restored
