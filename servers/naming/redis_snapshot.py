"""All of a Redis at one moment, and a Redis made to be that again: both by its own replication.

Taking: we ask as a replica would, and end when the snapshot has come; Redis forks for it, as it does to
rewrite its log. Restoring: the Redis is told to be a replica of this process, gets the snapshot, and is told
to be its own master again. So neither needs the Redis's disk, and the snapshot is an ordinary RDB file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import hiredis

from servers.naming.redis_connection import Connection, RedisError, connect
from servers.naming.redis_url import Endpoint, RedisPlace
from servers.protocol.errors import TryAgain

SILENCE_SECONDS = 60.0
"""Redis says something at least every 10 s while it makes the snapshot."""
PIECE_BYTES = 256 * 1024
LOAD_SECONDS = 3600.0
POLL_SECONDS = 0.1
_EOF_MARK_BYTES = 40


async def take(place: RedisPlace, endpoint: Endpoint | None) -> AsyncIterator[bytes]:
    """The RDB file, piece by piece; complete when it ends without an exception. Raises OSError, TryAgain."""
    if place.path:
        reader, writer = await asyncio.open_unix_connection(place.path, limit=2**20)
    else:
        if endpoint is None:
            raise TryAgain("nobody says where Redis is")
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, limit=2**20)
    try:
        if place.password:
            await _say(reader, writer, "AUTH", *([place.username] if place.username else []), place.password)
        await _say(reader, writer, "REPLCONF", "capa", "eof")
        await _say(reader, writer, "REPLCONF", "rdb-only", "1")
        writer.write(hiredis.pack_command(("SYNC",)))
        async with asyncio.timeout(SILENCE_SECONDS):
            line = b"\n"
            while line == b"\n":  # Redis is alive, and not ready yet.
                line = await reader.readline()
        if not line.startswith(b"$"):
            raise TryAgain(f"Redis gives no snapshot: {line[:200].decode(errors='replace').strip()}")
        pieces = _until_mark(reader, line[5:].strip()) if line.startswith(b"$EOF:") else _exactly(reader, int(line[1:]))
        async for piece in pieces:
            yield piece
    except asyncio.IncompleteReadError as error:
        raise TryAgain("the connection to Redis broke during a snapshot") from error
    except TimeoutError as error:
        raise TryAgain("Redis does not go on with a snapshot") from error
    finally:
        writer.close()


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *command: str) -> None:
    writer.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub says one-tuple
    async with asyncio.timeout(SILENCE_SECONDS):
        answer = await reader.readline()
    if not answer.startswith(b"+"):
        raise TryAgain(f"Redis refuses {command[0]}: {answer[:200].decode(errors='replace').strip()}")


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size:
        async with asyncio.timeout(SILENCE_SECONDS):
            piece = await reader.read(min(size, PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        size -= len(piece)
        yield piece


async def _until_mark(reader: asyncio.StreamReader, mark: bytes) -> AsyncIterator[bytes]:
    held = b""
    while True:
        async with asyncio.timeout(SILENCE_SECONDS):
            piece = await reader.read(PIECE_BYTES)
        held += piece
        if held.endswith(mark):
            yield held[: -len(mark)]
            return
        if not piece:
            raise asyncio.IncompleteReadError(held, None)
        yield held[:-_EOF_MARK_BYTES]
        held = held[-_EOF_MARK_BYTES:]


async def restore(place: RedisPlace, endpoint: Endpoint, rdb: Path) -> None:
    """The Redis holds what the file does, on its own disk too, and nothing else. Raises OSError, RedisError,
    TryAgain."""
    connection = await connect(endpoint.host, endpoint.port)
    server: asyncio.Server | None = None
    try:
        if place.password:
            await connection.send("AUTH", *([place.username] if place.username else []), place.password)
        own = await _own_address(endpoint)
        server = await asyncio.start_server(lambda r, w: _serve(r, w, rdb), own, 0)
        await connection.send("REPLICAOF", own, str(server.sockets[0].getsockname()[1]))
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                await _wait_for(connection, "replication", "master_link_status:up")
        finally:
            await connection.send("REPLICAOF", "NO", "ONE")
        async with asyncio.timeout(LOAD_SECONDS):
            for fact in ("aof_rewrite_scheduled:0", "aof_rewrite_in_progress:0", "aof_last_bgrewrite_status:ok"):
                await _wait_for(connection, "persistence", fact)
    except TimeoutError as error:
        raise TryAgain("Redis did not load the snapshot in time; its log says why") from error
    finally:
        if server is not None:
            server.close()
        connection.abort()


async def _wait_for(connection: Connection, section: str, fact: str) -> None:
    while True:
        with contextlib.suppress(RedisError):  # LOADING
            if fact.encode() in await connection.send("INFO", section):
                return
        await asyncio.sleep(POLL_SECONDS)


async def _own_address(endpoint: Endpoint) -> str:
    """Ours, as that Redis sees us."""
    _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    address: str = writer.get_extra_info("sockname")[0]
    writer.close()
    return address


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rdb: Path) -> None:
    """A primary as far as a new replica can tell: it gets the file, and then silence."""
    commands = hiredis.Reader()
    try:
        while data := await reader.read(65_536):
            commands.feed(data)
            while (command := commands.gets()) is not False:
                await _answer(command, writer, rdb)
    except (ConnectionError, asyncio.CancelledError):
        return
    finally:
        writer.close()


async def _answer(command: list[bytes], writer: asyncio.StreamWriter, rdb: Path) -> None:
    verb = command[0].upper()
    if verb == b"PING":
        writer.write(b"+PONG\r\n")
    elif verb in (b"PSYNC", b"SYNC"):
        if verb == b"PSYNC":
            writer.write(b"+FULLRESYNC " + os.urandom(20).hex().encode() + b" 0\r\n")
        with rdb.open("rb") as file:
            writer.write(b"$%d\r\n" % os.fstat(file.fileno()).st_size)
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                writer.write(piece)
                await writer.drain()
    elif not (verb == b"REPLCONF" and command[1].upper() == b"ACK"):
        writer.write(b"+OK\r\n")
