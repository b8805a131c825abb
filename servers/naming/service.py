"""What the routes and the background jobs of a naming server share: the store, the nodes, a session.

The naming server's own session makes the changes that people ask for over REST. When it was
lost (Redis away for longer than its lease) the next change opens another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from servers.client.http import HttpxTransport
from servers.client.naming import SESSION_LOST
from servers.client.storage import StorageClient
from servers.naming.deletion import Deletions
from servers.naming.membership import Member, Patience, read_members
from servers.naming.redis_store import RedisStore
from servers.naming.settings import NamingSettings
from servers.protocol.errors import DcsError, Refused, TryAgain
from servers.protocol.ids import ExtentId, SessionNumber, extent_id
from servers.protocol.limits import CHUNKS_PER_CALL_MAX, OP_WINDOW
from servers.protocol.placement import NodeView
from servers.protocol.requests import Requests

log = logging.getLogger(__name__)

T = TypeVar("T")

RENEW_SECONDS = 10.0
WALK_SHARE = 0.1
"""Of the time, at most, that a walk over all of the volume keeps Redis busy."""
STEP_SECONDS_MAX = 0.05
"""A step of a walk that takes longer has waited for a Redis that hangs, and has cost it nothing."""
CHANGES_AT_ONCE_MAX = OP_WINDOW // 4
"""Sent again after a broken connection, none is so late that Redis has forgotten its number."""


class Service:
    def __init__(self, settings: NamingSettings, secret: str) -> None:
        self.settings = settings
        self.store = RedisStore(settings)
        self.transport = HttpxTransport(secret)
        self.storage = StorageClient(self.transport)
        self.deletions = Deletions(self.store, self.storage, secret)
        self.chance = random.Random()
        self.requests = Requests()
        self.started_at = time.monotonic()
        self.jobs = Requests()
        """The runs of background jobs."""
        self._errors = Counter[str](dict.fromkeys(("foreign_node", "too_few_nodes"), 0))
        self.unstored_since: float | None = None
        """For how long Redis alone has had some change, on the monotonic clock, as far as the leader knows."""
        self.patience = Patience(
            settings.suspect_after_seconds, settings.dead_after_seconds, settings.returns_tolerated
        )
        self._session = SessionNumber(0)
        self._n = 0
        self._extents = 0
        self._opening = asyncio.Lock()
        self._changes = asyncio.Semaphore(CHANGES_AT_ONCE_MAX)

    def errors(self) -> dict[str, int]:
        """By kind, since the start: those of Redis, and what was refused for want of nodes or because of them."""
        return {**self.store.errors, **self._errors}

    def count_error(self, kind: str) -> None:
        self._errors[kind] += 1

    async def nodes(self) -> list[NodeView]:
        return [member.view for member in await self.members()]

    async def members(self) -> list[Member]:
        return read_members(await self.store.ask("nodes"), self.patience)

    async def gently(self, asking: Awaitable[T]) -> T:
        """The answer, for what walks over all of the volume: followed by a rest that leaves Redis to others."""
        began = time.monotonic()
        answer = await asking
        await asyncio.sleep(rest_after(time.monotonic() - began))
        return answer

    async def ask_gently(self, verb: str, /, **arguments: Any) -> list[Any]:
        return await self.gently(self.store.ask(verb, **arguments))

    async def parts_of_map(self, key: bytes) -> AsyncIterator[list[bytes]]:
        """Of a file's chunk map: index, segments, index, ...; some of them twice, perhaps.

        Only large ones need a rest: of small ones Redis has it while the next is asked for."""
        cursor, part = await self.store.command("HSCAN", key, "0", "COUNT", CHUNKS_PER_CALL_MAX)
        yield part
        while cursor != b"0":
            cursor, part = await self.gently(self.store.command("HSCAN", key, cursor, "COUNT", CHUNKS_PER_CALL_MAX))
            yield part

    async def change(self, verb: str, /, **arguments: Any) -> list[Any]:
        """A mutation in the server's own session. Raises Refused."""
        async with self._changes:
            for _ in range(2):
                session = self._session or await self._open_session()
                self._n += 1
                try:
                    return await self.store.ask(verb, session, self._n, **arguments)
                except Refused as error:
                    if error.errno != SESSION_LOST:
                        raise
                    self._lost(session)
        raise TryAgain("the naming server's own session was lost twice")

    async def new_extent(self) -> ExtentId:
        session = self._session or await self._open_session()
        self._extents += 1
        return extent_id(session, self._extents)

    async def keep_session(self) -> None:
        """Renews the lease until cancelled."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            session = self._session
            if session:
                try:
                    await self.store.ask("session_renew", session)
                except Refused:
                    self._lost(session)
                except DcsError as error:
                    log.info("the naming server's session is not renewed now: %s", error)

    def _lost(self, session: SessionNumber) -> None:
        if self._session == session:
            self._session = SessionNumber(0)

    async def _open_session(self) -> SessionNumber:
        async with self._opening:
            if not self._session:
                reply = await self.store.ask("session_open", host=socket.gethostname(), what="naming server")
                self._session, self._n, self._extents = SessionNumber(reply[0]), 0, 0
            return self._session

    async def close(self) -> None:
        if self._session and self.store.connected:
            with contextlib.suppress(TryAgain, Refused):
                await self.store.ask("session_close", self._session)
        await self.transport.close()


def rest_after(step_seconds: float) -> float:
    """How long a walk over all of the volume rests after such a step, in seconds."""
    return min(step_seconds, STEP_SECONDS_MAX) * (1 / WALK_SHARE - 1)


def alive(nodes: Sequence[NodeView]) -> list[NodeView]:
    return [node for node in nodes if node.state == "alive"]
