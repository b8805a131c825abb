"""`POST /v1/ops`: the batches of mounts, served on the fast lane.

Passes packed operations to the functions in Redis and packed replies back; all of a batch
are on their way to Redis together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

import msgpack

from servers.naming.redis_connection import Asked, RedisError
from servers.naming.redis_store import RedisStore
from servers.protocol.errors import DcsError, Refused, TryAgain
from servers.protocol.ids import SessionNumber
from servers.protocol.limits import BATCH_BYTES_MAX, OPERATIONS_PER_BATCH_MAX
from servers.protocol.naming_api import DEADLINE_HEADER, OPS_PATH, Operation, pack_replies, unpack_batch
from servers.serving.lane import Deferred, Lane, LaneReply, LaneRequest, json_reply

log = logging.getLogger(__name__)

EIO = 5


def ops_lane(store: RedisStore) -> Lane:
    def handle(request: LaneRequest) -> LaneReply | Awaitable[LaneReply]:
        try:
            session, operations = unpack_batch(bytes(request.body))
            asked_seconds = int(request.headers.get(DEADLINE_HEADER, "30000")) / 1000
        except ValueError as error:
            return json_reply(400, {"detail": str(error)})
        if len(operations) > OPERATIONS_PER_BATCH_MAX:
            return json_reply(400, {"detail": f"a batch has at most {OPERATIONS_PER_BATCH_MAX} operations"})
        seconds = min(asked_seconds, store.deadline_seconds)
        asked = store.ask_together(session, operations) if operations else None
        if asked is not None:
            return _Batch(store, session, operations, asked, seconds).answer
        return _answer(store, session, operations, seconds)

    return Lane("POST", OPS_PATH, handle, BATCH_BYTES_MAX)


def _reply(replies: list[bytes | None]) -> LaneReply:
    return LaneReply(200, (pack_replies(replies),), (("content-type", "application/msgpack"),))


async def _answer(store: RedisStore, session: SessionNumber, operations: list[Operation], seconds: float) -> LaneReply:
    return _reply(await asyncio.gather(*(_ask(store, session, o, seconds) for o in operations)))


class _Batch:
    """Operations that are on their way to Redis, answered by callbacks: tasks and their deadlines would cost
    several times as much. What came as an error goes the long way, by its op id."""

    def __init__(
        self, store: RedisStore, session: SessionNumber, operations: list[Operation], asked: Asked, seconds: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._store, self._session, self._operations, self._asked = store, session, operations, asked
        self.answer = Deferred()
        self._began_at = self._loop.time()
        self._end_at = self._began_at + seconds
        self._timer = self._loop.call_at(self._end_at, self._time_is_over)
        self._again: asyncio.Task[None] | None = None
        asked.then(self._came)

    def _came(self) -> None:
        if self.answer.is_set:
            return
        replies = self._replies()
        took = self._loop.time() - self._began_at
        for operation, reply in zip(self._operations, replies, strict=True):
            if reply is not None:  # The others are counted where they are asked again.
                self._store.operations.observe(operation.verb, took, failed=False)
        if None not in replies:
            self._timer.cancel()
            self.answer.set(_reply(replies))
            return
        self._again = self._loop.create_task(self._ask_again(replies))

    def _replies(self) -> list[bytes | None]:
        """None for what has not come, and for what came as an error."""
        answers = [a if isinstance(a, bytes) else None for a in self._asked.answers]
        return answers + [None] * (len(self._operations) - len(answers))

    async def _ask_again(self, replies: list[bytes | None]) -> None:
        seconds = max(0.0, self._end_at - self._loop.time())
        missing = [index for index, reply in enumerate(replies) if reply is None]
        found = await asyncio.gather(
            *(
                _ask(self._store, self._session, self._operations[index], seconds, was_sent=self._is_unknown(index))
                for index in missing
            )
        )
        for index, reply in zip(missing, found, strict=True):
            replies[index] = reply
        if not self.answer.is_set:
            self.answer.set(_reply(replies))

    def _is_unknown(self, index: int) -> bool:
        """Whether nobody knows if the operation was done: there is no answer, or the connection ended before one."""
        answers = self._asked.answers
        return index >= len(answers) or not isinstance(answers[index], RedisError)

    def _time_is_over(self) -> None:
        if not self.answer.is_set:
            if self._again is not None:
                self._again.cancel()
            replies = self._replies()
            self._store.errors["redis_timeout"] += replies.count(None)
            self.answer.set(_reply(replies))


async def _ask(
    store: RedisStore, session: SessionNumber, o: Operation, seconds: float, *, was_sent: bool = False
) -> bytes | None:
    try:
        return await store.call(o.verb, session, o.n, o.arguments, seconds=seconds, was_sent=was_sent)
    except TryAgain:
        return None
    except Refused as error:
        number = error.errno
    except DcsError as error:  # An error of the function: a defect of ours, and no reason to hold up the others.
        log.error("%s of session %d: %s", o.verb, session, error)
        number = EIO
    reply: bytes = msgpack.packb([number])
    return reply
