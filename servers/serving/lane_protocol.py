r"""The fast lane: requests that happen per chunk or per system call, served without ASGI.

`lane_protocol` makes the protocol class that uvicorn is given as `http=`. A connection carries
both kinds of requests in any order: one whose request line belongs to a registered `Lane` is
read and answered here; all others go through httptools and the ASGI app as ever. An app
should offer the lanes' routes too (`lane_route`): requests that a client pipelines behind an
ASGI request are answered there.

A small body is handed on as a view of what was read. A big one is received straight into its
own buffer, by a `BufferedProtocol` that takes the connection over meanwhile, so a byte is
copied once, out of the kernel; the buffer is used again, because making the kernel zero 8 MiB
costs as much as receiving them.

                 head without          memory          all           handler       written
    IDLE ───────▶ its body ─▶ WAITING ────────▶ BODY ──────▶ HANDLING ──────▶ REPLYING ──▶ IDLE
      │ ▲           └──────────── whole ────────────────────▶   │
      ▼ │                                                       └─ reply small: at once ─▶ IDLE
     (ASGI)      refused before its body was read ─▶ DRAINING ─▶ closed

Knows HTTP, not what the requests mean. Event loop only: handlers run on it and must not block;
one request of a connection at a time, what comes meanwhile waits in `_held`.
"""

from __future__ import annotations

import asyncio
import enum
import http
import logging
import mmap
from collections.abc import Callable, Sequence
from functools import lru_cache

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from servers.protocol.seal import (
    DAMAGED,
    SEAL_HEADER,
    answer_words,
    is_request_body_whole,
    is_request_head_whole,
    seal_words,
)
from servers.protocol.storage_api import SUMS_HEADER
from servers.serving.access import DENIED, Secret
from servers.serving.lane import HEAD_BYTES_MAX, Deferred, Lane, LaneReply, LaneRequest, json_reply
from servers.serving.memory import BufferPool, MemoryBudget, buffer_bytes
from servers.serving.request_head import Head, Refusal, parse_sealed_head

SMALL_BODY_BYTES_MAX = 64 * 1024
"""Up to here a body may be put together from what was read; it is not worth a buffer of its own."""
BODIES_BYTES_MAX = 256 * 1024 * 1024
"""Of all big bodies held at once; more waits for MEMORY_WAIT_SECONDS, then is a 503."""
IDLE_BUFFERS_BYTES_MAX = 64 * 1024 * 1024
MEMORY_WAIT_SECONDS = 10.0
STALL_SECONDS = 10.0
"""Without one byte of a request that has begun, or of a reply being written: the connection is cut."""
DRAIN_SECONDS = 2.0
"""For a refused sender to notice: closing with its bytes unread would reset the connection under the answer."""
TICK_SECONDS = 1.0
JOIN_BYTES_MAX = 32 * 1024
"""Replies up to here are copied into one write; larger ones are written piece by piece."""

KNOWN_HEADERS_MAX = 1
"""Replies with more headers have sums or lengths among them: few of their heads come again."""
KNOWN_REPLY_HEADS = 64

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

logger = logging.getLogger(__name__)


def lane_protocol(lanes: Sequence[Lane], secret: Secret, budget: MemoryBudget | None = None) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn's `http=`; all its connections share one memory budget."""
    shared = budget if budget is not None else MemoryBudget(BODIES_BYTES_MAX)
    for lane in lanes:
        if buffer_bytes(lane.body_bytes_max) > shared.bytes_max:
            raise ValueError(f"a body of {lane.path} may be larger than the memory for all bodies")
    pool = BufferPool(IDLE_BUFFERS_BYTES_MAX)
    bound = {"_lanes": tuple(lanes), "_secret": secret, "_budget": shared, "_pool": pool}
    return type("LaneProtocol", (_LaneProtocol,), bound)


class _State(enum.Enum):
    IDLE = enum.auto()
    WAITING = enum.auto()
    BODY = enum.auto()
    HANDLING = enum.auto()
    REPLYING = enum.auto()
    DRAINING = enum.auto()
    CLOSED = enum.auto()


async def _never(_: LaneRequest) -> LaneReply:
    raise AssertionError("no request belongs to this lane")


_UNDECIDED = Lane("UNDECIDED", "/", _never)
"""Stands for: more bytes are needed to tell."""
_NO_HEAD = Head("", "/", "", {}, False, 0)


class _BodyReceiver(asyncio.BufferedProtocol):
    """Takes the connection over while a body is received into its buffer."""

    def __init__(self, owner: _LaneProtocol, body: memoryview, received: int) -> None:
        self._owner = owner
        self._body = body
        self._received = received

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._body[self._received :]

    def buffer_updated(self, nbytes: int) -> None:
        self._received += nbytes
        self._owner.body_progressed(self._body if self._received == len(self._body) else None)

    def eof_received(self) -> None:
        """The sender left in the middle: the transport closes, and connection_lost follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()


class _LaneProtocol(HttpToolsProtocol):
    _lanes: tuple[Lane, ...]
    _secret: Secret
    _budget: MemoryBudget
    _pool: BufferPool

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # As uvicorn has it.
        super().connection_made(transport)
        self._state = _State.IDLE
        self._held = b""
        self._asgi_message_open = False
        self._head = _NO_HEAD
        self._lane = _UNDECIDED
        self._seal = ""
        self._small_body_bytes = 0
        self._taken_bytes = 0
        self._buffer: mmap.mmap | None = None
        self._waiter: asyncio.Task[None] | None = None
        self._sent: Callable[[], None] | None = None
        self._unsent_bytes = 0
        self._stopping = False
        self._deadline = self.loop.time() + self.timeout_keep_alive
        self._timer = self.loop.call_later(TICK_SECONDS, self._tick)

    def connection_lost(self, exc: Exception | None) -> None:
        before, self._state = self._state, _State.CLOSED
        self._timer.cancel()
        self._held = b""
        if self._waiter is not None:
            self._waiter.cancel()
        if before is not _State.HANDLING:
            self._let_body_go(reuse=True)
        self._let_reply_go()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _State.DRAINING:
            return
        self._deadline = self.loop.time() + STALL_SECONDS
        if state is _State.BODY:
            self._held += data
            self._call_if_whole()
            self._advance()
        elif state is not _State.IDLE:
            self._held += data
            self.flow.pause_reading()
        elif self._asgi_busy():
            super().data_received(data)
        else:
            self._held = self._held + data if self._held else data
            self._advance()

    def shutdown(self) -> None:
        """Finish what is under way, then close."""
        if self._state is _State.IDLE or self._asgi_busy():
            super().shutdown()
        else:
            self._stopping = True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._state is _State.REPLYING:
            self._replied()
            self._advance()

    # ASGI requests: where one begins and ends, so that the lane knows when the connection is between requests.

    def on_message_begin(self) -> None:
        self._asgi_message_open = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._asgi_message_open = False
        super().on_message_complete()

    def _asgi_busy(self) -> bool:
        return self._asgi_message_open or (self.cycle is not None and not self.cycle.response_complete)

    # The lane, in the order of a request's life.

    def _advance(self) -> None:
        """Begins the requests that `_held` starts with, until one takes its time or more bytes are needed."""
        while self._state is _State.IDLE and self._held:
            lane = self._lane_of(self._held)
            if lane is _UNDECIDED:
                return
            if lane is None:
                data, self._held = self._held, b""
                super().data_received(data)
                return
            end = self._held.find(b"\r\n\r\n") + 4
            if end < 4 and len(self._held) <= HEAD_BYTES_MAX:
                return
            self._unset_keepalive_if_required()
            try:
                if end < 4 or end > HEAD_BYTES_MAX:
                    raise Refusal(431, f"the head is larger than {HEAD_BYTES_MAX} bytes")
                self._begin(lane, end)
            except Refusal as refusal:
                self._refuse(refusal.status, refusal.detail)

    def _lane_of(self, data: bytes) -> Lane | None:
        undecided = None
        for lane in self._lanes:
            takes = lane.takes(data)
            if takes:
                return lane
            if takes is None:
                undecided = _UNDECIDED
        return undecided

    def _begin(self, lane: Lane, head_bytes: int) -> None:
        data = self._held
        head, seal = parse_sealed_head(data[:head_bytes], known=lane.is_one_path)
        if seal and not is_request_head_whole(seal, head.sum):
            raise Refusal(400, DAMAGED)
        self._seal = seal
        if not self._secret.accepts(head.headers.get("authorization", "")):
            raise Refusal(401, DENIED)
        length = head.content_length(needed=lane.body_bytes_max > 0)
        if length > lane.body_bytes_max:
            raise Refusal(413, f"a body here has at most {lane.body_bytes_max} bytes, not {length}")
        self._lane, self._head = lane, head
        self._held = data[head_bytes:]
        if length <= max(SMALL_BODY_BYTES_MAX, len(self._held)):
            self._state = _State.BODY
            self._small_body_bytes = length
            if len(self._held) < length:
                self._ask_to_continue()
            self._call_if_whole()
        elif self._budget.try_take(buffer_bytes(length)):
            self._receive(length)
        else:
            self._state = _State.WAITING
            self.flow.pause_reading()
            self._waiter = self.loop.create_task(self._receive_later(length))

    def _call_if_whole(self) -> None:
        data, length = self._held, self._small_body_bytes
        if len(data) >= length:
            self._held = data[length:]
            self._call(memoryview(data)[:length])

    def _ask_to_continue(self) -> None:
        if self._head.headers.get("expect", "").lower() == "100-continue":
            self.transport.write(_CONTINUE)

    async def _receive_later(self, length: int) -> None:
        try:
            await self._budget.take(buffer_bytes(length), MEMORY_WAIT_SECONDS)
        except TimeoutError:
            self._waiter = None
            self._refuse(503, "too many bodies at once; try again")
            return
        self._waiter = None
        self._deadline = self.loop.time() + STALL_SECONDS
        self._receive(length)
        self._advance()

    def _receive(self, length: int) -> None:
        self._state = _State.BODY
        self._taken_bytes = buffer_bytes(length)
        self._buffer = self._pool.get(self._taken_bytes)
        body = memoryview(self._buffer)[:length]
        have = min(len(self._held), length)  # While a request waits for memory, more than its body may come.
        body[:have] = self._held[:have]
        self._held = self._held[have:]
        if have == length:
            self._call(body)
            return
        self._ask_to_continue()
        self._hand_over(_BodyReceiver(self, body, have))
        self.flow.resume_reading()

    def body_progressed(self, whole: memoryview | None) -> None:
        self._deadline = self.loop.time() + STALL_SECONDS
        if whole is not None:
            self._hand_over(self)
            self._call(whole)
            self._advance()

    def _hand_over(self, protocol: asyncio.BaseProtocol) -> None:
        """The transport's reader is chosen when reading starts, so reading stops here; the caller resumes it."""
        self.flow.pause_reading()
        self.transport.set_protocol(protocol)

    def _call(self, body: memoryview) -> None:
        if self._seal and not is_request_body_whole(self._seal, body):
            self._seal = ""
            self._let_body_go(reuse=True)
            self._refuse(400, DAMAGED)
            return
        self._state = _State.HANDLING
        head = self._head
        try:
            answer = self._lane.handler(LaneRequest(head.method, head.path, head.query, head.headers, body))
        except Exception as error:  # noqa: BLE001  # The border: whatever it was becomes a 500; the log tells.
            answer = self._failed(error)
        if isinstance(answer, LaneReply):
            self._reply(answer)
            return
        if isinstance(answer, Deferred):
            answer.then(self._deferred_came)
            return
        future = asyncio.ensure_future(answer)
        self.tasks.add(future)  # type: ignore[arg-type]  # uvicorn counts and cancels them; any future will do.
        future.add_done_callback(self._answered)

    def _deferred_came(self, reply: LaneReply) -> None:
        try:
            self._reply(reply)
            self._advance()
        except Exception:  # Whoever set it has others to serve.
            logger.exception("a reply could not be sent")
            self.transport.abort()

    def _answered(self, future: asyncio.Future[LaneReply]) -> None:
        self.tasks.discard(future)
        try:
            reply = future.result()
        except asyncio.CancelledError:
            self._let_body_go(reuse=False)  # A thread may still be reading it.
            reply = json_reply(503, {"detail": "the server is stopping"})
        except Exception as error:  # noqa: BLE001  # As above.
            reply = self._failed(error)
        self._reply(reply)
        self._advance()

    def _failed(self, error: Exception) -> LaneReply:
        logger.error("%s %s failed", self._head.method, self._head.path, exc_info=error)
        return json_reply(500, {"detail": f"internal error: {type(error).__name__}"})

    def _reply(self, reply: LaneReply) -> None:
        self._let_body_go(reuse=True)
        self._sent = reply.sent
        if self._state is _State.CLOSED or self.transport.is_closing():
            self._let_reply_go()
            return
        self.server_state.total_requests += 1
        keep_alive = self._head.keep_alive and not self._stopping
        self._write(reply, keep_alive, with_body=self._head.method != "HEAD")
        self._state = _State.REPLYING
        if not keep_alive:
            self.transport.close()
        if self.flow.write_paused:
            self._deadline = self.loop.time() + STALL_SECONDS
        else:
            self._replied()

    def _write(self, reply: LaneReply, keep_alive: bool, with_body: bool = True) -> None:
        length = sum(map(len, reply.body))
        stated = length if reply.content_length is None else reply.content_length
        known = _known_reply_head if len(reply.headers) <= KNOWN_HEADERS_MAX else _reply_head
        start, words, has_sums = known(reply.status, reply.headers)
        seal = ""
        if self._seal:
            body = None if has_sums else reply.body if with_body else ()
            seal = f"{SEAL_HEADER}: {seal_words(self._seal, words, body)}\r\n"
        close = "" if keep_alive else "connection: close\r\n"
        size = f"content-length: {stated}\r\n" if reply.status != http.HTTPStatus.NO_CONTENT else ""
        head = f"{start}{size}{close}{seal}\r\n".encode("latin-1")
        if not with_body or not length:
            self.transport.write(head)
        elif length <= JOIN_BYTES_MAX:
            self.transport.write(b"".join((head, *reply.body)))
        else:
            self.transport.write(head)
            for piece in reply.body:
                self.transport.write(piece)

    def _replied(self) -> None:
        """The reply is written but for what the transport buffers: the connection is free for the next request."""
        self._let_reply_go()
        self._head, self._lane, self._seal = _NO_HEAD, _UNDECIDED, ""
        if self.transport.is_closing():
            return
        self._state = _State.IDLE
        self._deadline = self.loop.time() + (STALL_SECONDS if self._held else self.timeout_keep_alive)
        self.flow.resume_reading()

    def _refuse(self, status: int, detail: str) -> None:
        """Answers, and closes when the sender had time to read it; what it still sends is not read."""
        self._state = _State.DRAINING
        self._held = b""
        if self.transport.is_closing():
            return
        headers = (("www-authenticate", "Bearer"),) if status == 401 else ()
        self._write(json_reply(status, {"detail": detail}, headers), keep_alive=False)
        self._deadline = self.loop.time() + DRAIN_SECONDS
        self.transport.write_eof()
        self.flow.resume_reading()

    def _let_body_go(self, reuse: bool) -> None:
        taken, self._taken_bytes = self._taken_bytes, 0
        buffer, self._buffer = self._buffer, None
        if taken:
            self._budget.give(taken)
        if buffer is not None and reuse:
            self._pool.put(buffer)

    def _let_reply_go(self) -> None:
        sent, self._sent = self._sent, None
        if sent is not None:
            sent()

    def _tick(self) -> None:
        """Once a second: cuts the connection when its deadline is over."""
        now = self.loop.time()
        if self._state is _State.REPLYING:
            unsent = self.transport.get_write_buffer_size()
            if unsent != self._unsent_bytes:
                self._unsent_bytes = unsent
                self._deadline = now + STALL_SECONDS
        if now >= self._deadline and not self._waits_for_us():
            self.transport.abort()
            return
        self._timer = self.loop.call_later(TICK_SECONDS, self._tick)

    def _waits_for_us(self) -> bool:
        """Whether the client has done its part: a handler works, the ASGI app does, or uvicorn's timer watches."""
        if self._state in (_State.HANDLING, _State.WAITING):
            return True
        if self._state is not _State.IDLE or self._asgi_message_open:
            return False
        return self._asgi_busy() or self.timeout_keep_alive_task is not None


def _reply_head(status: int, headers: tuple[tuple[str, str], ...]) -> tuple[str, str, bool]:
    """The status line and headers, what of them counts in a seal, and whether the body has sums of its own."""
    start = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
    lines, named = "".join(f"{name}: {value}\r\n" for name, value in headers), dict(headers)
    return start + lines, answer_words(status, named), SUMS_HEADER in named


_known_reply_head = lru_cache(KNOWN_REPLY_HEADS)(_reply_head)
