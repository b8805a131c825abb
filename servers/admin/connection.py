"""A command's connection to the cluster: operations that are asked again until they are answered, and a session.

Called by everything in this package that speaks to servers; knows no command. One event loop,
one command; nothing here is shared between threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

from servers.admin.access import Access
from servers.admin.errors import Problem
from servers.client.asyncio_transport import AsyncioTransport
from servers.client.http import FIRST_BYTE_SECONDS
from servers.client.naming import NamingClient, parse_urls, read_reply
from servers.client.storage import StorageClient
from servers.protocol.errors import DcsError, SessionLost, TryAgain, Unavailable
from servers.protocol.ids import ExtentId, SessionNumber, extent_id
from servers.protocol.naming_api import MUTATIONS, operation
from servers.protocol.storage_api import HEALTH_PATH

FIRST_CONTACT_SECONDS = 5.0
"""A naming server that nobody has heard of yet is given up after this."""
METADATA_SECONDS = 30.0
PAUSE_SECONDS_FIRST = 0.1
PAUSE_SECONDS_MAX = 1.0
RENEW_SECONDS = 10.0
CLOSE_SECONDS = 2.0
HEALTH_SECONDS = 3.0

NO_SESSION = SessionNumber(0)


class Connection:
    def __init__(self, access: Access) -> None:
        """Raises Problem for a naming URL that is none."""
        self._transport = AsyncioTransport(access.secret)
        try:
            self.naming_addresses = parse_urls(access.naming_urls)
            self.naming = NamingClient(self._transport, access.naming_urls)
        except ValueError as error:
            raise Problem(str(error)) from error
        self.storage = StorageClient(self._transport)
        self._was_answered = False

    async def close(self) -> None:
        await self._transport.close()

    async def health(self, address: str) -> str:
        """What the naming server there says of itself: ok, or what is wrong; away when it does not answer."""
        try:
            answer = await self._transport.request(address, "GET", HEALTH_PATH, deadline_seconds=HEALTH_SECONDS)
            return str(json.loads(bytes(answer.body))["status"])
        except (TryAgain, ValueError, KeyError, TypeError):
            return "away"

    async def ask(self, verb: str, session: SessionNumber = NO_SESSION, n: int = 0, /, **arguments: Any) -> list[Any]:
        """The operation's results. Asks again until the deadline. Raises Refused, SessionLost, Unavailable."""
        loop, pause = asyncio.get_running_loop(), PAUSE_SECONDS_FIRST
        started = loop.time()
        asked = [operation(verb, n, **arguments)]
        while True:
            left = started + self._patience() - loop.time()
            try:
                (reply,), _ = await self.naming.batch(
                    session, asked, first_byte_seconds=min(left, FIRST_BYTE_SECONDS), deadline_seconds=left
                )
                self._was_answered = True
                return read_reply(verb, reply)
            except TryAgain as error:
                if loop.time() + pause >= started + self._patience():
                    raise Unavailable(f"No naming server could answer: {error}") from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    def _patience(self) -> float:
        return METADATA_SECONDS if self._was_answered else FIRST_CONTACT_SECONDS

    @contextlib.asynccontextmanager
    async def session(self, what: str) -> AsyncIterator[Session]:
        """A session that is kept alive inside, and closed at the end if anybody answers."""
        number, facts = await self.ask("session_open", host=socket.gethostname(), what=what)
        session = Session(self, SessionNumber(number), facts)
        keeping = asyncio.create_task(session.keep(), name="session")
        try:
            yield session
        finally:
            keeping.cancel()
            with contextlib.suppress(DcsError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self.ask("session_close", session.number)


class Session:
    """Numbers its mutations, so that one that is sent twice takes effect once."""

    def __init__(self, connection: Connection, number: SessionNumber, facts: dict[bytes, Any]) -> None:
        self.number = number
        self.volume: str = facts[b"uuid"].decode()
        self.replicas: int = facts[b"replicas"]
        self._connection = connection
        self._operations = 0
        self._extents = 0

    async def change(self, verb: str, /, **arguments: Any) -> list[Any]:
        """A mutation's results. Raises Refused, SessionLost, Unavailable."""
        if verb not in MUTATIONS:
            raise ValueError(f"{verb} changes nothing")
        self._operations += 1
        return await self._connection.ask(verb, self.number, self._operations, **arguments)

    def new_extent(self) -> ExtentId:
        self._extents += 1
        return extent_id(self.number, self._extents)

    async def keep(self) -> None:
        """Renews the lease until cancelled, or until it is lost: then the next change says so."""
        with contextlib.suppress(SessionLost):
            while True:
                await asyncio.sleep(RENEW_SECONDS)
                with contextlib.suppress(TryAgain):
                    await self._connection.ask("session_renew", self.number)
