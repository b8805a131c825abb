"""Making one extent of parts of others."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from servers.protocol.ids import parse_extent_text
from servers.protocol.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, COPY_SOURCES_MAX, SEGMENTS_PER_COMMIT_MAX
from servers.protocol.storage_api import COMPOSE_PATH
from servers.storage.compose import Composition, Part
from servers.storage.node import StorageNode
from servers.storage.routes.control import ExtentText


class PartOrder(BaseModel):
    extent: ExtentText
    offset: int = Field(ge=0, le=CHUNK_BYTES_MAX)
    length: int = Field(gt=0, le=CHUNK_BYTES_MAX)
    sources: list[str] = Field([], max_length=COPY_SOURCES_MAX)


class ComposeOrder(BaseModel):
    node: str = Field(max_length=64, description="uuid of the node that is meant: another one does not obey")
    extent: ExtentText
    volume: str = Field(max_length=64)
    inode: int = Field(ge=0, le=2**53)
    chunk: int = Field(ge=0, le=2**53)
    mtime_ns: int = Field(ge=-(2**63), lt=2**63)
    chunk_size: int = Field(ge=CHUNK_BYTES_MIN, le=CHUNK_BYTES_MAX)
    offset: int = Field(ge=0, le=CHUNK_BYTES_MAX)
    parts: list[PartOrder] = Field(min_length=1, max_length=SEGMENTS_PER_COMMIT_MAX)


class Composed(BaseModel):
    length: int


def composition_routes(node: StorageNode) -> APIRouter:
    routes = APIRouter()

    @routes.post(COMPOSE_PATH)
    async def compose(order: ComposeOrder) -> Composed:
        """The parts, one after the other, are a new extent on stable storage. 409 where another node was meant, 503
        when a part cannot be read."""
        if order.node != node.uuid:
            raise HTTPException(409, f"this is not node {order.node}")
        if sum(part.length for part in order.parts) > CHUNK_BYTES_MAX:
            raise HTTPException(422, f"an extent has at most {CHUNK_BYTES_MAX} bytes")
        parts = [Part(parse_extent_text(p.extent), p.offset, p.length, p.sources) for p in order.parts]
        wanted = Composition(
            parse_extent_text(order.extent), order.volume, order.inode, order.chunk, order.mtime_ns, order.chunk_size,
            order.offset, parts,
        )  # fmt: skip
        return Composed(length=await node.composer.compose(wanted))

    return routes
