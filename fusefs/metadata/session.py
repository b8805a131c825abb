"""The mount's session: its lease, the ids it gives out, and what it is told of the volume and the nodes.

Renews the lease and reads the table of nodes until cancelled. When the lease was lost, another
session is opened and `on_new_session` is told, so that open files are registered again.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import trio

from fusefs.metadata.client import MetadataClient
from fusefs.settings import METADATA_DEADLINE_SECONDS, SESSION_RENEW_SECONDS
from servers.client.naming import NamingClient
from servers.protocol.errors import DcsError, SessionLost, TryAgain, Unavailable
from servers.protocol.ids import ExtentId, SessionNumber, extent_id
from servers.protocol.placement import NodeView

log = logging.getLogger(__name__)

NODES_SECONDS = 2.0
"""Between two looks at the table of nodes: a dead node is known soon after the naming server knows."""
RENEWALS_PER_LEASE = 6
REPEATABLE = frozenset({"accessed", "opens"})
"""Done twice, they are as done once, whatever others did in between."""
CLOCK_ERROR_NS = 1_000_000_000
"""How far the clocks of a volume's machines may be apart without being wrong."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What holds for the whole volume."""

    uuid: str
    chunk_size: int
    replicas: int


class Session:
    def __init__(
        self,
        metadata: MetadataClient,
        naming: NamingClient,
        on_nodes: Callable[[Iterable[NodeView]], None],
        what: str,
        on_new_session: Callable[[], None],
    ) -> None:
        self._metadata = metadata
        self._naming = naming
        self._on_nodes = on_nodes
        self._what = what
        self._on_new_session = on_new_session
        self._extents = 0
        self._clock_offset_ns = 0
        self._last_ns = 0
        self._renew_seconds = SESSION_RENEW_SECONDS
        self._renewing = trio.Lock()
        self._failures = 0
        """How often another session could not be opened."""
        self.sessions_lost = 0
        self.telling: Callable[[], bytes] = bytes
        """What the naming server is told of this mount with each renewal: see `fusefs.mount_facts`."""
        self.facts = Facts("", 0, 0)

    async def open(self) -> None:
        """Opens a session and learns the volume's facts and nodes. Raises what the calls raise."""
        nodes = await self._naming.nodes()
        number, facts = await self._metadata.ask("session_open", host=socket.gethostname(), what=self._what)
        self._expect_the_same(facts)
        # Nothing awaits from here on: there is a new session and everybody knows, or there is none.
        self._metadata.begin_session(SessionNumber(number))
        self._extents = 0
        self._learn(facts)
        self._on_nodes(nodes)

    def _expect_the_same(self, facts: dict[bytes, Any]) -> None:
        """Raises Unavailable where the naming server has another volume now: its inodes have the numbers of ours."""
        uuid = facts[b"uuid"].decode()
        if self.facts.uuid not in ("", uuid):
            self._metadata.begin_session(SessionNumber(0))  # There the number of ours may be another's.
            raise Unavailable(f"the naming server has volume {uuid} now, not {self.facts.uuid}, which is mounted here")

    def _learn(self, facts: dict[bytes, Any]) -> None:
        """Our clock is behind the volume's by what the answer took, and never ahead: a time of ours that is ahead
        would hide changes that the volume dates."""
        self._clock_offset_ns = facts[b"s"] * 1_000_000_000 + facts[b"ns"] - _steady_ns()
        self._renew_seconds = min(SESSION_RENEW_SECONDS, facts[b"lease_ms"] / 1000 / RENEWALS_PER_LEASE)
        self.facts = Facts(facts[b"uuid"].decode(), facts[b"chunk_size"], facts[b"replicas"])

    def now_ns(self) -> int:
        """The volume's time, as far as this mount knows it: nanoseconds since 1970, later than any it gave or saw,
        and not ahead. Whole microseconds, as all times are that the volume gives by itself."""
        self._last_ns = max(self._last_ns + 1000, _steady_ns() + self._clock_offset_ns) // 1000 * 1000
        return self._last_ns

    def saw(self, time_ns: int) -> None:
        """The volume gave this time, so now is later; unless the clock was wrong that gave it."""
        if self._last_ns < time_ns < _steady_ns() + self._clock_offset_ns + CLOCK_ERROR_NS:
            self._last_ns = time_ns

    def new_extent(self) -> ExtentId:
        """Raises Unavailable while there is no session: such an id would be a snapshot's, and could be given twice."""
        if not self._metadata.session:
            raise Unavailable("there is no session to store anything in")
        self._extents += 1
        return extent_id(self._metadata.session, self._extents)

    async def keep(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_lease)
            nursery.start_soon(self._keep_nodes)

    async def _keep_lease(self) -> None:
        while True:
            await trio.sleep(self._renew_seconds)
            session = self._metadata.session
            try:
                try:
                    (facts,) = await self._metadata.ask_in(
                        session, METADATA_DEADLINE_SECONDS, "session_renew", told=self.telling()
                    )
                    self._expect_the_same(facts)
                    self._learn(facts)
                except SessionLost:
                    await self.renew_lost(session)
            except DcsError as error:
                log.warning("cannot renew the session: %s", error)

    async def ask(self, verb: str, /, **arguments: Any) -> list[Any]:
        """As `MetadataClient.ask`; an operation that a lost session did not do is done by the next one. Raises
        Unavailable where it may have done it: a second time it could undo what others did in between."""
        for _ in range(2):
            before = self._metadata.session
            try:
                return await self._metadata.ask(verb, **arguments)
            except SessionLost as error:
                await self.renew_lost(before)
                if error.perhaps_done and verb not in REPEATABLE:
                    raise Unavailable(
                        f"{verb}: nobody can tell whether the session that is over has done it"
                    ) from error
        return await self._metadata.ask(verb, **arguments)

    async def renew_lost(self, lost: SessionNumber) -> None:
        """There is another session in place of the one that is over, whoever noticed. Raises what `open` raises."""
        failures = self._failures
        async with self._renewing:
            if self._metadata.session != lost:
                return
            if self._failures != failures:  # Who has waited while another tried in vain does not wait as long again.
                raise TryAgain("the session is over, and no other could be opened")
            log.warning("session %d is over; opening another", lost)
            try:
                await self.open()
            except DcsError:
                self._failures += 1
                raise
            self.sessions_lost += 1
            self._on_new_session()

    async def _keep_nodes(self) -> None:
        while True:
            await trio.sleep(NODES_SECONDS)
            try:
                nodes = await self._naming.nodes()
            except DcsError as error:
                log.debug("cannot read the table of nodes: %s", error)
            else:
                if self._metadata.session:  # Without one they may be another volume's.
                    self._on_nodes(nodes)

    async def close(self) -> None:
        await self._metadata.ask("session_close")


def _steady_ns() -> int:
    """A clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
