"""A Redis made to be what another was: by its own replication.

The Redis is told to be a replica of this process, gets the snapshot and the changes after it, and is told to
be its own master again. So its disk is not needed, and the snapshot is an ordinary RDB file. redis_feed.py is
the other direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import hiredis

from servers.naming.redis_connection import Connection, RedisError, connect
from servers.naming.redis_url import Endpoint, RedisPlace
from servers.protocol.errors import TryAgain

PIECE_BYTES = 256 * 1024
LOAD_SECONDS = 3600.0
POLL_SECONDS = 0.1


async def restore(place: RedisPlace, endpoint: Endpoint, rdb: Path, changes: Path) -> None:
    """The Redis holds what the file does and has made the changes, whole transactions, on its own disk too, and
    nothing else. Raises OSError, RedisError, TryAgain."""
    connection = await connect(endpoint.host, endpoint.port)
    server: asyncio.Server | None = None
    try:
        if place.password:
            await connection.send("AUTH", *([place.username] if place.username else []), place.password)
        own = await _own_address(endpoint)
        server = await asyncio.start_server(lambda r, w: _serve(r, w, rdb, changes), own, 0)
        await connection.send("REPLICAOF", own, str(server.sockets[0].getsockname()[1]))
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                await _wait_for(connection, "replication", "master_link_status:up")
                await _wait_for(connection, "replication", f"slave_repl_offset:{_size(changes)}\r\n")
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


def _size(path: Path) -> int:
    return path.stat().st_size


async def _own_address(endpoint: Endpoint) -> str:
    """Ours, as that Redis sees us."""
    _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    address: str = writer.get_extra_info("sockname")[0]
    writer.close()
    return address


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rdb: Path, changes: Path) -> None:
    """A primary as far as a new replica can tell: it gets the files, and then silence."""
    commands = hiredis.Reader()
    try:
        while data := await reader.read(65_536):
            commands.feed(data if commands.has_data() else data.lstrip(b"\n"))  # Which it says while it loads.
            while (command := commands.gets()) is not False:
                await _answer(command, writer, rdb, changes)
    except (ConnectionError, asyncio.CancelledError):
        return
    finally:
        writer.close()


async def _answer(command: list[bytes], writer: asyncio.StreamWriter, rdb: Path, changes: Path) -> None:
    verb = command[0].upper()
    if verb == b"PING":
        writer.write(b"+PONG\r\n")
    elif verb in (b"PSYNC", b"SYNC"):
        if verb == b"PSYNC":
            writer.write(b"+FULLRESYNC " + os.urandom(20).hex().encode() + b" 0\r\n")
        writer.write(b"$%d\r\n" % _size(rdb))
        for path in (rdb, changes):
            with path.open("rb") as file:
                while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                    writer.write(piece)
                    await writer.drain()
    elif not (verb == b"REPLCONF" and command[1].upper() == b"ACK"):
        writer.write(b"+OK\r\n")
