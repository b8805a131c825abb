"""How to call the naming server: batches of operations, and the few JSON routes of the cluster.

Several naming servers may be listed; a call tries them in turn, from the one that answered
last. Retrying over time is the caller's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgpack

from servers.client.http import Answer, Transport
from servers.protocol.errors import DcsError, Refused, SessionLost, TryAgain, Unavailable
from servers.protocol.ids import ExtentId, NodeNumber, SessionNumber, extent_text
from servers.protocol.naming_api import (
    DAMAGE_PATH,
    DEADLINE_HEADER,
    NODES_PATH,
    OPS_PATH,
    Operation,
    pack_batch,
    unpack_replies,
)  # fmt: skip
from servers.protocol.placement import NodeView

SESSION_LOST = 1000
"""Not an errno: the reply of a function whose session is over; see lua/common.lua."""
TOO_OLD = 1001
"""Not an errno: the operation is so late that its result is forgotten."""

CONTROL_SECONDS = 10.0


def read_reply(verb: str, reply: bytes | None) -> list[Any]:
    """The results behind a packed reply. Raises Refused, SessionLost, TryAgain."""
    if reply is None:
        raise TryAgain(f"{verb}: the naming server could not ask Redis in time")
    fields: list[Any] = msgpack.unpackb(reply, raw=True, strict_map_key=False)
    if fields[0] == 0:
        return fields[1:]
    if fields[0] in (SESSION_LOST, TOO_OLD):
        raise SessionLost(f"{verb}: the session is over")
    raise Refused(fields[0], verb)


def parse_urls(text: str) -> list[str]:
    """The host:port of each of the comma-separated URLs. Raises ValueError."""
    addresses = []
    for url in text.split(","):
        scheme, separator, rest = url.strip().partition("://")
        address = rest.rstrip("/")
        if scheme != "http" or not separator or not address or "/" in address:
            raise ValueError(f"{url.strip()!r} is not the URL of a naming server, such as http://localhost:8000")
        addresses.append(address if ":" in address.rpartition("]")[2] else f"{address}:80")
    return addresses


class NamingClient:
    def __init__(self, transport: Transport, urls: str) -> None:
        self._transport = transport
        self._addresses = parse_urls(urls)
        self._current = 0

    @property
    def address(self) -> str:
        return self._addresses[self._current]

    async def batch(
        self,
        session: SessionNumber,
        operations: Sequence[Operation],
        *,
        first_byte_seconds: float,
        deadline_seconds: float,
    ) -> tuple[list[bytes | None], bool]:
        """One packed reply per operation, see `read_reply`; and whether some server had been sent them before, without
        an answer. Raises TryAgain, AccessDenied."""
        asked, answer = await self._ask(
            "POST",
            OPS_PATH,
            [pack_batch(session, operations)],
            first_byte_seconds=first_byte_seconds,
            deadline_seconds=deadline_seconds,
        )
        if answer.status != 200:
            raise _failure(self._addresses[asked], answer)
        replies = unpack_replies(bytes(answer.body))
        if None in replies:
            self._leave(asked)  # It may be cut off from a Redis that the others reach.
        return replies, answer.is_repeated

    async def nodes(self) -> list[NodeView]:
        rows = (await self.json("GET", NODES_PATH))["nodes"]
        fields = NodeView.__dataclass_fields__
        return [NodeView(**{name: row[name] for name in fields}) for row in rows]

    async def report_damage(self, extent: ExtentId, node: NodeNumber, why: str) -> None:
        await self.json("POST", DAMAGE_PATH, {"extent": extent_text(extent), "node": node, "why": why[:200]})

    async def json(self, method: str, target: str, content: object = None) -> dict[str, Any]:
        """A JSON route's answer. Raises Refused or TryAgain with the server's words."""
        body = [json.dumps(content).encode()] if content is not None else []
        asked, answer = await self._ask(
            method, target, body, first_byte_seconds=CONTROL_SECONDS, deadline_seconds=CONTROL_SECONDS
        )
        if answer.status >= 300:
            raise _failure(self._addresses[asked], answer)
        reply: dict[str, Any] = json.loads(bytes(answer.body)) if len(answer.body) else {}
        return reply

    async def _ask(
        self, method: str, target: str, body: Sequence[bytes], *, first_byte_seconds: float, deadline_seconds: float
    ) -> tuple[int, Answer]:
        """The answer of the first server that has one, and which that was. All within the deadline, of which a server
        that hangs leaves the others their part. Raises TryAgain, AccessDenied."""
        kind = "application/msgpack" if target == OPS_PATH else "application/json"
        deadline = time.monotonic() + deadline_seconds
        is_repeated = False
        for left in range(len(self._addresses) - 1, -1, -1):
            asked, seconds = self._current, max(deadline - time.monotonic(), 0.001)
            first_byte = min(first_byte_seconds, seconds / (left + 1))
            milliseconds = int(first_byte * 900)  # The rest is for the answer's way back.
            try:
                answer = await self._transport.request(
                    self._addresses[asked],
                    method,
                    target,
                    headers={"content-type": kind, DEADLINE_HEADER: str(milliseconds)},
                    body=body,
                    first_byte_seconds=first_byte,
                    deadline_seconds=seconds,
                )
                if answer.status != 503 or not left:
                    return asked, replace(answer, is_repeated=True) if is_repeated else answer
            except TryAgain:
                if not left or time.monotonic() >= deadline:
                    self._leave(asked)
                    raise
            self._leave(asked)
            is_repeated = True
        raise AssertionError("a naming client has at least one address")

    def _leave(self, asked: int) -> None:
        """The next call asks another server; unless one that ran beside this has moved on already."""
        if self._current == asked:
            self._current = (asked + 1) % len(self._addresses)


class ServerRefused(DcsError):
    """A JSON route refused; the message is the server's, `status` the HTTP status."""

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        super().__init__(detail)


def _failure(address: str, answer: Answer) -> DcsError:
    try:
        detail = str(json.loads(bytes(answer.body))["detail"])
    except (ValueError, KeyError, TypeError):
        detail = bytes(answer.body[:200]).decode("utf-8", "replace") or f"HTTP status {answer.status}"
    if answer.status == 503:
        return Unavailable(detail)
    if (answer.status, detail) == (404, "Not Found"):  # What a server says of a route that it does not have.
        detail = f"{address} is not a naming server"
    return ServerRefused(answer.status, detail)
