"""Where every byte of a file lies: its inode, its chunks, their extents, and each replica's file on a disk.

Each replica is read and checked by its node, so this also shows damage.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from servers.admin.connection import Connection
from servers.admin.crc_combine import combine
from servers.admin.tree import parts_of, resolve
from servers.protocol.errors import DcsError, ExtentDamaged, ExtentMissing
from servers.protocol.geometry import Segment
from servers.protocol.ids import NodeNumber, extent_text
from servers.protocol.limits import BLOCK_BYTES, CHUNKS_PER_CALL_MAX
from servers.protocol.names import escape
from servers.protocol.naming_api import Attributes, unpack_segments
from servers.protocol.placement import NodeView

AT_ONCE_MAX = 8
"""Replicas that are looked at together."""

Json = dict[str, Any]  # Any: values of JSON.


async def explain(connection: Connection, path: bytes) -> Json:
    """Raises Refused, Unavailable. A node or replica that cannot be had is told in its place."""
    attributes = await resolve(connection, path)
    nodes = {node.number: node for node in await connection.naming.nodes()}
    chunks = [chunk async for chunk in _chunks(connection, attributes, nodes)] if attributes.is_file else []
    return {
        "path": escape(b"/" + b"/".join(parts_of(path))),
        "inode": attributes.ino,
        "mode": attributes.mode,
        "size": attributes.size,
        "stored_bytes": attributes.stored_bytes,
        "chunk_size": attributes.chunk_size,
        "replicas_wanted": attributes.replicas,
        "replicas_good": min(
            (sum(r["state"] == "ok" for r in s["replicas"]) for chunk in chunks for s in chunk["segments"]),
            default=None,
        ),
        "chunks": chunks,
    }


async def _chunks(
    connection: Connection, attributes: Attributes, nodes: dict[NodeNumber, NodeView]
) -> AsyncIterator[Json]:
    room = asyncio.Semaphore(AT_ONCE_MAX)
    count = -(-attributes.size // attributes.chunk_size)
    for first in range(0, count, CHUNKS_PER_CALL_MAX):
        _, _, rows = await connection.ask("locate", ino=attributes.ino, first=first, count=CHUNKS_PER_CALL_MAX)
        maps = {index: unpack_segments(blob) for index, blob in zip(rows[::2], rows[1::2], strict=True)}
        looks = (_segment(connection, segment, nodes, room) for segments in maps.values() for segment in segments)
        looked = iter(await asyncio.gather(*looks))
        for index, segments in maps.items():
            yield {"index": index, "segments": [next(looked) for _ in segments]}


async def _segment(
    connection: Connection, segment: Segment, nodes: dict[NodeNumber, NodeView], room: asyncio.Semaphore
) -> Json:
    replicas = await asyncio.gather(*(_replica(connection, segment, n, nodes.get(n), room) for n in segment.nodes))
    return {
        "offset": segment.offset,
        "length": segment.length,
        "extent": extent_text(segment.extent),
        "extent_offset": segment.extent_offset,
        "replicas": replicas,
    }


async def _replica(
    connection: Connection, segment: Segment, number: NodeNumber, node: NodeView | None, room: asyncio.Semaphore
) -> Json:
    """`state` is ok, damaged, missing or unknown (its node cannot be asked)."""
    row: Json = {"node": number, "address": node.address if node else None, "path": None, "crc32c": None, "sums": []}
    if node is None:
        return {**row, "state": "unknown", "problem": "no such node"}
    try:
        async with room:
            found = await connection.storage.describe(node.place, segment.extent)
    except DcsError as error:
        state = {ExtentDamaged: "damaged", ExtentMissing: "missing"}.get(type(error), "unknown")
        return {**row, "state": state, "problem": str(error)}
    sums, length = found["sums"], found["length"]
    lengths = [min(BLOCK_BYTES, length - at) for at in range(0, length, BLOCK_BYTES)]
    return {
        **row,
        "path": found["path"],
        "length": length,
        "crc32c": f"{combine((int(s, 16) for s in sums), lengths):08x}",
        "sums": sums,
        "state": "ok" if found["verified"] else "damaged",
        "problem": None if found["verified"] else "the data does not match its sums",
    }
