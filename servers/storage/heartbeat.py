"""Tells the naming servers that this node is there, where, how full and what it holds: at start, every 2 s, at the end.

Asks for ever and logs only when things change. One naming server that answers is enough: they
share what they know.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from servers.client.http import Transport
from servers.protocol.errors import AccessDenied, TryAgain
from servers.protocol.requests import Figures

REGISTER_PATH = "/register_storage"
HEARTBEAT_SECONDS = 2.0
ANSWER_SECONDS = 1.5
"""One naming server may take this long; the next is asked then."""
END_SECONDS = 3.0
"""The last word has so long; unheard, it costs no more than being asked for each extent after the next start."""
_URL = re.compile(r"(?:http://)?([^/:\[\]]+|\[[0-9a-fA-F:]+\])(?::([0-9]+))?/?")
WILDCARDS = frozenset({"0.0.0.0", "[::]"})

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiskReport:
    """One disk, in the names of the naming server's JSON."""

    path: str
    state: str
    used_bytes: int
    free_bytes: int
    total_bytes: int
    replicas: int
    set_aside: int
    """Damaged replicas, moved out of the way and kept."""
    errors: int
    """Since the node's start."""
    scrubbed_s: int
    """When the last complete scrub ended, in seconds since 1970."""
    scrub_late: bool


@dataclass(frozen=True)
class Report:
    """What one heartbeat says, in the names of the naming server's JSON."""

    uuid: str
    address: str
    used_bytes: int
    free_bytes: int
    total_bytes: int
    space: str
    rack: str
    volume: str = ""
    """Whose extents it keeps; "" before the first answer."""
    seq: int = 0
    """The latest change of the volume that it was told of."""
    start: str = ""
    """Another one for each start of the node."""
    held: str = ""
    """A digest of the extents it has: equal ones for equal sets."""
    lost: int = 0
    """Grows when replicas went away or bad without an order, since this start."""
    ended: bool = False
    """The last word of this start: all that the node holds is on stable storage, and it takes nothing more."""
    store_ms: int = 0
    """What a store took lately, smoothed."""
    disks: tuple[DiskReport, ...] = ()
    stored_bytes: int = 0
    """Since this start, as are all below."""
    read_bytes: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    """By kind."""
    requests: Sequence[Figures] = ()
    """The slowest."""


class NotOurVolume(TryAgain):
    """The naming server works with another volume than the one whose extents are here."""


class Heartbeat:
    def __init__(
        self,
        transport: Transport,
        naming: Sequence[str],
        report: Callable[[], Report],
        learn: Callable[[str, int, int], None] = lambda uuid, seq, now_ms: None,
    ) -> None:
        """`naming` are host:port of naming servers; `report` and `learn`, which is told the volume, its latest change
        and Redis's time in milliseconds (0 when not told), may block for the disk."""
        self._transport = transport
        self._naming = list(naming)
        self._report = report
        self._learn = learn
        self._trouble: type[Exception] | None = None
        """Whether nobody answers or we are refused; each is said once."""
        self.node_number: int | None = None

    async def run(self) -> None:
        """Until cancelled; at once when there is nobody to tell."""
        while self._naming:
            await self._beat()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def end(self) -> None:
        """Somebody was told that this node ended in order, or there was nobody to tell in time."""
        if self._naming:
            with suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self._beat(ended=True)

    async def _beat(self, *, ended: bool = False) -> None:
        trouble: Exception | None = None
        for address in self._naming:
            try:
                report = replace(await asyncio.to_thread(self._report), ended=ended)
                body = json.dumps(asdict(report)).encode()
                answer = await self._tell(address, body)
                seq, now_ms = int(answer.get("seq", 0)), int(answer.get("now_ms", 0))
                await asyncio.to_thread(self._learn, str(answer["volume"]), seq, now_ms)
                self._accepted(address, int(answer["node"]))
            except (TryAgain, AccessDenied, OSError, ValueError, KeyError, TypeError) as error:  # Or a strange answer.
                trouble = error
            else:
                self._naming.remove(address)  # Ask this one first next time.
                self._naming.insert(0, address)
                return
        kind = NotOurVolume if isinstance(trouble, NotOurVolume) else Exception
        if self._trouble is not kind:
            logger.warning("no naming server takes this node's heartbeats: %s", trouble)
        self._trouble = kind

    async def _tell(self, address: str, body: bytes) -> dict[str, Any]:  # Any: values of JSON.
        headers = {"content-type": "application/json"}
        async with asyncio.timeout(2 * ANSWER_SECONDS):
            answer = await self._transport.request(
                address, "POST", REGISTER_PATH, headers=headers, body=[body],
                first_byte_seconds=ANSWER_SECONDS, deadline_seconds=ANSWER_SECONDS,
            )  # fmt: skip
        if answer.status == 409:
            raise NotOurVolume(f"{address}: {bytes(answer.body[:200]).decode('utf-8', 'replace')}")
        if answer.status != 200:
            raise TryAgain(f"{address}: {answer.status} {bytes(answer.body[:200]).decode('utf-8', 'replace')}")
        reply: dict[str, Any] = json.loads(bytes(answer.body))
        return reply

    def _accepted(self, address: str, number: int) -> None:
        if number != self.node_number:
            logger.info("this is node %d of the naming server at %s", number, address)
        elif self._trouble:
            logger.info("the naming server at %s takes heartbeats again", address)
        self.node_number, self._trouble = number, None


def naming_addresses(urls: str) -> list[str]:
    """host:port of each of the comma separated URLs. Raises ValueError."""
    addresses = []
    for url in filter(None, (part.strip() for part in urls.split(","))):
        match = _URL.fullmatch(url)
        if match is None:
            raise ValueError(f"NAMING_URL: not http://host:port: {url!r}")
        addresses.append(f"{match[1]}:{match[2] or 80}")
    return addresses


def reachable_address(bound: str, naming: Sequence[str]) -> str:
    """`bound`, host:port, with the machine's own address on the way to the naming server where it binds them all."""
    host, _, port = bound.rpartition(":")
    if host not in WILDCARDS:
        return bound
    for address in naming:
        name, _, number = address.rpartition(":")
        try:
            family, kind, _, _, peer = socket.getaddrinfo(name.strip("[]"), number, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:
                probe.connect(peer)  # Sends nothing: it only asks for the route.
                own = probe.getsockname()[0]
        except OSError:
            continue
        return f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
    return f"{socket.gethostname()}:{port}"
