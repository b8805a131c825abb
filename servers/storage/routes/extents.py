"""PUT, GET, HEAD and DELETE of extents, and the barrier: the routes that happen per chunk.

Handlers of the fast lane, offered through ASGI too. They decide what needs a thread: a deletion and a
store take one hop, but what of a small store waits for no disk takes none, nor does a small read that the
kernel has in memory: waking a thread costs more than what it would do.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from servers.protocol.checksum import Buffer
from servers.protocol.ids import ExtentId, extent_text, parse_extent_text
from servers.protocol.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, KIB
from servers.protocol.storage_api import (
    BARRIER_PATH,
    EXTENT_HEADER,
    EXTENTS_PATH,
    LENGTH_HEADER,
    NODE_HEADER,
    SUMS_HEADER,
    ExtentHeader,
    unpack_extent_header,
)
from servers.serving.lane import Deferred, Handler, Lane, LaneReply, LaneRequest, json_reply, parse_query
from servers.storage.node import StorageNode
from servers.storage.replica import Replica
from servers.storage.routes.refusals import REFUSALS, BadRequest, NotMeant, RangeNotThere, refusal
from servers.storage.syncer import SyncFailed

READ_AT_ONCE_BYTES_MAX = 128 * KIB
STORE_AT_ONCE_BYTES_MAX = 64 * KIB
REPLY_MEMORY_SECONDS = 5.0
BARRIER_BYTES_MAX = 1024 * KIB
"""Of a request that names BARRIER_EXTENTS_MAX extents."""
NAMED_MAX = 10
"""Of extents that are lost; more make no difference to who asked."""

logger = logging.getLogger(__name__)

_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})", re.ASCII)
_CREATED = json_reply(201, {"stored": True})
_HAD = json_reply(200, {"stored": False})
_SYNCED = json_reply(200, {"synced": True})


class ExtentRoutes:
    def __init__(self, node: StorageNode) -> None:
        self._node = node
        self._store = node.store

    def lanes(self) -> list[Lane]:
        return [
            Lane("PUT", EXTENTS_PATH, self._meant(self.put), body_bytes_max=CHUNK_BYTES_MAX),
            Lane("GET", EXTENTS_PATH, self._meant(self.get)),
            Lane("HEAD", EXTENTS_PATH, self._meant(self.head)),
            Lane("POST", BARRIER_PATH, self._meant(self.barrier), body_bytes_max=BARRIER_BYTES_MAX),
        ]

    def _meant(self, handler: Handler) -> Handler:
        """The handler, for requests that mean this node or do not say."""
        uuid = self._node.uuid

        @functools.wraps(handler)
        def handle(request: LaneRequest) -> LaneReply | Awaitable[LaneReply]:
            return handler(request) if request.headers.get(NODE_HEADER, uuid) == uuid else refusal(NotMeant(uuid))

        return handle

    def put(self, request: LaneRequest) -> LaneReply | Awaitable[LaneReply]:
        """Stores the body under the id; with `sync=1` it is on stable storage before the answer.

        201 stored, 200 had it already, 409 has other bytes under this id, 507 no room.
        """
        try:
            extent, sync, header = _extent(request), _sync(request), _header(request)
        except BadRequest as error:
            return refusal(error)

        def store() -> LaneReply:
            return _CREATED if self._store.put(extent, header, request.body, sync=sync) else _HAD

        # One that is here already is read back from the disk.
        is_slow = len(request.body) > STORE_AT_ONCE_BYTES_MAX or self._store.opened(extent) is not None
        if is_slow or self._store.is_crowded() or self._store.must_make_room(2 * STORE_AT_ONCE_BYTES_MAX):
            return _in_thread(self._node.writers, store)
        return self._store_and_sync(extent, header, request.body) if sync else _guarded(store)

    def _store_and_sync(
        self, extent: ExtentId, header: ExtentHeader | None, body: Buffer
    ) -> LaneReply | Awaitable[LaneReply]:
        """Only what waits for the disk is done in a thread: two at work hand the interpreter's lock to and fro."""
        try:
            placed, is_new = self._store.place(extent, header, body)
        except REFUSALS as error:
            return refusal(error)

        def sync() -> LaneReply:
            self._store.sync(placed)
            return _CREATED if is_new else _HAD

        return _in_thread(self._node.writers, sync)

    def get(self, request: LaneRequest) -> LaneReply | Awaitable[LaneReply]:
        """The data, or the part of it that `Range: bytes=a-b` names, with the sums of the blocks it touches."""
        try:
            extent = _extent(request)
            replica = self._store.opened(extent)
            answer = self._get_at_once(request, replica) if replica is not None else None
        except REFUSALS as error:
            return refusal(error)
        return answer or self._get_from_disk(request, extent, replica)

    def _get_at_once(self, request: LaneRequest, replica: Replica) -> LaneReply | None:
        """None unless it is little and in the kernel's memory."""
        start, end = _range(request, replica.footer.length)
        piece = self._store.read_cached(replica, start, end) if end - start <= READ_AT_ONCE_BYTES_MAX else None
        return None if piece is None else _data_reply(request, replica, start, piece)

    async def _get_from_disk(self, request: LaneRequest, extent: ExtentId, replica: Replica | None) -> LaneReply:
        budget, loop, threads = self._node.replies, asyncio.get_running_loop(), self._node.readers
        taken = 0
        try:
            if replica is None:
                replica = await loop.run_in_executor(threads, self._store.open, extent)
                answer = self._get_at_once(request, replica)  # Of a small replica the data came with its footer.
                if answer is not None:
                    return answer
            start, end = _range(request, replica.footer.length)
            await budget.take(end - start, REPLY_MEMORY_SECONDS)
            taken = end - start
            piece = await loop.run_in_executor(threads, self._store.read, replica, start, end)
            size, taken = taken, 0
            return _data_reply(request, replica, start, piece, lambda: budget.give(size))
        except TimeoutError:
            return json_reply(503, {"detail": "too many replies at once; try again"})
        except REFUSALS as error:
            return refusal(error)
        finally:
            budget.give(taken)

    def head(self, request: LaneRequest) -> Awaitable[LaneReply]:
        """The length of the extent, and the sums of all its blocks."""

        def look() -> LaneReply:
            replica = self._store.open(_extent(request))
            length = replica.footer.length
            return LaneReply(200, (), _data_headers(replica, 0, length), content_length=length)

        return _in_thread(self._node.readers, look)

    async def barrier(self, request: LaneRequest) -> LaneReply:
        """Answers when all that was stored before is on stable storage; 500 names what was lost instead.

        The body may name extents, {"extents": [...]}: those are then looked for, too.
        """
        try:
            extents = _named(request)
            await self._node.syncer.barrier()
            doubtful = [extent for extent in extents if not self._store.is_from_now(extent)]
            if doubtful:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._node.readers, self._find_whole, doubtful)
        except (BadRequest, SyncFailed, TimeoutError, OSError) as error:
            return refusal(error)
        return _SYNCED

    def _find_whole(self, extents: Sequence[ExtentId]) -> None:
        """Raises SyncFailed. Blocks."""
        lost = [extent_text(extent) for extent in extents if not self._store.is_whole(extent)]
        if lost:
            raise SyncFailed(f"not here any more: {', '.join(lost[:NAMED_MAX])}")


def _in_thread(threads: ThreadPoolExecutor, work: Callable[[], LaneReply]) -> Deferred:
    answer, loop = Deferred(), asyncio.get_running_loop()

    def run() -> None:
        try:
            reply = _guarded(work)
        except BaseException as error:  # Whatever it is, somebody waits.
            logger.exception("a request of an extent failed")
            reply = json_reply(500, {"detail": f"internal error: {type(error).__name__}"})
        loop.call_soon_threadsafe(answer.set, reply)

    threads.submit(run)
    return answer


def _guarded(work: Callable[[], LaneReply]) -> LaneReply:
    try:
        return work()
    except REFUSALS as error:
        return refusal(error)


def _extent(request: LaneRequest) -> ExtentId:
    try:
        return parse_extent_text(request.path[len(EXTENTS_PATH) :])
    except ValueError as error:
        raise BadRequest(str(error)) from error


def _sync(request: LaneRequest) -> bool:
    value = parse_query(request.query).get("sync", "0")
    if value not in ("0", "1"):
        raise BadRequest("sync is 0 or 1")
    return value == "1"


def _header(request: LaneRequest) -> ExtentHeader | None:
    packed = request.headers.get(EXTENT_HEADER)
    if packed is None:
        return None
    try:
        return unpack_extent_header(packed)
    except ValueError as error:
        raise BadRequest(str(error)) from error


def _named(request: LaneRequest) -> list[ExtentId]:
    """The extents that a barrier is asked for in particular."""
    if not request.body:
        return []
    try:
        return [parse_extent_text(text) for text in json.loads(bytes(request.body))["extents"]]
    except (ValueError, TypeError, KeyError) as error:
        raise BadRequest(f'a barrier takes {{"extents": [...]}}: {error}') from error


def _range(request: LaneRequest, length: int) -> tuple[int, int]:
    """The bytes [start, end) that are asked for."""
    text = request.headers.get("range")
    if text is None:
        return 0, length
    match = _RANGE.fullmatch(text)
    if match is None:
        raise BadRequest("one range can be asked for: bytes=first-last or bytes=first-")
    start = int(match[1])
    end = min(int(match[2]) + 1, length) if match[2] else length
    if start >= length:
        raise RangeNotThere(length)
    if end <= start:
        raise BadRequest("the range ends before it begins")
    return start, end


def _data_headers(replica: Replica, start: int, end: int) -> tuple[tuple[str, str], ...]:
    sums = replica.footer.sums[start // BLOCK_BYTES * 4 : -(-end // BLOCK_BYTES) * 4]
    return (
        ("content-type", "application/octet-stream"),
        (LENGTH_HEADER, str(replica.footer.length)),
        (SUMS_HEADER, base64.b64encode(sums).decode("ascii")),
    )


def _data_reply(
    request: LaneRequest, replica: Replica, start: int, piece: Buffer, sent: Callable[[], None] | None = None
) -> LaneReply:
    end, length = start + len(piece), replica.footer.length
    headers = _data_headers(replica, start, end)
    if EXTENT_HEADER in request.headers:
        headers = (*headers, (EXTENT_HEADER, replica.footer.header.pack()))
    if "range" not in request.headers:
        return LaneReply(200, (piece,), headers, sent=sent)
    return LaneReply(206, (piece,), (*headers, ("content-range", f"bytes {start}-{end - 1}/{length}")), sent=sent)
