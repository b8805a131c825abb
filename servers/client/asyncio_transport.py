"""HTTP/1.1 over plain sockets for asyncio: what commands that move many or large extents need.

Plugged under the clients by `servers.admin`, and by storage nodes for what they fetch from
each other; the mount's counterpart for trio is `fusefs.transport`. Measured per request of
1 KiB: 0.3 ms of CPU where httpx takes 2 ms.

A request that fails on a kept connection before any byte of an answer is sent again on a new
one: every request of ours may be sent twice. One task uses a connection at a time; what ends
early, by an error, its time or cancellation, takes its connection along.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Mapping, Sequence

from servers.client.answer_head import body_length, parse_head
from servers.client.http import CONNECT_SECONDS, FIRST_BYTE_SECONDS, Answer
from servers.protocol.checksum import Buffer
from servers.protocol.errors import AccessDenied, TryAgain
from servers.protocol.limits import KIB, MIB

CONNECTIONS_PER_ADDRESS_MAX = 16
HEAD_BYTES_MAX = 64 * KIB
BODY_BYTES_MAX = 256 * MIB
"""Listings of a whole volume's extents come in pages, the largest of which has some tens of MiB."""
FIRST_READ_BYTES = 64 * KIB
GATHERED_BYTES_MAX = 64 * KIB
"""A request up to this size is sent in one piece."""


class AsyncioTransport:
    """A `servers.client.http.Transport`."""

    def __init__(self, secret: str) -> None:
        self._authorization = f"authorization: Bearer {secret}\r\n"
        self._pools: dict[str, _Pool] = {}

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
        length = sum(len(piece) for piece in body)
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = (
            f"{method} {target} HTTP/1.1\r\nhost: {address}\r\n{self._authorization}"
            f"content-length: {length}\r\n{more}\r\n"
        ).encode("latin-1")
        pieces = [b"".join((head, *body))] if length <= GATHERED_BYTES_MAX else [head, *body]
        try:
            async with asyncio.timeout(deadline_seconds):
                answer = await self._exchange(address, method, pieces, first_byte_seconds)
        except TimeoutError as error:
            raise TryAgain(f"{address}: {str(error) or 'timed out'}") from error
        except OSError as error:
            raise TryAgain(f"{address}: {error.strerror or error}") from error
        if answer.status == 401:
            raise AccessDenied(f"{address} does not accept this cluster's secret")
        return answer

    async def close(self) -> None:
        for pool in self._pools.values():
            while pool.idle:
                pool.idle.pop().sock.close()

    async def _exchange(self, address: str, method: str, pieces: Sequence[Buffer], first_byte_seconds: float) -> Answer:
        pool = self._pools.setdefault(address, _Pool())
        async with pool.places:
            connection = pool.take()
            if connection is not None:
                try:
                    return await _on(connection, pool, method, pieces, first_byte_seconds)
                except TimeoutError:
                    raise
                except OSError:
                    if connection.was_answered:
                        raise
            connection = _Connection(await _connect(address))
            return await _on(connection, pool, method, pieces, first_byte_seconds)


class _Pool:
    """The connections of one address."""

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(CONNECTIONS_PER_ADDRESS_MAX)
        self.idle: deque[_Connection] = deque()

    def take(self) -> _Connection | None:
        """An idle connection that the other side has not closed."""
        while self.idle:
            connection = self.idle.pop()
            if connection.is_quiet():
                connection.was_answered = False
                return connection
            connection.sock.close()
        return None


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.was_answered = False
        """Whether a byte of the present request's answer has come."""

    def is_quiet(self) -> bool:
        """Nothing to read: neither an end nor an answer to something that nobody asked."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def send(self, pieces: Sequence[Buffer], progress_seconds: float) -> bool:
        """Whether all of it was taken: a server that refuses a body may answer before it has read it."""
        loop = asyncio.get_running_loop()
        try:
            for piece in pieces:
                async with asyncio.timeout(progress_seconds):
                    await loop.sock_sendall(self.sock, piece)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    async def receive(self, method: str, first_byte_seconds: float) -> tuple[Answer, bool]:
        """The answer, and whether the connection can be used again."""
        loop = asyncio.get_running_loop()
        data = b""
        async with asyncio.timeout(first_byte_seconds):
            while (cut := data.find(b"\r\n\r\n")) < 0:
                more = await loop.sock_recv(self.sock, FIRST_READ_BYTES)
                if not more:
                    raise ConnectionError("the connection was closed")
                self.was_answered = True
                data = data + more if data else more
                if len(data) > HEAD_BYTES_MAX + FIRST_READ_BYTES:
                    raise ConnectionError("the answer's head is too long")
        status, headers, keep = parse_head(data[:cut])
        length = body_length(method, status, headers, BODY_BYTES_MAX)
        begun = memoryview(data)[cut + 4 :]
        if len(begun) >= length:
            return Answer(status, headers, begun[:length].tobytes()), keep and len(begun) == length
        return Answer(status, headers, await self._rest(begun, length)), keep

    async def _rest(self, begun: memoryview, length: int) -> bytearray:
        """The body of this length, of which `begun` has come already."""
        loop, body, at = asyncio.get_running_loop(), bytearray(length), len(begun)
        view = memoryview(body)
        view[:at] = begun
        while at < length:
            got = await loop.sock_recv_into(self.sock, view[at:])
            if not got:
                raise ConnectionError(f"the connection was closed after {at} of {length} bytes")
            at += got
        return body


async def _on(
    connection: _Connection, pool: _Pool, method: str, pieces: Sequence[Buffer], first_byte_seconds: float
) -> Answer:
    """The request's answer. The connection is idle in the pool afterwards, or closed."""
    is_reusable = False
    try:
        was_sent = await connection.send(pieces, first_byte_seconds)
        answer, is_reusable = await connection.receive(method, first_byte_seconds)
        is_reusable = is_reusable and was_sent
        return answer
    finally:
        if is_reusable:
            pool.idle.append(connection)
        else:
            connection.sock.close()


async def _connect(address: str) -> socket.socket:
    """A connected socket; the addresses of a name are tried one after another. Raises OSError."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    problem: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, endpoint in await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.sock_connect(sock, endpoint)
            return sock
        except OSError as error:  # A timeout, too.
            sock.close()
            problem = error
        except BaseException:  # Cancelled: the socket must not stay behind.
            sock.close()
            raise
    raise problem
