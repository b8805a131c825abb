"""What a fast lane is made of: which requests it takes, what its handler gets and gives.

`servers.serving.lane_protocol` serves lanes; the naming server and the storage node define them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from servers.protocol.checksum import Buffer

HEAD_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class LaneRequest:
    method: str
    path: str
    """As sent: nothing is percent-decoded."""
    query: str
    headers: Mapping[str, str]
    """Names in lower case; values of a repeated one joined by commas."""
    body: memoryview
    """Do not keep it after the reply."""


@dataclass(frozen=True, slots=True)
class LaneReply:
    status: int
    body: Sequence[Buffer] = ()
    headers: tuple[tuple[str, str], ...] = ()
    content_length: int | None = None
    """Of a HEAD reply, which has no body to measure."""
    sent: Callable[[], None] | None = None
    """Called once when the body has left for the client or the connection is lost: its memory is free again."""


class Deferred:
    """A reply that is not there yet, and who waits for it. For what happens per system call: a future costs each who
    waits for it a turn of the event loop. Can be awaited all the same. Event loop only."""

    __slots__ = ("_reply", "_waiting")

    def __init__(self) -> None:
        self._reply: LaneReply | None = None
        self._waiting: list[Callable[[LaneReply], None]] = []

    @property
    def is_set(self) -> bool:
        return self._reply is not None

    def set(self, reply: LaneReply) -> None:
        """Once. Those who wait are called before this returns."""
        self._reply = reply
        for then in self._waiting:
            then(reply)

    def then(self, call: Callable[[LaneReply], None]) -> None:
        """`call` is called with the reply, at once if it is there; it must not raise."""
        if self._reply is None:
            self._waiting.append(call)
        else:
            call(self._reply)

    def __await__(self) -> Generator[Any, None, LaneReply]:
        there: asyncio.Future[LaneReply] = asyncio.get_running_loop().create_future()
        self.then(lambda reply: None if there.done() else there.set_result(reply))
        return there.__await__()


Handler = Callable[[LaneRequest], LaneReply | Awaitable[LaneReply]]


@dataclass(frozen=True, slots=True)
class Lane:
    """Requests of `method` to `path`: that path alone, or, where it ends in a slash, it and one more segment."""

    method: str
    path: str
    handler: Handler
    body_bytes_max: int = 0
    start: bytes = field(init=False)
    is_one_path: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", f"{self.method} {self.path}".encode("ascii"))
        object.__setattr__(self, "is_one_path", not self.path.endswith("/"))

    def takes(self, data: bytes) -> bool | None:
        """Whether a request that begins with `data` belongs here; None when too little came to tell."""
        start = self.start
        if not data.startswith(start):
            return None if start.startswith(data) else False
        if len(data) == len(start):
            return None
        if self.is_one_path:
            return data[len(start)] in b" ?"
        end = data.find(b" ", len(start))
        if end < 0:
            return None if len(data) <= HEAD_BYTES_MAX else False
        segment = data[len(start) : end].partition(b"?")[0]
        return segment != b"" and b"/" not in segment


def json_reply(status: int, content: object, headers: tuple[tuple[str, str], ...] = ()) -> LaneReply:
    return LaneReply(status, (json.dumps(content).encode(),), (("content-type", "application/json"), *headers))


def parse_query(query: str) -> dict[str, str]:
    """The plain form that lanes take: `a=1&b=2`, nothing percent-encoded."""
    pairs: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        pairs[name] = value
    return pairs
