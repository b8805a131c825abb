"""All of a Redis at one moment, and then each of its changes: by its own replication.

We ask as an old replica would, with SYNC. Redis forks for the snapshot, as it does to rewrite its log, and
sends what it has changed since as it sends it to any replica: plain commands, those of one function call as
one transaction. It never waits for us (we acknowledge nothing, so WAIT does not count us) but at its end, for its
`shutdown-timeout`. What we have not read it holds within its `client-output-buffer-limit replica`; beyond, it hangs
up. A feed that broke is not taken up again: another snapshot is.

Called by the store. Between two calls of `read` nothing is read, so that a change costs Redis a copy and us
nothing. One caller at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import hiredis

from servers.naming.redis_url import Endpoint, RedisPlace
from servers.protocol.errors import TryAgain

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
"""Redis says something at least every 10 s while it makes the snapshot."""
LOOK_SECONDS = 0.2
PIECE_BYTES = 256 * 1024
UNREAD_BYTES_MAX = 64 * 1024
"""In the kernel. So Redis soon finds that it cannot send, and does not try again with every change until we read."""
_EOF_MARK_BYTES = 40


class FeedBroken(TryAgain):
    """What follows is lost to this feed."""


class Feed:
    """`open`, all of `snapshot`, then `read` as often as you like; `close` in any case. All raise FeedBroken."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._held = b""
        self._is_at_end = False
        """Of the snapshot: nothing has come after it yet."""
        self.seq = 0
        """Of the volume: a change that the snapshot has, perhaps not its latest."""

    @classmethod
    async def open(cls, place: RedisPlace, endpoint: Endpoint | None, key: bytes) -> Feed:
        try:
            feed = cls(await asyncio.to_thread(_connect, place, endpoint))
        except OSError as error:
            raise FeedBroken(f"Redis gives no snapshot: {error}") from error
        try:
            if place.password:
                await feed._ask("AUTH", *([place.username] if place.username else []), place.password)
            with contextlib.suppress(FeedBroken):  # A replica in a Redis Cluster wants it; another Redis refuses.
                await feed._ask("READONLY")
            if place.db:
                await feed._ask("SELECT", str(place.db))
            feed.seq = int(await feed._ask("HGET", key + b":volume", "seq") or 0)
            if place.is_replicated and (await feed._ask("ROLE"))[0] != b"slave":
                raise FeedBroken("Redis gives no snapshot: it is no replica any more, and Sentinels would count us")
            await feed._ask("REPLCONF", "capa", "eof")
            await feed._send("SYNC")
        except BaseException:
            feed.close()
            raise
        return feed

    def close(self) -> None:
        self._socket.close()

    async def snapshot(self) -> AsyncIterator[bytes]:
        """The RDB file, piece by piece; complete when it ends without an exception."""
        line = b""
        while not line:  # Empty lines: Redis is alive, and not ready yet.
            line = await self._line()
        if line.startswith(b"$EOF:"):
            async for piece in self._until_mark(line[5:]):
                yield piece
        elif line.startswith(b"$"):
            left = int(line[1:])
            while left:
                piece = await self._some(left)
                left -= len(piece)
                yield piece
        else:
            raise FeedBroken(f"Redis gives no snapshot: {line[:200].decode(errors='replace')}")
        self._is_at_end = True

    async def read(self, seconds: float = 0.0) -> bytes:
        """What Redis has changed since, as far as it has sent it: a part of its stream, empty when there is nothing.
        With `seconds` something: else the feed is broken."""
        held, self._held = self._held, b""
        data = held or self._received()
        if data is None and self._is_at_end:  # It goes on once it knows that we saw the end, and its fork is gone.
            await self._send("REPLCONF", "ACK", "0")
        if data is None and seconds:
            data = await self._receive(seconds)
        self._is_at_end = self._is_at_end and not data
        return data or b""

    async def _until_mark(self, mark: bytes) -> AsyncIterator[bytes]:
        held = b""
        while not held.endswith(mark):
            if len(held) > _EOF_MARK_BYTES:
                yield held[:-_EOF_MARK_BYTES]
                held = held[-_EOF_MARK_BYTES:]
            held += await self._some(PIECE_BYTES)
        yield held[: -len(mark)]

    async def _ask(self, *command: str | bytes) -> Any:  # Any: what Redis answers.
        await self._send(*command)
        reader = hiredis.Reader()
        answer = reader.gets()
        while answer is False:
            reader.feed(await self._some(PIECE_BYTES))
            answer = reader.gets()
        if isinstance(answer, hiredis.ReplyError):
            raise FeedBroken(f"Redis refuses {command[0]!r}: {answer}")
        return answer

    async def _line(self) -> bytes:
        while b"\n" not in self._held:
            self._held += await self._receive(SILENCE_SECONDS)
        line, _, self._held = self._held.partition(b"\n")
        return line.strip()

    async def _some(self, size: int) -> bytes:
        """At least one byte, at most `size`."""
        data = self._held or await self._receive(SILENCE_SECONDS)
        self._held = data[size:]
        return data[:size]

    async def _receive(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while (data := self._received()) is None:
            if time.monotonic() > deadline:
                raise FeedBroken(f"Redis said nothing for {seconds:g} s to us as a replica")
            await self._readable()
            if self._is_at_end:
                await self._send("REPLCONF", "ACK", "0")
        return data

    def _received(self) -> bytes | None:
        """None when there is nothing yet."""
        try:
            data = self._socket.recv(PIECE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            raise FeedBroken(f"the connection to Redis as a replica broke: {error}") from error
        if not data:
            raise FeedBroken("Redis ended the connection to us as a replica")
        return data

    async def _readable(self) -> None:
        """Or LOOK_SECONDS are over."""
        loop = asyncio.get_running_loop()
        there = asyncio.Event()
        loop.add_reader(self._socket, there.set)
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await there.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(self._socket)

    async def _send(self, *command: str | bytes) -> None:
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub says one-tuple
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_sendall(self._socket, packed)
        except OSError as error:
            raise FeedBroken(f"the connection to Redis as a replica broke: {error}") from error


def _connect(place: RedisPlace, endpoint: Endpoint | None) -> socket.socket:
    if place.path:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(CONNECT_SECONDS)
        sock.connect(place.path)
    elif endpoint is None:
        raise OSError("nobody says where Redis is")
    else:
        sock = _connect_tcp(endpoint.host, endpoint.port)
    sock.setblocking(False)
    return sock


def _connect_tcp(host: str, port: int) -> socket.socket:
    """As socket.create_connection, with UNREAD_BYTES_MAX, which must be set before: tcp(7)."""
    trouble: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(CONNECT_SECONDS)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD_BYTES_MAX)
            sock.connect(address)
        except OSError as error:
            sock.close()
            trouble = error
        else:
            return sock
    raise trouble
