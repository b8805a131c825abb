"""HTTP/1.1 over plain sockets: the little of it that the mount needs, at the least CPU.

Plugged under `servers.client` by the mount. Knows requests and answers, not what they mean;
decides nothing but one thing: a request that fails on a kept connection before any byte of
an answer is sent again on a new one. Every request of ours may be sent twice. All are sealed:
what was damaged on its way is as a connection that broke.

    idle connection ──take──▶ send ──▶ answer's head ──▶ body ──▶ idle again
                               │            │             │
                               └────────────┴─────────────┴──▶ closed: error, time over, cancelled

One trio task uses a connection at a time. A request has one cancel scope, whose deadline
moves from step to step: a peer that makes no progress is noticed in `first_byte_seconds`
while sending and waiting, in SLOW_SECONDS while receiving.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import trio
from trio.lowlevel import wait_readable, wait_writable

from servers.client.answer_head import body_length, parse_head
from servers.client.http import CONNECT_SECONDS, FIRST_BYTE_SECONDS, Answer
from servers.protocol.checksum import Buffer
from servers.protocol.errors import AccessDenied, DcsError, TryAgain
from servers.protocol.limits import KIB, MIB
from servers.protocol.seal import SEAL_HEADER, has_sums, is_answer_whole, request_sum, seal_of

CONNECTIONS_PER_ADDRESS_MAX = 16
IDLE_SECONDS_MAX = 30.0
"""A connection that was idle for longer is closed when another one becomes idle."""
QUIET_SECONDS = 0.5
"""A connection that was used within this is not looked at before it is used again."""
HEAD_BYTES_MAX = 64 * KIB
BODY_BYTES_MAX = 80 * MIB
"""The largest extent and some room for what the naming server may answer to a batch."""
SLOW_SECONDS = 2.0
SLOW_BYTES = 32 * KIB
"""A body must go on by this much, or end, every SLOW_SECONDS."""
FIRST_READ_BYTES = 64 * KIB
LAST_LOOK_SECONDS = 0.05
HEADS_KEPT = 256
IOV_MAX = 1024
"""Pieces in one sendmsg(2); limits.h."""


class TrioTransport:
    """A `servers.client.http.Transport` for the mount daemon."""

    def __init__(self, secret: str, *, connections_max: int = CONNECTIONS_PER_ADDRESS_MAX) -> None:
        self._bearer = f"Bearer {secret}"
        self._connections_max = connections_max
        self._pools: dict[str, _Pool] = {}
        self._closed = False
        self._requests = self._connects = self._sent_again = 0

    async def request(
        self,
        address: str,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Sequence[Buffer] = (),
        first_byte_seconds: float = FIRST_BYTE_SECONDS,
        deadline_seconds: float = 30.0,
    ) -> Answer:
        self._requests += 1
        head, seal = self._head(address, method, target, headers, body)
        now = trio.current_time()
        end = now + deadline_seconds
        with trio.CancelScope(deadline=min(end, now + first_byte_seconds)) as scope:
            timer = _Timer(scope, end)
            try:
                answer = await self._exchange(address, method, seal, [head, *body], timer, first_byte_seconds)
            except OSError as error:
                raise TryAgain(f"{address}: {timer.step}: {error}") from error
        if scope.cancelled_caught:
            raise TryAgain(f"{address}: {timer.step}: timed out")
        if answer.status == 401:
            raise AccessDenied(f"{address} does not accept this cluster's secret")
        return answer

    async def request_at_once(
        self,
        addresses: Sequence[str],
        method: str,
        target: str,
        *,
        headers: Sequence[Mapping[str, str]],
        body: Sequence[Buffer],
        seconds: float,
    ) -> list[Answer | DcsError | None]:
        """As `servers.client.http.AtOnce` has it: by one task, over connections that are idle. What a socket does
        not take whole at once is not waited for."""
        answers: list[Answer | DcsError | None] = [None] * len(addresses)
        asked: list[tuple[int, _Connection]] = []
        late: list[int] = []
        end = trio.current_time() + seconds
        seals: dict[int, str] = {}
        try:
            for index, address in enumerate(addresses):
                connection = self._idle(address)
                if connection is not None:
                    asked.append((index, connection))
                    head, seals[index] = self._head(address, method, target, headers[index], body)
                    connection.send_at_once([head, *body])
            self._requests += len(asked)
            last = asked[-1][1] if asked else None
            for index, connection in reversed(asked):
                # When the one that was asked last has answered, most others have; and all long since when one hangs.
                with trio.move_on_at(max(end, trio.current_time() + LAST_LOOK_SECONDS)) as scope:
                    timer = _Timer(scope, scope.deadline)
                    with contextlib.suppress(OSError):
                        answer, keep = await connection.receive(method, timer, looks_first=connection is not last)
                        self._pools[addresses[index]].believe(answer, seals[index])
                        answers[index], connection.reusable = answer, keep
                if scope.cancelled_caught:
                    late.append(index)
        finally:
            for index, connection in asked:
                self._give_back(addresses[index], connection)
        if len(late) < len(asked):
            for index in late:
                answers[index] = TryAgain(f"{addresses[index]}: waiting for the answer: timed out")
        for index, found in enumerate(answers):
            if isinstance(found, Answer) and found.status == 401:
                answers[index] = AccessDenied(f"{addresses[index]} does not accept this cluster's secret")
        return answers

    def _head(
        self, address: str, method: str, target: str, headers: Mapping[str, str] | None, body: Sequence[Buffer]
    ) -> tuple[bytes, str]:
        """The request's head, and its seal."""
        fields = (
            ("authorization", self._bearer),
            ("content-length", str(sum(map(len, body)))),
            *(headers or {}).items(),
        )
        # Who posts, posts to few routes: the heads come again. All others name an extent.
        start_of = _known_head_start if method == "POST" else _head_start
        start, sum_of_head, is_summed = start_of(address, method, target, fields)
        seal = seal_of(sum_of_head, None if is_summed else body)
        return f"{start}{SEAL_HEADER}: {seal}\r\n\r\n".encode("latin-1"), seal

    async def close(self) -> None:
        """Idle connections are closed; those in use will be when their request ends."""
        self._closed = True
        for pool in self._pools.values():
            while pool.idle:
                pool.idle.pop().sock.close()

    def statistics(self) -> dict[str, int]:
        return {
            "requests": self._requests,
            "connects": self._connects,
            "sent_again": self._sent_again,
            "idle_connections": sum(len(pool.idle) for pool in self._pools.values()),
        }

    def _idle(self, address: str) -> _Connection | None:
        """A connection to work with now, to be given back; None when there is none without waiting."""
        pool = self._pools.get(address)
        if pool is None or not pool.try_enter():
            return None
        connection = pool.take()
        if connection is None:
            pool.leave()
        return connection

    def _give_back(self, address: str, connection: _Connection) -> None:
        pool = self._pools[address]
        pool.leave()
        if connection.reusable and not self._closed:
            pool.put_back(connection)
        else:
            connection.sock.close()

    async def _exchange(
        self, address: str, method: str, seal: str, request: Sequence[Buffer], timer: _Timer, first_byte_seconds: float
    ) -> Answer:
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = _Pool(self._connections_max)
        if not pool.try_enter():
            timer.allow(math.inf, "waiting for a free connection")
            await pool.wait_to_enter()
            timer.allow(first_byte_seconds, "sending the request")
        is_repeated = False
        try:
            connection = pool.take()
            if connection is not None:
                try:
                    return await self._on(connection, pool, method, seal, request, timer, first_byte_seconds)
                except OSError:
                    if connection.answered:
                        raise
                self._sent_again += 1
                is_repeated = True
            timer.allow(CONNECT_SECONDS, "connecting")
            self._connects += 1
            connection = _Connection(await _connect(address))
            timer.allow(first_byte_seconds, "sending the request")
            answer = await self._on(connection, pool, method, seal, request, timer, first_byte_seconds)
            return replace(answer, is_repeated=True) if is_repeated else answer
        finally:
            pool.leave()

    async def _on(
        self,
        connection: _Connection,
        pool: _Pool,
        method: str,
        seal: str,
        request: Sequence[Buffer],
        timer: _Timer,
        first_byte_seconds: float,
    ) -> Answer:
        """The request's answer. The connection is idle in the pool afterwards, or closed."""
        connection.reusable = False
        try:
            whole = await connection.send(request, timer, first_byte_seconds)
            timer.expect(first_byte_seconds, "waiting for the answer")
            answer, keep = await connection.receive(method, timer)
            pool.believe(answer, seal)
            connection.reusable = keep and whole and not self._closed
            return answer
        finally:
            if connection.reusable:
                pool.put_back(connection)
            else:
                connection.sock.close()


def _head_start(address: str, method: str, target: str, fields: tuple[tuple[str, str], ...]) -> tuple[str, int, bool]:
    """A request's head but for its seal, the sum of it, and whether its body has sums of its own."""
    headers = dict(fields)
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields])
    start = f"{method} {target} HTTP/1.1\r\nhost: {address}\r\n{lines}"
    return start, request_sum(method, target, headers), has_sums(method, headers)


_known_head_start = lru_cache(HEADS_KEPT)(_head_start)


class _Timer:
    """The one cancel scope of a request, and the step that it now limits."""

    __slots__ = ("_end", "_is_new", "_scope", "step")

    def __init__(self, scope: trio.CancelScope, end: float) -> None:
        self._scope = scope
        self._end = end
        self._is_new = True
        self.step = "sending the request"

    def expect(self, seconds: float, step: str) -> None:
        """As `allow`, but where nothing was waited for the scope was opened just now, for so long."""
        self.step = step
        if not self._is_new:
            self.allow(seconds, step)

    def allow(self, seconds: float, step: str) -> None:
        """The step may take this long, within the request's own deadline."""
        self._is_new = False
        self.step = step
        self._scope.deadline = min(self._end, trio.current_time() + seconds)


class _Pool:
    """The connections of one address: a bounded number, the one used last taken first."""

    __slots__ = ("_places", "_seals", "idle")

    def __init__(self, connections_max: int) -> None:
        self._places = trio.Semaphore(connections_max, max_value=connections_max)
        self._seals = False
        """Whether the server has sealed an answer: then it seals all that it understands."""
        self.idle: deque[_Connection] = deque()

    async def wait_to_enter(self) -> None:
        await self._places.acquire()

    def try_enter(self) -> bool:
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            return False
        return True

    def leave(self) -> None:
        self._places.release()

    def believe(self, answer: Answer, seal: str) -> None:
        """The answer to the request of this seal came as it was sent. Raises ConnectionError."""
        if self._seals or SEAL_HEADER in answer.headers:
            if not is_answer_whole(seal, answer.status, answer.headers, answer.body):
                raise ConnectionError("request or answer was damaged on its way")
            self._seals = True

    def take(self) -> _Connection | None:
        """An idle connection that the other side has not closed, but for one used just now: sending tells as well."""
        known_since = trio.current_time() - QUIET_SECONDS
        while self.idle:
            connection = self.idle.pop()
            if connection.idle_since > known_since or connection.is_quiet():
                connection.answered = connection.reusable = False
                return connection
            connection.sock.close()
        return None

    def put_back(self, connection: _Connection) -> None:
        connection.idle_since = now = trio.current_time()
        while self.idle and self.idle[0].idle_since < now - IDLE_SECONDS_MAX:
            self.idle.popleft().sock.close()
        self.idle.append(connection)


class _Connection:
    __slots__ = ("answered", "idle_since", "reusable", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.answered = False
        """Whether a byte of the present request's answer has come."""
        self.reusable = False
        """Whether the last answer was whole, and left the connection open."""
        self.idle_since = 0.0

    def is_quiet(self) -> bool:
        """Nothing to read: neither an end nor an answer to something that nobody asked."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def send(self, request: Sequence[Buffer], timer: _Timer, progress_seconds: float) -> bool:
        """Whether all of it was taken.

        A server that refuses a body may answer and close before it has read it all; the answer
        says more than the broken pipe, so that is left for `receive` to find out.
        """
        pieces = [memoryview(piece) for piece in request]
        at = done = mark = 0
        try:
            while True:
                try:
                    sent = self.sock.sendmsg(pieces[at : at + IOV_MAX])
                except BlockingIOError:
                    sent = 0
                done += sent
                while at < len(pieces) and sent >= len(pieces[at]):
                    sent -= len(pieces[at])
                    at += 1
                if at == len(pieces):
                    return True
                if sent:
                    pieces[at] = pieces[at][sent:]
                if done >= mark:
                    mark = done + SLOW_BYTES
                    timer.allow(progress_seconds, timer.step)
                await wait_writable(self.sock)
        except (BrokenPipeError, ConnectionResetError):
            return False

    def send_at_once(self, request: Sequence[Buffer]) -> None:
        """Where the socket does not take all of it, no answer will come: `receive` finds the connection shut."""
        try:
            if self.sock.sendmsg(request) == sum(map(len, request)):
                return
        except OSError:
            pass
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    async def receive(self, method: str, timer: _Timer, *, looks_first: bool = False) -> tuple[Answer, bool]:
        """The answer, and whether the connection can be used again. `looks_first`: it may have come already."""
        data = b""
        while (cut := data.find(b"\r\n\r\n")) < 0:
            if not looks_first:
                await wait_readable(self.sock)
            looks_first = False
            try:
                more = self.sock.recv(FIRST_READ_BYTES)
            except BlockingIOError:
                continue
            if not more:
                raise ConnectionError("connection closed within the answer's head" if data else "connection closed")
            self.answered = True
            data = data + more if data else more
            if len(data) > HEAD_BYTES_MAX and b"\r\n\r\n" not in data:
                raise ConnectionError("the answer's head is too long")
        status, headers, keep = parse_head(data[:cut])
        length = body_length(method, status, headers, BODY_BYTES_MAX)
        body: Buffer = data[cut + 4 :]
        if len(body) < length:
            body = await self._rest(data, cut + 4, length, timer)
        elif len(body) > length:
            body, keep = body[:length], False
        return Answer(status, headers, body), keep

    async def _rest(self, data: bytes, start: int, length: int, timer: _Timer) -> bytearray:
        """The body of this length, of which data[start:] has come already."""
        body = bytearray(length)
        view = memoryview(body)
        at = len(data) - start
        view[:at] = memoryview(data)[start:]
        mark = at
        while at < length:
            if at >= mark:
                mark = min(at + SLOW_BYTES, length)
                timer.allow(SLOW_SECONDS, "receiving the answer")
            # Waits also when there is more to read already: a fast sender must not keep the loop to itself.
            await wait_readable(self.sock)
            try:
                got = self.sock.recv_into(view[at:])
            except BlockingIOError:
                continue
            if not got:
                raise ConnectionError(f"connection closed after {at} of {length} bytes")
            at += got
        return body


async def _connect(address: str) -> socket.socket:
    """A connected socket; the addresses of a name are tried one after another. Raises OSError."""
    host, _, port = address.rpartition(":")
    try:
        found = await trio.socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except RuntimeError as error:  # No thread can be started that would ask for the name.
        raise OSError(errno.EAGAIN, f"{host} cannot be resolved: {error}") from error
    for index, (family, kind, protocol, _, endpoint) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                sock.connect(endpoint)
            except BlockingIOError:
                await wait_writable(sock)
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    raise OSError(number, os.strerror(number)) from None
        except OSError:
            sock.close()
            if index == len(found) - 1:
                raise
        except BaseException:  # Cancelled: whatever ends the attempt must not leave the socket behind.
            sock.close()
            raise
        else:
            return sock
    raise OSError(f"{host} has no address")
