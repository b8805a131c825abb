"""`POST /v1/ops`: the batches of mounts, served on the fast lane.

Passes packed operations to the functions in Redis and packed replies back; all of a batch
are on their way to Redis together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any

import msgpack

from servers.naming.redis_store import RedisStore
from servers.protocol.errors import DcsError, Refused, TryAgain
from servers.protocol.ids import SessionNumber
from servers.protocol.limits import BATCH_BYTES_MAX, OPERATIONS_PER_BATCH_MAX
from servers.protocol.naming_api import DEADLINE_HEADER, OPS_PATH, Operation, pack_replies, unpack_batch
from servers.serving.lane import Lane, LaneReply, LaneRequest, json_reply

log = logging.getLogger(__name__)

EIO = 5


def ops_lane(store: RedisStore) -> Lane:
    def handle(request: LaneRequest) -> LaneReply | Awaitable[LaneReply]:
        try:
            session, operations = unpack_batch(bytes(request.body))
            seconds = int(request.headers.get(DEADLINE_HEADER, "30000")) / 1000
        except ValueError as error:
            return json_reply(400, {"detail": str(error)})
        if len(operations) > OPERATIONS_PER_BATCH_MAX:
            return json_reply(400, {"detail": f"a batch has at most {OPERATIONS_PER_BATCH_MAX} operations"})
        if len(operations) == 1:
            o = operations[0]
            sent = store.send(o.verb, session, o.n, o.arguments)
            if sent is not None:
                return _Single(store, session, o, seconds, sent).answer
        return _answer(store, session, operations, seconds)

    return Lane("POST", OPS_PATH, handle, BATCH_BYTES_MAX)


def _reply(replies: list[bytes | None]) -> LaneReply:
    return LaneReply(200, (pack_replies(replies),), (("content-type", "application/msgpack"),))


async def _answer(store: RedisStore, session: SessionNumber, operations: list[Operation], seconds: float) -> LaneReply:
    return _reply(await asyncio.gather(*(_ask(store, session, o, seconds) for o in operations)))


class _Single:
    """One operation that is on its way to Redis, answered by callbacks: a task and its deadline would cost as
    much again. What did not come, or came as an error, goes the long way, by its op id."""

    def __init__(
        self, store: RedisStore, session: SessionNumber, o: Operation, seconds: float, sent: asyncio.Future[bytes]
    ) -> None:
        loop = asyncio.get_running_loop()
        end_at = loop.time() + seconds
        self.answer: asyncio.Future[LaneReply] = loop.create_future()

        def ask_again() -> Coroutine[Any, Any, LaneReply]:
            return _answer(store, session, [o], max(0.0, end_at - loop.time()))

        self._ask_again = ask_again
        self._timer = loop.call_at(end_at, self._time_is_over)
        sent.add_done_callback(self._came)

    def _came(self, sent: asyncio.Future[bytes]) -> None:
        self._timer.cancel()
        if self.answer.done():
            return
        if sent.exception() is None:
            self.answer.set_result(_reply([sent.result()]))
            return
        again = asyncio.ensure_future(self._ask_again())
        self.answer.add_done_callback(lambda _: again.cancel())
        again.add_done_callback(self._came_again)

    def _came_again(self, again: asyncio.Future[LaneReply]) -> None:
        if self.answer.done():
            return
        if again.cancelled():
            self.answer.cancel()
        elif (error := again.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(again.result())

    def _time_is_over(self) -> None:
        if not self.answer.done():
            self.answer.set_result(_reply([None]))


async def _ask(store: RedisStore, session: SessionNumber, o: Operation, seconds: float) -> bytes | None:
    try:
        return await store.call(o.verb, session, o.n, o.arguments, seconds=seconds)
    except TryAgain:
        return None
    except Refused as error:
        number = error.errno
    except DcsError as error:  # An error of the function: a defect of ours, and no reason to hold up the others.
        log.error("%s of session %d: %s", o.verb, session, error)
        number = EIO
    reply: bytes = msgpack.packb([number])
    return reply
