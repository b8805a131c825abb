"""Operations on the metadata, many of them in one request.

Called by the file system; knows verbs and sessions, not what they mean. An operation is sent
at once while a connection is free; those that wait at the same moment then travel together.
What got no answer is sent again with the same numbers, so it takes effect once, until the
deadline. The next operation then says that it was given up: if it has not taken effect by
that time, it never will. Or its caller keeps it, and asks again later, under the same number.

The task that asks carries the batch; nothing between taking operations from `_waiting` and
sending them awaits.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import trio

from fusefs.settings import METADATA_DEADLINE_SECONDS, METADATA_FIRST_BYTE_SECONDS
from servers.client.naming import NamingClient, read_reply
from servers.protocol.errors import Refused, SessionLost, TryAgain, Unavailable
from servers.protocol.ids import SessionNumber
from servers.protocol.limits import OP_WINDOW, OPERATIONS_PER_BATCH_MAX
from servers.protocol.naming_api import MUTATIONS, READS, Operation, pack_arguments

log = logging.getLogger(__name__)

EIO, ENOSPC, EROFS = 5, 28, 30
SAY_NOTHING = frozenset({EIO, ENOSPC, EROFS})
"""Of an operation that may have been done: a Redis that is full, lost or failing refuses without a look at that."""
FREEING = frozenset({"unlink", "rmdir", "rename", "setattr", "removexattr"})
"""What makes room. A commit that a full Redis refuses may have to wait for these: they do not wait for it as soon."""
BATCHES_AT_ONCE_MAX = 4
BATCH_BYTES_SOFT = 4 * 1024 * 1024
RETRY_SECONDS = 0.1
RETRY_SECONDS_MAX = 1.0


class _Waiting:
    """An operation under way; `answered` is set with a reply or an error."""

    __slots__ = ("answered", "error", "is_repeated", "operation", "reply", "session")

    def __init__(self, session: SessionNumber, operation: Operation) -> None:
        self.session = session
        self.is_repeated = False
        self.operation = operation
        self.reply: bytes | None = None
        self.error: Exception | None = None
        self.answered: trio.Event | None = None


class Kept:
    """A mutation that is asked again, under its own number, until it is known what became of it: done a second time,
    under another, it could undo what others did in between. Open from its sending to its answer."""

    __slots__ = ("_client", "is_doubtful", "operation", "session")

    def __init__(self) -> None:
        self._client: MetadataClient | None = None
        self.is_doubtful = False
        """It was sent, and may have been done, without an answer."""
        self.session = SessionNumber(0)
        self.operation: Operation | None = None

    @property
    def is_open(self) -> bool:
        return self.operation is not None

    def begin(self, client: MetadataClient, operation: Operation) -> None:
        self._client, self.session, self.operation = client, client.session, operation
        self.is_doubtful = False

    def end(self) -> None:
        self.operation = None

    def withdraw(self) -> None:
        """Nobody asks again: if it has not taken effect by the next operation, it never will."""
        if self._client is not None:
            self._client.withdraw(self)
        self.end()


class MetadataClient:
    """One session's operations at a time: `begin_session` starts the numbering anew. In session 0 nothing is asked but
    for another one."""

    def __init__(self, naming: NamingClient, nursery: trio.Nursery) -> None:
        self._naming = naming
        self._nursery = nursery
        self.session = SessionNumber(0)
        self._n = 0
        self._outstanding: dict[int, None] = {}
        self._given_up: dict[int, None] = {}
        """Numbers of operations that may still be on their way somewhere."""
        self._room = trio.Condition()
        self._queue: deque[_Waiting] = deque()
        self._batches = 0
        self._operations_sent = self._batches_sent = self._retries = 0

    def begin_session(self, session: SessionNumber) -> None:
        self.session = session
        self._n = 0
        self._outstanding.clear()
        self._given_up.clear()

    def statistics(self) -> dict[str, int]:
        return {"operations": self._operations_sent, "batches": self._batches_sent, "retries": self._retries}

    async def ask(self, verb: str, /, **arguments: Any) -> list[Any]:
        """The verb's results. Raises Refused, SessionLost, and Unavailable at the deadline."""
        return await self.ask_in(None, METADATA_DEADLINE_SECONDS, verb, **arguments)

    async def ask_in(
        self, wanted: SessionNumber | None, seconds: float, verb: str, /, kept: Kept | None = None, **arguments: Any
    ) -> list[Any]:
        """As `ask`, with a deadline of so many seconds; a mutation in that session or not at all. Raises SessionLost
        when another has begun. One that is `kept` is not given up at the deadline: see `ask_again`."""
        deadline = trio.current_time() + seconds
        self._expect_session(verb)
        if verb not in MUTATIONS:
            reply, _ = await self._send(Operation(verb, 0, pack_arguments(arguments)), deadline)
            return read_reply(verb, reply)
        await self._wait_for_window(verb, deadline)
        if wanted not in (None, self.session):
            raise SessionLost(f"{verb}: the session is over")
        self._n += 1
        n, session = self._n, self.session
        self._outstanding[n] = None
        given_up = list(self._given_up)
        if given_up:
            arguments["given_up"] = given_up
        operation = Operation(verb, n, pack_arguments(arguments))
        if kept is not None:
            kept.begin(self, operation)
        perhaps_done = False
        try:
            reply, perhaps_done = await self._send(operation, deadline, kept)
            if session == self.session:
                for number in given_up:
                    self._given_up.pop(number, None)
            return _read(verb, reply, kept)
        except SessionLost as error:
            error.perhaps_done |= perhaps_done
            if kept is not None:
                kept.end()
            raise
        except Unavailable:
            if session == self.session and kept is None:
                self._give_up(n)
            raise
        finally:
            if kept is None or not kept.is_open:
                self._settle(session, n)

    def _expect_session(self, verb: str) -> None:
        if not self.session and verb != "session_open":
            raise SessionLost(f"{verb}: there is no session")

    async def _wait_for_window(self, verb: str, deadline: float) -> None:
        """The oldest operation without an answer is not too far behind. Raises Unavailable at the deadline."""
        ahead_max = OP_WINDOW - OPERATIONS_PER_BATCH_MAX if verb in FREEING else OP_WINDOW // 2
        while self._outstanding and self._n - next(iter(self._outstanding)) >= ahead_max:
            if trio.current_time() >= deadline:
                raise Unavailable(f"{verb}: an operation long before it has no answer yet")
            # Looked at again after a while in any case: a new session forgets what was outstanding, and wakes nobody.
            with trio.move_on_after(RETRY_SECONDS_MAX):
                async with self._room:
                    await self._room.wait()

    async def ask_again(self, kept: Kept, seconds: float) -> list[Any]:
        """The results of a mutation that was kept, and is done now if it was not yet. Raises as `ask`; SessionLost when
        the session is over, so that nobody can tell."""
        operation = kept.operation
        if operation is None:
            raise ValueError("the operation is answered")
        try:
            if kept.session != self.session:
                raise SessionLost(f"{operation.verb}: the session is over")
            reply, _ = await self._send(operation, trio.current_time() + seconds, kept)
            return _read(operation.verb, reply, kept)
        except SessionLost:
            kept.end()
            raise
        finally:
            if not kept.is_open:
                self._settle(kept.session, operation.n)

    def withdraw(self, kept: Kept) -> None:
        operation = kept.operation
        if operation is not None and kept.session == self.session:
            self._give_up(operation.n)
            self._settle(kept.session, operation.n)

    def _settle(self, session: SessionNumber, n: int) -> None:
        """Nobody asks for this operation again."""
        if session == self.session:
            self._outstanding.pop(n, None)
            if self._n - n >= OP_WINDOW // 4:
                self._nursery.start_soon(self._wake)

    def _give_up(self, n: int) -> None:
        self._given_up[n] = None
        if len(self._given_up) > OP_WINDOW:
            del self._given_up[next(iter(self._given_up))]

    async def _wake(self) -> None:
        async with self._room:
            self._room.notify_all()

    async def _send(self, operation: Operation, deadline: float, kept: Kept | None = None) -> tuple[bytes, bool]:
        """The reply, and whether the operation may have been done before it. Raises as `ask`."""
        waiting = _Waiting(self.session, operation)
        pause, perhaps_done = RETRY_SECONDS, False
        while True:
            self._queue.append(waiting)
            if self._batches < BATCHES_AT_ONCE_MAX:
                await self._carry()
            if waiting.reply is None and waiting.error is None:
                waiting.answered = trio.Event()
                with trio.move_on_at(deadline + RETRY_SECONDS_MAX):
                    await waiting.answered.wait()
            perhaps_done |= waiting.is_repeated or waiting.reply is None
            if kept is not None:
                kept.is_doubtful |= perhaps_done
            if waiting.reply is not None:
                return waiting.reply, perhaps_done
            error, waiting.error, waiting.answered = waiting.error, None, None
            if error is not None and not isinstance(error, TryAgain):
                raise error
            if waiting.session != self.session:
                is_read = operation.verb in READS
                if not is_read or not self.session:
                    lost = SessionLost(f"{operation.verb}: the session is over")
                    lost.perhaps_done = not is_read
                    raise lost
                waiting.session = self.session  # It changes nothing, and no session matters to it.
            if trio.current_time() + pause > deadline:
                raise Unavailable(f"{operation.verb}: no answer from the naming server: {error}") from error
            self._retries += 1
            await trio.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS_MAX)

    def _take(self) -> list[_Waiting]:
        """The next operations to travel together: of one session, bounded in number and bytes."""
        batch: list[_Waiting] = []
        size = 0
        while self._queue and len(batch) < OPERATIONS_PER_BATCH_MAX and size < BATCH_BYTES_SOFT:
            if batch and self._queue[0].session != batch[0].session:
                break
            waiting = self._queue.popleft()
            size += len(waiting.operation.arguments)
            batch.append(waiting)
        return batch

    async def _carry(self) -> None:
        """Sends one batch; if more wait by then, another task carries on."""
        batch = self._take()
        if not batch:
            return
        self._batches += 1
        self._batches_sent += 1
        self._operations_sent += len(batch)
        try:
            replies, is_repeated = await self._naming.batch(
                batch[0].session, [w.operation for w in batch],
                first_byte_seconds=METADATA_FIRST_BYTE_SECONDS, deadline_seconds=METADATA_DEADLINE_SECONDS,
            )  # fmt: skip
            for waiting, reply in zip(batch, replies, strict=True):
                waiting.reply, waiting.is_repeated = reply, is_repeated
                if reply is None:
                    waiting.error = TryAgain("the naming server cannot reach Redis")
        except Exception as error:  # noqa: BLE001 - not swallowed: who waits for an operation of the batch raises it
            for waiting in batch:
                waiting.error = error
        finally:
            self._batches -= 1
            for waiting in batch:
                if waiting.reply is None and waiting.error is None:
                    waiting.error = TryAgain("the request was abandoned")
                if waiting.answered is not None:
                    waiting.answered.set()
            if self._queue:
                self._nursery.start_soon(self._carry)


def _read(verb: str, reply: bytes, kept: Kept | None) -> list[Any]:
    """The results. Raises as `read_reply`. What says nothing of an operation that was sent more than once ends it only
    when it was not."""
    try:
        results = read_reply(verb, reply)
    except Refused as error:
        if kept is not None and not (kept.is_doubtful and error.errno in SAY_NOTHING):
            kept.end()
        raise
    if kept is not None:
        kept.end()
    return results
