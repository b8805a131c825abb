"""`POST /v1/ops`: the batches of mounts, served on the fast lane.

Passes packed operations to the functions in Redis and packed replies back; all of a batch
are on their way to Redis together.
"""

from __future__ import annotations

import asyncio
import logging

import msgpack

from servers.naming.redis_store import CALL_SECONDS, RedisStore
from servers.protocol.errors import DcsError, Refused, TryAgain
from servers.protocol.ids import SessionNumber
from servers.protocol.limits import BATCH_BYTES_MAX, OPERATIONS_PER_BATCH_MAX
from servers.protocol.naming_api import DEADLINE_HEADER, OPS_PATH, Operation, pack_replies, unpack_batch
from servers.serving.lane import Lane, LaneReply, LaneRequest, json_reply

log = logging.getLogger(__name__)

EIO = 5


def ops_lane(store: RedisStore) -> Lane:
    async def handle(request: LaneRequest) -> LaneReply:
        try:
            session, operations = unpack_batch(bytes(request.body))
            seconds = min(CALL_SECONDS, int(request.headers.get(DEADLINE_HEADER, "30000")) / 1000)
        except ValueError as error:
            return json_reply(400, {"detail": str(error)})
        if len(operations) > OPERATIONS_PER_BATCH_MAX:
            return json_reply(400, {"detail": f"a batch has at most {OPERATIONS_PER_BATCH_MAX} operations"})
        if len(operations) == 1:
            replies = [await _ask(store, session, operations[0], seconds)]
        else:
            replies = await asyncio.gather(*(_ask(store, session, o, seconds) for o in operations))
        return LaneReply(200, (pack_replies(replies),), (("content-type", "application/msgpack"),))

    return Lane("POST", OPS_PATH, handle, BATCH_BYTES_MAX)


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
