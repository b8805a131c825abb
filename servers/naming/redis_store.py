"""The naming server's way to Redis: one pipelined connection, and the functions on it.

A call waits while Redis is away and is sent again when the connection broke before its
answer came: mutations carry op ids, everything else is harmless twice. It ends with its
deadline. Nothing here knows what the functions do.

redis-py reads the URL; the connection is our own because each call is on the path of a
system call: a redis-py command costs some 150 µs of CPU, this 20.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis
import msgpack
from redis.connection import parse_url

from servers.naming.keyspace import prefix
from servers.naming.namespace import Library, library
from servers.naming.settings import NamingSettings
from servers.protocol.errors import DcsError, Refused, TryAgain, Unavailable
from servers.protocol.geometry import is_chunk_size
from servers.protocol.naming_api import pack_arguments

log = logging.getLogger(__name__)

CONNECT_SECONDS = 1.0
SETUP_SECONDS = 5.0
RECONNECT_SECONDS = 0.2
CALL_SECONDS = 30.0
SILENCE_SECONDS = 35.0
"""A connection whose oldest question is older than this is given up: every call on it has timed out."""
CALLS_MAX = 4096

_ROOT_MODE = 0o040755


class UnsafeRedis(DcsError):
    """Redis is not set up to keep what it acknowledges."""


class _RedisError(DcsError):
    """An error reply."""


class _Connection(asyncio.Protocol):
    """Requests out, replies in, in order."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(replyError=_RedisError)
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(TryAgain("the connection to Redis broke"))
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future, _ = self._waiting.popleft()
            if future.done():
                continue
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)

    def send(self, *command: bytes | str | int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            future.set_exception(TryAgain("the connection to Redis broke"))
            return future
        self._waiting.append((future, time.monotonic()))
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub says list-like
        return future

    def oldest_seconds(self) -> float:
        return time.monotonic() - self._waiting[0][1] if self._waiting else 0.0

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class RedisStore:
    """The volume's functions. `run` keeps the connection; start it in a task."""

    def __init__(self, settings: NamingSettings) -> None:
        self._settings = settings
        self._options = parse_url(settings.redis_url)  # type: ignore[no-untyped-call]
        self._library: Library = library()
        self._key = prefix(settings.volume).encode()
        self._names: dict[str, bytes] = {}
        self._connection: _Connection | None = None
        self._connected = asyncio.Event()
        self._under_way = 0
        self._calls = 0
        self._retries = 0
        self.fault: DcsError | None = None
        """Why the connection cannot be used at all, when it is Redis's set-up and not its absence."""

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def wait_connected(self) -> None:
        await self._connected.wait()

    def statistics(self) -> dict[str, int]:
        return {"calls": self._calls, "retries": self._retries, "under_way": self._under_way}

    async def call(
        self, verb: str, session: int = 0, n: int = 0, arguments: bytes = b"\x80", *, seconds: float = CALL_SECONDS
    ) -> bytes:
        """The function's packed reply. Raises Unavailable at the deadline, Refused(ENOSPC) on a full Redis."""
        if self._under_way >= CALLS_MAX:
            raise TryAgain("too many calls to Redis at once")
        function = self._names.get(verb) or self._names.setdefault(verb, self._library.function(verb))
        command = (b"FCALL", function, b"1", self._key, b"%d" % session, b"%d" % n, arguments)
        deadline = time.monotonic() + seconds
        self._under_way += 1
        self._calls += 1
        try:
            while True:
                try:
                    async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                        while (connection := self._connection) is None or not self._connected.is_set():
                            await self._connected.wait()
                        return cast(bytes, await connection.send(*command))
                except TimeoutError:
                    raise Unavailable(f"Redis did not answer within {seconds:.0f} s") from self.fault
                except TryAgain:
                    self._retries += 1
                    await asyncio.sleep(0)
                except _RedisError as error:
                    await self._after_error(error)
        finally:
            self._under_way -= 1

    async def _after_error(self, error: _RedisError) -> None:
        """Returns when the call should be sent again."""
        text = str(error)
        if text.startswith("OOM"):
            raise Refused(28, "Redis is full")
        if text.startswith(("LOADING", "BUSY", "MASTERDOWN", "READONLY", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN")):
            await asyncio.sleep(RECONNECT_SECONDS)
            return
        if "Function not found" in text and self._connection is not None:  # a Redis that was flushed or restored
            self._connection.abort()
            await asyncio.sleep(RECONNECT_SECONDS)
            return
        raise error

    async def ask(self, verb: str, session: int = 0, n: int = 0, /, **arguments: Any) -> list[Any]:
        """The function's results, unpacked. Raises Refused."""
        reply = msgpack.unpackb(
            await self.call(verb, session, n, pack_arguments(arguments)), raw=True, strict_map_key=False
        )
        if reply[0] != 0:
            raise Refused(reply[0], verb)
        results: list[Any] = reply[1:]
        return results

    async def command(self, *command: bytes | str | int) -> Any:
        """A plain Redis command, for the few reads that no function does. Raises TryAgain."""
        if self._connection is None or not self._connected.is_set():
            raise TryAgain("Redis is away")
        async with asyncio.timeout(SETUP_SECONDS):
            return await self._connection.send(*command)

    async def run(self) -> None:
        """Connects, and connects again, until cancelled. Raises UnsafeRedis at the first connection only."""
        first = True
        while True:
            try:
                connection = await self._connect()
                await self._prepare(connection)
            except (OSError, TimeoutError, TryAgain, _RedisError) as error:
                log.debug("redis is away: %s %s", type(error).__name__, error)
                if not first and self.fault is None:
                    log.warning("redis is away: %s", error)
                    self.fault = TryAgain(f"Redis is away: {error}")
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            except UnsafeRedis as error:
                if first:
                    raise
                if self.fault is None:
                    log.error("%s", error)
                self.fault = error
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            if not first:
                log.info("redis is back")
            first, self.fault, self._connection = False, None, connection
            self._connected.set()
            try:
                await self._watch(connection)
            finally:
                self._connected.clear()
                connection.abort()

    async def _watch(self, connection: _Connection) -> None:
        """Returns when the connection has ended or does not answer."""
        while not connection.closed.done():
            await asyncio.wait([connection.closed], timeout=1.0)
            if connection.oldest_seconds() > SILENCE_SECONDS:
                return

    async def _connect(self) -> _Connection:
        loop, options = asyncio.get_running_loop(), self._options
        async with asyncio.timeout(CONNECT_SECONDS):
            if options.get("path"):
                _, connection = await loop.create_unix_connection(_Connection, options["path"])
            else:
                _, connection = await loop.create_connection(
                    _Connection, options.get("host", "localhost"), options.get("port", 6379)
                )
        return connection

    async def _prepare(self, connection: _Connection) -> None:
        options = self._options
        try:
            async with asyncio.timeout(SETUP_SECONDS):
                if options.get("password"):
                    user = [options["username"]] if options.get("username") else []
                    await connection.send("AUTH", *user, options["password"])
                if options.get("db"):
                    await connection.send("SELECT", options["db"])
                await self._check_durability(connection)
                await self._load(connection)
                await self._make_volume(connection)
        except BaseException:
            connection.abort()
            raise

    async def _check_durability(self, connection: _Connection) -> None:
        wanted = {"appendonly": b"yes", "appendfsync": b"always", "maxmemory-policy": b"noeviction"}
        flat = await connection.send("CONFIG", "GET", *wanted)
        found = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
        wrong = [f"{k} {v.decode()}" for k, v in wanted.items() if found.get(k) != v]
        if wrong and not self._settings.accept_data_loss:
            raise UnsafeRedis(
                "Redis would lose acknowledged changes: set " + ", ".join(wrong) + " in its configuration, "
                "or start the naming server with --i-accept-data-loss"
            )

    async def _load(self, connection: _Connection) -> None:
        found = await connection.send("FUNCTION", "LIST", "LIBRARYNAME", self._library.name)
        if found:
            return
        try:
            await connection.send("FUNCTION", "LOAD", "REPLACE", self._library.text)
        except _RedisError as error:
            if str(error).startswith("ERR"):
                raise UnsafeRedis(
                    f"Redis 7.0 or newer is wanted; it does not take the function library: {error}"
                ) from error
            raise

    async def _make_volume(self, connection: _Connection) -> None:
        """Makes the volume and its root where there is none; changes nothing where there is one."""
        s = self._settings
        if not is_chunk_size(s.chunk_size):
            raise UnsafeRedis(f"CHUNK_SIZE={s.chunk_size}: a power of two from 1 KiB to 64 MiB is wanted")
        key = self._key + b":volume"
        tunable: Sequence[bytes | str | int] = (
            "lease_ms", int(s.session_lease_seconds * 1000), "orphan_grace_ms", int(s.orphan_grace_seconds * 1000),
            "condemned_grace_ms", int(s.condemned_grace_seconds * 1000),
        )  # fmt: skip
        if await connection.send("EXISTS", key):
            await connection.send("HSET", key, *tunable)
            return
        seconds, micros = await connection.send("TIME")
        t = [int(seconds), int(micros) * 1000]
        root = msgpack.packb(
            [
                _ROOT_MODE,
                s.root_uid,
                s.root_gid,
                2,
                0,
                *t,
                *t,
                *t,
                0,
                s.chunk_size,
                0,
                1,
                0,
                0,
                b"",
                s.replication_factor,
                1,
            ],
            use_bin_type=False,
        )
        for command in (
            ("MULTI",),
            (
                "HSET", key, "uuid", uuid.uuid4().hex, "chunk_size", s.chunk_size, "replicas", s.replication_factor,
                "seq", 1, "next_ino", 1, "next_session", 0, "next_node", 0, "files", 0, "directories", 1,
                "extents", 0, "bytes", 0, *tunable,
            ),
            ("SET", self._key + b":i:1", root),
        ):  # fmt: skip
            await connection.send(*command)
        await connection.send("EXEC")
        log.info("made volume %s: chunk size %d, %d replicas", s.volume, s.chunk_size, s.replication_factor)
