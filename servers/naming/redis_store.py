"""The naming server's way to Redis: its connections, and the functions on them.

A call waits while Redis is away and is sent again when the connection broke before its
answer came: mutations carry op ids, everything else is harmless twice. It ends with its
deadline. Nothing here knows what the functions do.

With replicas (Sentinel, Cluster) changes have a connection of their own, on which each waits for
a replica; and once a second those who decide are asked which Redis is the primary:

    find the primary ──▶ connect, check, load the library, open the volume ──▶ work ──┐
            ▲                                                                         │
            └── broken, silent, not the primary any more ◀────────────────────────────┘

The volume that a new primary has must not end before a change that was seen: else SAFE mode.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast
from uuid import uuid4

import msgpack

from servers.naming.keyspace import prefix
from servers.naming.leadership import acting_epoch
from servers.naming.namespace import Library, library
from servers.naming.redis_changes import ReplicatedChanges
from servers.naming.redis_connection import (
    Asked,
    Command,
    Connection,
    RedisError,
    UnsafeRedis,
    connect,
    connect_to_socket,
)
from servers.naming.redis_feed import Feed
from servers.naming.redis_primary import Primary, find_primary
from servers.naming.redis_url import Endpoint, parse_redis_url
from servers.naming.settings import NamingSettings
from servers.protocol.errors import DcsError, Refused, TryAgain, Unavailable
from servers.protocol.geometry import is_chunk_size
from servers.protocol.naming_api import Operation, pack_arguments
from servers.protocol.requests import Requests

log = logging.getLogger(__name__)

SETUP_SECONDS = 5.0
RECONNECT_SECONDS = 0.2
PROBE_SECONDS = 1.0
SILENCE_SECONDS = 5.0
"""A connection is given up when its oldest question is older than the deadline of calls by this."""
CALLS_MAX = 4096
PASSING_ERRORS = (
    "LOADING", "BUSY", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "ASK",
)  # fmt: skip
"""Error replies of a Redis that may do it later. ASK: the slot is on its way to another node. That one is not
asked before it has all of it: half a volume would say that what is there is not."""
FULL = "OOM"
"""How the error of a full Redis begins, which it gives without a look at the op id."""
MOVED_ERRORS = ("MOVED", "READONLY")
"""Error replies of one that is not the primary any more."""
NO_FAILOVER = "no failover of Redis is possible: not more than half of those who decide on it answer"
LAG_SECONDS_MAX = 2
"""A replica says every second that it is there."""
ENOENT, ENOSPC, ESTALE = 2, 28, 116
NOT_LEADING = 1002
"""Not an errno: see `internal` in lua/common.lua."""


class VolumeLost(DcsError):
    """Redis answers, but the volume that was there is not."""


class Isolated(TryAgain):
    """The primary of Redis may have been replaced, and we with it."""


FAULT_KINDS: tuple[tuple[type[DcsError], str], ...] = (
    (VolumeLost, "volume_lost"), (UnsafeRedis, "redis_unsafe"), (Isolated, "redis_isolated"), (TryAgain, "redis_away"),
)  # fmt: skip
"""What the reasons for which the volume cannot be worked with are counted as, the more special first."""


class RedisStore:
    """The volume's functions. `run` keeps the connection; start it in a task.

    Once a volume was seen this process works with no other: `_uuid` goes along with each call, and
    the function refuses where another volume is, or none. That, and metadata older than what was
    seen, is found once a second too, so that it is loud.
    """

    def __init__(self, settings: NamingSettings) -> None:
        self._settings = settings
        self._place = parse_redis_url(settings.redis_url)
        if not is_chunk_size(settings.chunk_size):
            raise ValueError(f"CHUNK_SIZE={settings.chunk_size}: a power of two from 1 KiB to 64 MiB is wanted")
        self._library: Library = library()
        self._key = prefix(settings.volume).encode()
        self._names: dict[str, bytes] = {}
        self._connection: Connection | None = None
        self._changes: ReplicatedChanges | None = None
        """For what writes; None where Redis has no replicas."""
        self._primary: Primary | None = None
        self._has_quorum = True
        self.process = ""
        """Of Redis, the one that is worked with, by its run_id. A cursor of SCAN is good in no other: whoever goes on
        with it after a restart or a failover leaves keys out."""
        self._connected = asyncio.Event()
        self._uuid = b""
        self._uuid_to_make = uuid4().hex
        self._seq = 0
        self._safe: bytes | None = None
        self._under_way = 0
        self._calls = 0
        self.operations = Requests()
        """Calls of functions, from when they were asked for to the reply. Who asks `ask_together` counts them."""
        self._retries = 0
        self.errors = Counter[str](dict.fromkeys(("overload", "redis_error", "redis_full", "redis_timeout"), 0))
        """By kind: of calls, and each beginning of a time when the volume could not be worked with."""
        self.errors.update(dict.fromkeys((kind for _, kind in FAULT_KINDS), 0))
        self.fault: DcsError | None = None
        """Why the volume cannot be worked with now; None when it can."""

    @property
    def volume_uuid(self) -> str:
        """Of the volume that this process works with; "" before it has seen one."""
        return self._uuid.decode()

    def begin_as(self, uuid: str) -> None:
        """Where there is no volume, the one that is made has this uuid: for recovery."""
        self._uuid_to_make = uuid

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    @property
    def deadline_seconds(self) -> float:
        return self._settings.metadata_deadline_seconds

    @property
    def warning(self) -> str:
        """What an operator should look at though all works; "" for nothing."""
        return "" if self._has_quorum else NO_FAILOVER

    async def wait_connected(self) -> None:
        await self._connected.wait()

    def statistics(self) -> dict[str, int]:
        return {"calls": self._calls, "retries": self._retries, "under_way": self._under_way}

    # Calls.

    async def call(
        self,
        verb: str,
        session: int = 0,
        n: int = 0,
        arguments: bytes = b"\x80",
        *,
        seconds: float | None = None,
        was_sent: bool = False,
    ) -> bytes:
        """The function's packed reply. Raises Unavailable at the deadline, Refused(ENOSPC) on a full Redis; TryAgain
        where that does not tell whether it was done, because it `was_sent` before, here or by the caller.

        The deadline is the naming server's, or what the caller gives if that is sooner."""
        if self._under_way >= CALLS_MAX:
            self.errors["overload"] += 1
            raise TryAgain("too many calls to Redis at once")
        seconds = self.deadline_seconds if seconds is None else min(seconds, self.deadline_seconds)
        self._under_way += 1
        self._calls += 1
        began, is_answered = time.monotonic(), False
        try:
            async with asyncio.timeout(seconds):
                while True:
                    while (connection := self._connection) is None or not self._connected.is_set():
                        await self._connected.wait()
                    try:
                        asker = connection if verb in self._library.reads else self._changes or connection
                        reply = cast(bytes, await asker.send(*self._command(verb, session, n, arguments)))
                        is_answered = True
                        return reply
                    except TryAgain:
                        was_sent = True
                        self._retries += 1
                        await asyncio.sleep(0)
                    except RedisError as error:
                        if was_sent and str(error).startswith(FULL):
                            raise TryAgain("Redis is full, and does not say what it has done before") from error
                        await self._after_error(error)
        except TimeoutError:
            self.errors["redis_timeout"] += 1
            why = f" ({self.fault})" if self.fault is not None else ""
            raise Unavailable(f"Redis did not answer within {seconds:g} s{why}") from self.fault
        finally:
            self._under_way -= 1
            self.operations.observe(verb, time.monotonic() - began, failed=not is_answered)

    def ask_together(self, session: int, operations: Sequence[Operation]) -> Asked | None:
        """Operations on their way to Redis, to be waited for with a deadline; None when they cannot be sent just now.

        No task and no timer, for the common case. What `call` would send again is an exception among the answers.
        """
        connection = self._connection
        if connection is None or not self._connected.is_set() or self._under_way >= CALLS_MAX:
            return None
        self._calls += len(operations)
        asker: Connection | ReplicatedChanges = connection
        if self._changes is not None and any(o.verb not in self._library.reads for o in operations):
            asker = self._changes
        return asker.ask([self._command(o.verb, session, o.n, o.arguments) for o in operations])

    def _command(self, verb: str, session: int, n: int, arguments: bytes) -> tuple[bytes, ...]:
        function = self._names.get(verb) or self._names.setdefault(verb, self._library.function(verb))
        return (b"FCALL", function, b"1", self._key, b"%d" % session, b"%d" % n, arguments, self._uuid)

    async def _after_error(self, error: RedisError) -> None:
        """Returns when the call should be sent again."""
        words = str(error)
        if words.startswith(FULL):
            self.errors["redis_full"] += 1
            raise Refused(ENOSPC, "Redis is full")
        if "Function not found" in words or words.startswith(MOVED_ERRORS):
            self._abort()  # Redis was restored, functions flushed, or another is the primary now.
        elif not words.startswith(PASSING_ERRORS):
            self.errors["redis_error"] += 1
            raise error
        await asyncio.sleep(RECONNECT_SECONDS)

    async def ask(self, verb: str, session: int = 0, n: int = 0, /, **arguments: Any) -> list[Any]:
        """The function's results, unpacked. Raises Refused, Unavailable; TryAgain in a background job of a server that
        does not lead any more."""
        return _results(verb, await self.call(verb, session, n or acting_epoch.get(), pack_arguments(arguments)))

    async def command(self, *command: bytes | str | int) -> Any:
        """A plain Redis command, for the few reads that no function does. Raises TryAgain."""
        connection = self._connection
        if connection is None or not self._connected.is_set():
            raise TryAgain("Redis is away")
        if isinstance(self.fault, VolumeLost) and not self._safe:
            raise self.fault
        try:
            async with asyncio.timeout(SETUP_SECONDS):
                return await connection.send(*command)
        except TimeoutError as error:
            raise TryAgain("Redis did not answer in time") from error
        except RedisError as error:
            if str(error).startswith(PASSING_ERRORS):
                raise TryAgain(str(error)) from error
            raise

    @property
    def key(self) -> bytes:
        """Of the volume: see keyspace.py."""
        return self._key

    async def feed(self) -> Feed:
        """All of Redis at one moment, and what it changes from then on. Raises TryAgain.

        From a replica, where there are any: Sentinels would take us for one of the primary's."""
        endpoints = self._place.endpoints
        endpoint = endpoints[0] if endpoints else None
        if self._place.is_replicated:
            said = (await self.command("INFO", "replication")).decode()
            found = re.search(r"^slave\d+:ip=(.*),port=(\d+),state=online", said, re.MULTILINE)
            if found is None:
                raise TryAgain("Redis has no replica that a snapshot could be taken from")
            endpoint = Endpoint(found[1], int(found[2]))
        return await Feed.open(self._place, endpoint, self._key)

    # The connection.

    async def check(self) -> None:
        """Raises UnsafeRedis where a Redis answers that cannot be worked with; an absent one is no reason."""
        try:
            await self._open()
        except (OSError, TimeoutError, TryAgain, RedisError) as error:
            log.info("redis is away: %s", error)
        finally:
            self._abort()

    async def run(self) -> None:
        """Connects, and connects again, until cancelled."""
        while True:
            try:
                connection = await self._open()
            except (OSError, TimeoutError, TryAgain, RedisError, UnsafeRedis) as error:
                self._abort()
                away = TryAgain(f"Redis is away: {str(error) or type(error).__name__}")
                self._note(error if isinstance(error, UnsafeRedis) else away)
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._connected.set()
            try:
                await self._watch(connection)
            finally:
                self._connected.clear()
                self._abort()

    def _abort(self) -> None:
        """The connections end; `run` makes others."""
        if self._connection is not None:
            self._connection.abort()
        if self._changes is not None:
            self._changes.connection.abort()

    def _note(self, fault: DcsError | None) -> None:
        """Keeps why the volume cannot be worked with, and says so once."""
        before, self.fault = self.fault, fault
        if fault is None:
            if before is not None:
                log.info("redis is back")
        elif type(fault) is not type(before):
            self.errors[next(kind for class_, kind in FAULT_KINDS if isinstance(fault, class_))] += 1
            log.log(logging.WARNING if isinstance(fault, TryAgain) else logging.ERROR, "%s", fault)

    async def _watch(self, connection: Connection) -> None:
        """Returns when a connection has ended, does not answer, or is not the primary's; looks at the volume
        meanwhile."""
        connections = [connection] if self._changes is None else [connection, self._changes.connection]
        questions: list[Command] = [("HMGET", self._key + b":volume", "uuid", "seq", "safe"), ("INFO", "replication")]
        while not any(c.closed.done() for c in connections):
            seen, probe = self._seq, connection.ask(questions)
            look = asyncio.create_task(self._look())
            try:
                await asyncio.wait(
                    [c.closed for c in connections], timeout=PROBE_SECONDS, return_when="FIRST_COMPLETED"
                )
                if not await look:
                    return
            finally:
                look.cancel()
            if any(c.oldest_seconds() > self.deadline_seconds + SILENCE_SECONDS for c in connections):
                return
            if any(isinstance(a, RedisError) and str(a).startswith(MOVED_ERRORS) for a in probe.answers):
                return
            if not probe.is_done or any(isinstance(answer, Exception) for answer in probe.answers):
                continue
            (uuid, seq, safe), replication = probe.answers
            self._judge_isolation(replication.decode())
            if uuid == self._uuid and safe == self._safe and (safe or int(seq) >= seen):
                if self._changes is None:
                    self._saw(int(seq))
                continue
            with contextlib.suppress(TryAgain, RedisError, TimeoutError):  # Then the next look tells more.
                async with asyncio.timeout(SETUP_SECONDS):
                    await self._open_volume(self._changes or connection)

    def _saw(self, seq: int) -> None:
        """A change that must not be undone. With replicas: one that a replica has."""
        self._seq = max(seq, self._seq)

    async def _look(self) -> bool:
        """Whether the primary is still where it was, as far as anybody knows."""
        if self._primary is None:
            return True
        before = self._primary.endpoint
        try:
            self._primary = await find_primary(self._place, self._key)
        except (TryAgain, UnsafeRedis):
            self._primary = Primary(before, is_by_majority=False)
        if self._has_quorum != self._primary.is_by_majority:
            self._has_quorum = self._primary.is_by_majority
            if self._has_quorum:
                log.info("most of those who decide on the primary of Redis answer again")
            else:
                log.error(NO_FAILOVER)
        if self._primary.endpoint != before:
            log.warning("the primary of Redis is %s now, not %s", self._primary.endpoint, before)
        return self._primary.endpoint == before

    def _judge_isolation(self, replication: str) -> None:
        """A primary that has lost its replicas and those who decide may have been replaced: it is not read from."""
        if self._primary is None:
            return
        lags = [int(lag) for lag in re.findall(r"^slave\d+:.*state=online.*lag=(\d+)", replication, re.MULTILINE)]
        if self._primary.is_by_majority or any(lag <= LAG_SECONDS_MAX for lag in lags):
            self._connected.set()
            if isinstance(self.fault, Isolated):
                self._note(None)
        else:
            self._connected.clear()
            if self.fault is None:
                self._note(Isolated(f"Redis at {self._primary.endpoint} is cut off: neither replica nor majority"))

    async def _open(self) -> Connection:
        """A connection that can be worked with, and that for changes beside it."""
        self._connection, self._changes, self._primary = None, None, None
        if self._place.is_replicated:
            self._primary = await find_primary(self._place, self._key)
        async with asyncio.timeout(SETUP_SECONDS):
            self._connection = connection = await self._connect()
            if self._primary is not None:
                role = (await connection.send("ROLE"))[0].decode()
                if role != "master":
                    raise TryAgain(f"{self._primary.endpoint} is not the primary yet, or no more: its role is {role}")
                self._changes = ReplicatedChanges(await self._connect(), self._key + b":volume", self._saw)
            await self._check_durability(connection)
            found = re.search(rb"^run_id:(\w+)", await connection.send("INFO", "server"), re.MULTILINE)
            self.process = found[1].decode() if found else ""
            await self._load(connection)
            await self._open_volume(self._changes or connection)
        return connection

    async def _connect(self) -> Connection:
        """Signed in, to the place or its primary."""
        place = self._place
        if place.path:
            connection = await connect_to_socket(place.path)
        else:
            endpoint = self._primary.endpoint if self._primary else place.endpoints[0]
            connection = await connect(endpoint.host, endpoint.port)
        try:
            if place.password:
                await connection.send("AUTH", *([place.username] if place.username else []), place.password)
            if place.db:
                await connection.send("SELECT", place.db)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _check_durability(self, connection: Connection) -> None:
        wanted = {"appendonly": b"yes", "appendfsync": b"always", "maxmemory-policy": b"noeviction"}
        flat = await connection.send("CONFIG", "GET", *wanted, "min-replicas-to-write")
        found = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
        wrong = [f"{k} {v.decode()}" for k, v in wanted.items() if found.get(k) != v]
        if self._place.is_replicated and found.get("min-replicas-to-write") in (None, b"0"):
            wrong.append("min-replicas-to-write 1")
        if wrong and not self._settings.accept_data_loss:
            raise UnsafeRedis(
                "Redis would lose acknowledged changes: set " + ", ".join(wrong) + " in its configuration, "
                "or start the naming server with --i-accept-data-loss"
            )

    async def _load(self, connection: Connection) -> None:
        found = await connection.send("FUNCTION", "LIST", "LIBRARYNAME", self._library.name)
        if found:
            return
        try:
            await connection.send("FUNCTION", "LOAD", "REPLACE", self._library.text)
        except RedisError as error:
            if str(error).startswith("ERR"):
                raise UnsafeRedis(
                    f"Redis 7.0 or newer is wanted; it does not take the function library: {error}"
                ) from error
            raise

    async def _open_volume(self, connection: Connection | ReplicatedChanges) -> None:
        """Learns the volume, or makes it where there is none and this process never saw one.

        Notes a fault where another volume is than before, or none, or an older state of it: then the
        functions refuse, and nothing is made, changed or deleted.
        """
        s = self._settings
        arguments = pack_arguments(
            {
                "make": not self._uuid, "uuid": self._uuid_to_make, "chunk_size": s.chunk_size,
                "replicas": s.replication_factor, "uid": s.root_uid, "gid": s.root_gid, "seq": self._seq,
                "outage_ms": int(1000 * max(s.session_lease_seconds / 4, 3 * s.background_interval_seconds)),
                "lease_ms": int(s.session_lease_seconds * 1000),
                "orphan_grace_ms": int(s.orphan_grace_seconds * 1000),
                "condemned_grace_ms": int(s.condemned_grace_seconds * 1000),
                "trash_ms": int(s.trash_days * 24 * 3600 * 1000),
            }
        )  # fmt: skip
        try:
            found, seq, safe, made = _results(
                "volume_open", await connection.send(*self._command("volume_open", 0, 0, arguments))
            )
        except Refused as error:
            if error.errno not in (ENOENT, ESTALE):
                raise
            lost = f"volume {self._uuid.decode()} is not in Redis any more"
            self._note(VolumeLost(f"{lost}: nothing is changed, and nothing deleted"))
            return
        self._uuid, self._seq, self._safe = found, max(seq, self._seq), safe or None
        self._note(VolumeLost(f"SAFE mode, read-only: {safe.decode()}") if safe else None)
        if made:
            log.info("made volume %s: chunk size %d, %d replicas", s.volume, s.chunk_size, s.replication_factor)


def _results(verb: str, packed: bytes) -> list[Any]:
    reply: list[Any] = msgpack.unpackb(packed, raw=True, strict_map_key=False)
    if reply[0] == NOT_LEADING:
        raise TryAgain("another naming server leads now")
    if reply[0] != 0:
        raise Refused(reply[0], verb)
    return reply[1:]
