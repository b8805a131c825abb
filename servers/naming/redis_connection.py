"""One pipelined connection to a Redis: requests out, replies in, in order.

Called by the store and by whoever looks for the primary; knows RESP, and nothing of what the
commands do. It is our own because each call is on the path of a system call: a redis-py command
costs some 150 µs of CPU, this 20. One event loop; nothing here waits but for replies.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis

from servers.protocol.errors import DcsError, TryAgain

CONNECT_SECONDS = 1.0

Command = tuple[bytes | str | int, ...]


class RedisError(DcsError):
    """An error reply."""


class UnsafeRedis(DcsError):
    """Redis is not set up to keep what it acknowledges, or is not the one that was meant."""


class Asked:
    """Commands sent together, and the answers that have come: in the same order, an exception where one was refused
    or where the connection broke."""

    __slots__ = ("_then", "answers", "count", "since")

    def __init__(self, count: int) -> None:
        self.count = count
        self.answers: list[Any] = []
        self.since = time.monotonic()
        self._then: Callable[[], None] | None = None

    @property
    def is_done(self) -> bool:
        """All answers are there."""
        return len(self.answers) == self.count

    def then(self, call: Callable[[], None]) -> None:
        """`call` is called when all answers are there, at once if they are; it must not raise. A future would cost a
        turn of the event loop."""
        if self.is_done:
            call()
        else:
            self._then = call

    async def wait(self) -> None:
        """Until all answers are there."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.then(lambda: None if done.done() else done.set_result(None))
        await done

    def add(self, answer: Any) -> None:
        self.answers.append(answer)
        if self._then is not None and self.is_done:
            self._then()

    def give_up(self, error: Exception) -> None:
        while not self.is_done:
            self.add(error)


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._reader = hiredis.Reader(replyError=RedisError)
        self._waiting: deque[Asked] = deque()
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        while self._waiting:
            self._waiting.popleft().give_up(TryAgain("the connection to Redis broke"))
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        waiting = self._waiting
        while (reply := self._reader.gets()) is not False:
            asked = waiting[0]
            if len(asked.answers) + 1 == asked.count:
                waiting.popleft()  # Before who waits is told, who may ask more.
            asked.add(reply)

    def ask(self, commands: Sequence[Command]) -> Asked:
        """At least one command, on its way."""
        asked = Asked(len(commands))
        if self._transport is None or self._transport.is_closing():
            asked.give_up(TryAgain("the connection to Redis broke"))
            return asked
        self._waiting.append(asked)
        packed = [hiredis.pack_command(c) for c in commands]  # type: ignore[arg-type]  # its stub says list-like
        self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))
        return asked

    async def send(self, *command: bytes | str | int) -> Any:
        """The command's reply. Raises TryAgain when the connection breaks, and what Redis refuses."""
        asked = self.ask([command])
        await asked.wait()
        answer = asked.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def oldest_seconds(self) -> float:
        return time.monotonic() - self._waiting[0].since if self._waiting else 0.0

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def connect(host: str, port: int) -> Connection:
    """Raises OSError, also when it takes longer than CONNECT_SECONDS."""
    async with asyncio.timeout(CONNECT_SECONDS):
        _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return connection


async def connect_to_socket(path: str) -> Connection:
    """Raises OSError, also when it takes longer than CONNECT_SECONDS."""
    async with asyncio.timeout(CONNECT_SECONDS):
        _, connection = await asyncio.get_running_loop().create_unix_connection(Connection, path)
    return connection
