"""How to call a storage node. See `servers.protocol.storage_api` for the routes.

A `place` is where to ask and whom: the node's uuid, `@`, and host:port. Whoever else answers there refuses.
host:port alone means whoever answers.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from servers.client.http import Answer, AtOnce, Transport
from servers.protocol.checksum import Buffer, first_damaged_block
from servers.protocol.errors import DcsError, ExtentDamaged, ExtentMissing, NodeFailed, NodeFull
from servers.protocol.ids import ExtentId, extent_text, parse_extent_text
from servers.protocol.orders import DeleteOrder
from servers.protocol.storage_api import (
    BARRIER_PATH,
    CHECK_PATH,
    COMPOSE_PATH,
    COPIES_PATH,
    DELETE_PATH,
    EXTENT_HEADER,
    EXTENTS_PATH,
    INVENTORY_PATH,
    LENGTH_HEADER,
    NODE_HEADER,
    SPACE_PATH,
    SUMS_HEADER,
    UNDO_PATH,
    ExtentHeader,
    unpack_extent_header,
)  # fmt: skip

CONTROL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class InventoryPage:
    lengths: dict[ExtentId, int]
    next: str | None
    """What to ask for as `after`; None at the end of a complete listing."""


@dataclass(frozen=True, slots=True)
class WantedCopy:
    extent: ExtentId
    length: int
    """It has at least so many bytes."""
    sources: Sequence[str]
    """Places of nodes that should have it, the best first."""


@dataclass(frozen=True, slots=True)
class CopyOutcome:
    stored: set[ExtentId]
    failed: dict[ExtentId, str]
    damaged: list[tuple[ExtentId, str, str]]
    """Extent, the source that was found to have it damaged or not at all, and why."""


class StorageClient:
    """All calls raise TryAgain when the node does not answer, NodeFailed when it refuses."""

    def __init__(self, transport: Transport, at_once: AtOnce | None = None) -> None:
        self._transport = transport
        self._at_once = at_once

    async def put(
        self,
        place: str,
        extent: ExtentId,
        pieces: Sequence[Buffer],
        header: ExtentHeader,
        *,
        sync: bool,
        deadline_seconds: float,
        first_byte_seconds: float,
    ) -> None:
        """The node has the extent; with `sync`, on stable storage."""
        address, meant = _whom(place)
        answer = await self._transport.request(
            address, "PUT", _put_target(extent, sync), headers={EXTENT_HEADER: header.pack(), **meant}, body=pieces,
            deadline_seconds=deadline_seconds, first_byte_seconds=first_byte_seconds,
        )  # fmt: skip
        if answer.status not in (200, 201):
            raise _failure(address, extent, answer)

    async def put_at_once(
        self,
        places: Sequence[str],
        extent: ExtentId,
        pieces: Sequence[Buffer],
        header: ExtentHeader,
        *,
        sync: bool,
        seconds: float,
    ) -> list[bool | DcsError]:
        """As `put` to each of the places, by one task: True where the node has the extent, False where it has to
        be asked again, else what went wrong there. For pieces that a socket takes without waiting."""
        if self._at_once is None:
            return [False] * len(places)
        packed, whom = header.pack(), [_whom(place) for place in places]
        answers = await self._at_once(
            [address for address, _ in whom], "PUT", _put_target(extent, sync), body=pieces, seconds=seconds,
            headers=[{EXTENT_HEADER: packed, **meant} for _, meant in whom],
        )  # fmt: skip
        return [_put_result(address, extent, answer) for (address, _), answer in zip(whom, answers, strict=True)]

    async def get(
        self,
        place: str,
        extent: ExtentId,
        start: int,
        length: int,
        *,
        deadline_seconds: float,
        first_byte_seconds: float,
    ) -> memoryview:
        """Bytes [start, start + length) of the extent, or up to its end, checked; both are multiples of
        64 KiB, because that is what one sum covers. Raises ExtentDamaged, also when it ends before `start`,
        and ExtentMissing."""
        address, meant = _whom(place)
        part = {"range": f"bytes={start}-{start + length - 1}"}
        answer = await self._transport.request(
            address, "GET", EXTENTS_PATH + extent_text(extent), headers=part | meant,
            deadline_seconds=deadline_seconds, first_byte_seconds=first_byte_seconds,
        )  # fmt: skip
        if answer.status not in (200, 206):
            raise _failure(address, extent, answer)
        whole = answer.headers.get(LENGTH_HEADER, "")
        want = min(length, int(whole) - start) if whole.isdecimal() else -1
        came_from = answer.headers.get("content-range", f"bytes {start}-").partition("-")[0]
        if len(answer.body) != want or came_from != f"bytes {start}":
            got = f"{len(answer.body)} bytes ({came_from})"
            raise ExtentDamaged(f"{extent_text(extent)} on {address}: {got} instead of {want} at {start}")
        try:
            table = base64.b64decode(answer.headers.get(SUMS_HEADER, ""), validate=True)
        except binascii.Error:
            table = b""
        block = first_damaged_block(answer.body, table)
        if block is not None:
            raise ExtentDamaged(f"{extent_text(extent)} on {address}: block {block} after {start} has a wrong CRC32C")
        return memoryview(answer.body)

    async def get_whole(
        self, place: str, extent: ExtentId, *, deadline_seconds: float, first_byte_seconds: float
    ) -> tuple[ExtentHeader, Buffer]:
        """All of the extent and what its writer said of it, checked. Raises ExtentDamaged, ExtentMissing."""
        address, meant = _whom(place)
        answer = await self._transport.request(
            address, "GET", EXTENTS_PATH + extent_text(extent), headers={EXTENT_HEADER: "1", **meant},
            deadline_seconds=deadline_seconds, first_byte_seconds=first_byte_seconds,
        )  # fmt: skip
        if answer.status != 200:
            raise _failure(address, extent, answer)
        try:
            header = unpack_extent_header(answer.headers.get(EXTENT_HEADER, ""))
        except ValueError as error:
            raise NodeFailed(f"{extent_text(extent)} on {address}: {error}") from error
        block = first_damaged_block(answer.body, header.sums)
        if block is not None:
            raise ExtentDamaged(f"{extent_text(extent)} on {address}: block {block} has a wrong CRC32C")
        return header, answer.body

    async def copy(
        self, place: str, wanted: Sequence[WantedCopy], *, node: str, deadline_seconds: float
    ) -> CopyOutcome:
        """The node, by its uuid, fetches the extents from others; what it says it stored is on stable storage."""
        order = {
            "node": node,
            "copies": [{"extent": extent_text(w.extent), "length": w.length, "sources": w.sources} for w in wanted],
        }
        reply = await self._json(place, "POST", COPIES_PATH, order, seconds=deadline_seconds)
        return CopyOutcome(
            {parse_extent_text(text) for text in reply["stored"]},
            {parse_extent_text(text): why for text, why in reply["failed"].items()},
            [(parse_extent_text(row["extent"]), row["source"], row["why"]) for row in reply["damaged"]],
        )

    async def compose(
        self,
        place: str,
        node: str,
        extent: ExtentId,
        *,
        volume: str,
        inode: int,
        chunk: int,
        mtime_ns: int,
        chunk_size: int,
        offset: int,
        parts: Iterable[tuple[ExtentId, int, int, Sequence[str]]],
        deadline_seconds: float,
    ) -> None:
        """The node, by its uuid, has the new extent on stable storage: the parts one after the other, at `offset` of
        the chunk. A part is an extent, offset and length, and the addresses of the other nodes that have it."""
        rows = [{"extent": extent_text(e), "offset": o, "length": n, "sources": list(s)} for e, o, n, s in parts]
        order = {
            "node": node, "extent": extent_text(extent), "volume": volume, "inode": inode, "chunk": chunk,
            "mtime_ns": mtime_ns, "chunk_size": chunk_size, "offset": offset, "parts": rows,
        }  # fmt: skip
        await self._json(place, "POST", COMPOSE_PATH, order, seconds=deadline_seconds)

    async def barrier(self, place: str, *, extents: Sequence[ExtentId] = (), deadline_seconds: float) -> None:
        """All that the node took before this call is on stable storage; of these extents it has lost none."""
        address, meant = _whom(place)
        body = [json.dumps({"extents": [extent_text(e) for e in extents]}).encode()] if extents else []
        answer = await self._transport.request(
            address, "POST", BARRIER_PATH, headers={"content-type": "application/json", **meant}, body=body,
            deadline_seconds=deadline_seconds, first_byte_seconds=deadline_seconds,
        )  # fmt: skip
        if answer.status != 200:
            raise NodeFailed(f"{address}: barrier: {_detail(answer)}")

    async def delete(self, place: str, order: DeleteOrder, signature: str) -> set[ExtentId]:
        """Those of the order's extents that the node does not have any more. NodeFailed when it does not obey."""
        fields = {**asdict(order), "extents": [extent_text(e) for e in order.extents], "signature": signature}
        reply = await self._json(place, "POST", DELETE_PATH, fields)
        return set(order.extents) - {parse_extent_text(text) for text in reply["failed"]}

    async def undelete(self, place: str, extents: Sequence[ExtentId] | None, seconds: float | None) -> int:
        """How many deleted extents the node brought back, of these or of all; ask again until there are none."""
        wanted = None if extents is None else [extent_text(e) for e in extents]
        reply = await self._json(place, "POST", UNDO_PATH, {"extents": wanted, "seconds": seconds})
        return len(reply["extents"])

    async def names(self, place: str, after: str | None, limit: int) -> tuple[list[ExtentId], str | None]:
        """A page of what the node holds, without lengths: no file is opened for it. And what to ask for as `after`."""
        query = f"?names_only=1&limit={limit}" + (f"&after={after}" if after else "")
        reply = await self._json(place, "GET", INVENTORY_PATH + query, None)
        return [parse_extent_text(row["id"]) for row in reply["extents"]], reply["next"]

    async def check(
        self,
        place: str,
        extents: Iterable[ExtentId],
        *,
        data: bool = False,
        deadline_seconds: float = CONTROL_SECONDS,
    ) -> dict[ExtentId, int | None]:
        """The length of each of the extents on this node; None for what it does not have, -1 for what is damaged.
        With `data` all of each is read and compared with its sums."""
        question = {"extents": [extent_text(e) for e in extents], "data": data}
        reply = await self._json(place, "POST", CHECK_PATH, question, seconds=deadline_seconds)
        return {parse_extent_text(text): length for text, length in reply["extents"].items()}

    async def inventory(self, place: str, after: str | None, limit: int) -> InventoryPage:
        query = f"?limit={limit}" + (f"&after={after}" if after else "")
        reply = await self._json(place, "GET", INVENTORY_PATH + query, None)
        return InventoryPage({parse_extent_text(row["id"]): row["length"] for row in reply["extents"]}, reply["next"])

    async def space(self, place: str) -> dict[str, Any]:
        """Who the node is, and its bytes used and free, as JSON has it."""
        return await self._json(place, "GET", SPACE_PATH, None)

    async def describe(self, place: str, extent: ExtentId) -> dict[str, Any]:
        """The replica's place on disk and its footer, as JSON has it. Raises ExtentMissing."""
        return await self._json(place, "GET", f"{EXTENTS_PATH}{extent_text(extent)}/description", None, extent)

    async def _json(
        self,
        place: str,
        method: str,
        target: str,
        content: object,
        extent: ExtentId | None = None,
        *,
        seconds: float = CONTROL_SECONDS,
    ) -> dict[str, Any]:
        address, meant = _whom(place)
        body = [json.dumps(content).encode()] if content is not None else []
        answer = await self._transport.request(
            address, method, target, headers={"content-type": "application/json", **meant}, body=body,
            deadline_seconds=seconds, first_byte_seconds=seconds,
        )  # fmt: skip
        if answer.status != 200:
            raise _failure(address, extent, answer)
        reply: dict[str, Any] = json.loads(bytes(answer.body))
        return reply


def _whom(place: str) -> tuple[str, dict[str, str]]:
    """The address, and the header that names the node that is meant."""
    uuid, _, address = place.rpartition("@")
    return address, {NODE_HEADER: uuid} if uuid else {}


def _put_target(extent: ExtentId, sync: bool) -> str:
    return f"{EXTENTS_PATH}{extent_text(extent)}" + ("?sync=1" if sync else "")


def _put_result(address: str, extent: ExtentId, answer: Answer | DcsError | None) -> bool | DcsError:
    if isinstance(answer, Answer):
        return True if answer.status in (200, 201) else _failure(address, extent, answer)
    return False if answer is None else answer


def _failure(address: str, extent: ExtentId | None, answer: Answer) -> DcsError:
    what = f"{extent_text(extent)} on {address}" if extent is not None else address
    if answer.status == 404 and extent is not None:
        return ExtentMissing(f"{what}: not there")
    if answer.status == 507:
        return NodeFull(f"{what}: no room")
    if answer.status in (416, 500) and extent is not None:
        return ExtentDamaged(f"{what}: {_detail(answer)}")
    return NodeFailed(f"{what}: {answer.status} {_detail(answer)}")


def _detail(answer: Answer) -> str:
    return bytes(answer.body[:200]).decode("utf-8", "replace")
