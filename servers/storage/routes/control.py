"""What naming servers and operators ask of a storage node: bulk orders, listings, space, descriptions."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query
from pydantic import BaseModel, Field

from servers.protocol.errors import ExtentDamaged
from servers.protocol.ids import ExtentId, extent_text, parse_extent_text
from servers.protocol.limits import CHUNK_BYTES_MAX, COPIES_PER_ORDER_MAX, COPY_SOURCES_MAX, EXTENTS_PER_CALL_MAX
from servers.protocol.names import escape
from servers.protocol.storage_api import (
    CHECK_PATH,
    COPIES_PATH,
    EXTENTS_PATH,
    HEALTH_PATH,
    INVENTORY_PATH,
    SPACE_PATH,
)
from servers.storage.node import StorageNode
from servers.storage.replicate import Copy

ID_PATTERN = r"^(0|[1-9a-f][0-9a-f]{0,15})-(0|[1-9a-f][0-9a-f]{0,15})$"
ExtentText = Annotated[str, Field(pattern=ID_PATTERN, examples=["2a-1f"])]


class Extents(BaseModel):
    extents: list[ExtentText] = Field(max_length=EXTENTS_PER_CALL_MAX)

    def ids(self) -> list[ExtentId]:
        return [parse_extent_text(text) for text in self.extents]


class Question(Extents):
    data: bool = Field(False, description="read all of each and compare it with its sums")


class WantedCopy(BaseModel):
    extent: ExtentText
    length: int = Field(ge=1, le=CHUNK_BYTES_MAX, description="it has at least so many bytes")
    sources: list[str] = Field(max_length=COPY_SOURCES_MAX, examples=[["storage2:5001"]])


class CopyOrder(BaseModel):
    node: str = Field("", max_length=64, description="uuid of the node that is meant: another one does not obey")
    copies: list[WantedCopy] = Field(max_length=COPIES_PER_ORDER_MAX)


class DamagedSource(BaseModel):
    extent: str
    source: str
    why: str


class CopyReply(BaseModel):
    stored: list[str]
    """On stable storage here."""
    failed: dict[str, str]
    """What could not be had, and why."""
    damaged: list[DamagedSource]


class Lengths(BaseModel):
    extents: dict[str, int | None]
    """null for what is not here, -1 for what is damaged."""


class Row(BaseModel):
    id: str
    length: int
    """-1 for a damaged one."""


class Inventory(BaseModel):
    extents: list[Row]
    next: str | None
    """What to ask for as `after`; null at the end of a complete listing."""


class Disk(BaseModel):
    path: str
    state: str
    used_bytes: int
    free_bytes: int
    total_bytes: int
    replicas: int
    set_aside: int
    """Damaged replicas, moved out of the way and kept."""
    errors: int
    scrubbed_s: int
    """When the last complete scrub ended, in seconds since 1970."""
    scrub_late: bool


class SpaceReply(BaseModel):
    node: int | None
    """This node's number, once a naming server gave it one."""
    uuid: str
    address: str
    used_bytes: int
    free_bytes: int
    total_bytes: int
    space: str
    """Names the file system: equal for nodes that share one."""
    rack: str
    condemned_extents: int
    condemned_bytes: int
    """Deleted, and kept for a while; they count as free."""
    held: str
    """A digest of the extents it has: equal ones for equal sets."""
    disks: list[Disk]
    statistics: dict[str, int]


class Description(BaseModel):
    extent: str
    path: str
    length: int
    file_bytes: int
    blocks: int
    volume: str
    inode: int
    chunk: int
    mtime_ns: int
    name: str
    chunk_size: int
    """Of the file; 0 where the writer did not say."""
    places: list[int]
    """Offset in the chunk, and length, of each of the ranges that lie end to end in it; empty where it is not known."""
    sums: list[str]
    """CRC32C of each 64 KiB block, in hexadecimal."""
    verified: bool
    """Whether the data, read now, matches them."""


class Health(BaseModel):
    status: str


def control_routes(node: StorageNode) -> APIRouter:
    routes = APIRouter()
    store = node.store

    @routes.get(HEALTH_PATH)
    async def health() -> Health:
        """The node answers. The one route without the secret."""
        return Health(status="ok")

    @routes.get(SPACE_PATH)
    async def space() -> SpaceReply:
        """Bytes used by extents, and those free and in all of the disk; with counters since the start."""
        report = await asyncio.to_thread(node.report)
        return SpaceReply(
            node=node.heartbeat.node_number, statistics=store.statistics(), **asdict(report),
            condemned_extents=node.disks.condemned_count(), condemned_bytes=node.disks.condemned_bytes(),
        )  # fmt: skip

    @routes.post(CHECK_PATH)
    async def check(question: Question) -> Lengths:
        """The length of each."""
        if question.data:
            verified = await node.replicator.lengths(question.ids())
            return Lengths(extents={extent_text(extent): length for extent, length in verified.items()})

        def look() -> dict[str, int | None]:
            return {extent_text(extent): store.length(extent) for extent in question.ids()}

        return Lengths(extents=await asyncio.to_thread(look))

    @routes.post(COPIES_PATH)
    async def copy(order: CopyOrder) -> CopyReply:
        """Fetches extents from other nodes. 409 where another node was meant, 500 when they could not be synced."""
        if order.node and order.node != node.uuid:
            raise HTTPException(409, f"this is not node {order.node}")
        wanted = [Copy(parse_extent_text(c.extent), c.length, c.sources) for c in order.copies]
        done = await node.replicator.copy(wanted)
        return CopyReply(
            stored=[extent_text(extent) for extent in done.stored],
            failed={extent_text(extent): why for extent, why in done.failed.items()},
            damaged=[DamagedSource(extent=extent_text(e), source=source, why=why) for e, source, why in done.damaged],
        )

    @routes.get(INVENTORY_PATH)
    async def inventory(
        after: Annotated[str | None, Query(pattern=ID_PATTERN, examples=["2a-1f"])] = None,
        limit: Annotated[int, Query(ge=1, le=EXTENTS_PER_CALL_MAX)] = 1024,
        names_only: bool = False,
    ) -> Inventory:
        """What the node holds, a page at a time: complete, or an error. With `names_only` no file is opened for its
        length, which is 0 then."""
        position = parse_extent_text(after) if after is not None else None
        rows, last = await asyncio.to_thread(store.page, position, limit, names_only=names_only)
        return Inventory(
            extents=[Row(id=extent_text(extent), length=length) for extent, length in rows],
            next=extent_text(last) if last is not None else None,
        )

    @routes.get(EXTENTS_PATH + "{extent}/description", responses={404: {"description": "not there"}})
    async def describe(extent: Annotated[str, Path(pattern=ID_PATTERN, examples=["2a-1f"])]) -> Description:
        """Where the replica lies and what its footer says; reads all of it."""
        return Description(**await asyncio.to_thread(_describe, node, parse_extent_text(extent)))

    return routes


def _describe(node: StorageNode, extent: ExtentId) -> dict[str, Any]:  # Any: the fields of Description.
    replica = node.store.open(extent)
    path = replica.disk.directory.path(extent)
    try:
        node.store.verify(replica)
        verified = True
    except ExtentDamaged:
        verified = False
    header, sums = replica.footer.header, replica.footer.sums
    return {
        "extent": extent_text(extent),
        "path": path,
        "length": replica.footer.length,
        "file_bytes": replica.file_bytes,
        "blocks": len(sums) // 4,
        "volume": header.volume,
        "inode": header.inode,
        "chunk": header.chunk,
        "mtime_ns": header.mtime_ns,
        "name": escape(header.name),
        "chunk_size": header.chunk_size,
        "places": list(header.places),
        "sums": [f"{value:08x}" for (value,) in struct.iter_unpack(">I", sums)],
        "verified": verified,
    }
