"""A server with one lane of each kind, for the tests of the lane: `python -m tests.support.lane_server PORT_FILE`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from fastapi import FastAPI, Request, Response

from servers.serving import lane_protocol
from servers.serving.access import RequireSecret, Secret
from servers.serving.lane import Deferred, Lane, LaneReply, LaneRequest, json_reply, parse_query
from servers.serving.lane_route import lane_route
from servers.serving.memory import MemoryBudget
from servers.serving.server import configure_logging, listen, serve
from tests.support.storage_node import SECRET

BODY_BYTES_MAX = 1 << 20
BLOB = bytes(range(256)) * (1 << 16)


def echo(request: LaneRequest) -> LaneReply:
    return LaneReply(200, (bytes(request.body),), (("x-lane", "sync"),))


async def echo_later(request: LaneRequest) -> LaneReply:
    await asyncio.sleep(float(parse_query(request.query).get("s", "0")))
    return LaneReply(200, (bytes(request.body),), (("x-lane", "async"),))


def echo_deferred(request: LaneRequest) -> Deferred:
    answer, body = Deferred(), bytes(request.body)
    reply = LaneReply(200, (body,), (("x-lane", "deferred"),))
    asyncio.get_running_loop().call_later(float(parse_query(request.query).get("s", "0")), answer.set, reply)
    return answer


def fail(request: LaneRequest) -> LaneReply:
    raise RuntimeError("as the test wants it")


async def fail_later(request: LaneRequest) -> LaneReply:
    await asyncio.sleep(0)
    raise RuntimeError("as the test wants it")


def blob(request: LaneRequest) -> LaneReply:
    return LaneReply(200, (memoryview(BLOB), memoryview(BLOB)))


def memory(budget: MemoryBudget) -> Lane:
    return Lane("GET", "/memory", lambda _: json_reply(200, budget.taken_bytes))


def make_app(lanes: list[Lane]) -> FastAPI:
    app = FastAPI()

    @app.post("/asgi")
    async def asgi(request: Request) -> Response:
        return Response(await request.body(), headers={"x-lane": "asgi"})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {}

    for lane in lanes:
        app.add_api_route(lane.path.rstrip("/") + ("/{name}" if lane.path.endswith("/") else ""), lane_route(lane),
                          methods=[lane.method], response_model=None)  # fmt: skip
    return app


def main() -> None:
    configure_logging("info")
    lane_protocol.STALL_SECONDS = 1.0
    lane_protocol.MEMORY_WAIT_SECONDS = 1.0
    lane_protocol.TICK_SECONDS = 0.1
    budget = MemoryBudget(BODY_BYTES_MAX)
    lanes = [
        Lane("POST", "/echo", echo, BODY_BYTES_MAX),
        Lane("PUT", "/later/", echo_later, BODY_BYTES_MAX),
        Lane("PUT", "/deferred/", echo_deferred, BODY_BYTES_MAX),
        Lane("POST", "/fail", fail, BODY_BYTES_MAX),
        Lane("POST", "/fail_later", fail_later, BODY_BYTES_MAX),
        Lane("GET", "/blob", blob),
        memory(budget),
    ]
    secret = Secret(SECRET)
    bound = listen("127.0.0.1", int(os.environ.get("PORT", "0")))
    serve(RequireSecret(make_app(lanes), secret), lanes, secret, bound, budget=budget, port_file=Path(sys.argv[1]))


if __name__ == "__main__":
    main()
