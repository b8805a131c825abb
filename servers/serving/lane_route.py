"""A lane's handler as an ordinary endpoint: for the OpenAPI page, tests, and pipelined requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from servers.serving.lane import Lane, LaneReply, LaneRequest


def lane_route(lane: Lane) -> Callable[[Request], Awaitable[Response]]:
    """What to give `app.add_api_route` so that the ASGI app answers as the lane does."""

    async def endpoint(request: Request) -> Response:
        body = bytearray()
        with suppress(ClientDisconnect):
            async for piece in request.stream():
                body += piece
                if len(body) > lane.body_bytes_max:
                    raise HTTPException(413, f"a body here has at most {lane.body_bytes_max} bytes")
            return lane_response(await _call(lane, request, body))
        return Response(status_code=499)  # Nobody is there to read it.

    return endpoint


async def _call(lane: Lane, request: Request, body: bytearray) -> LaneReply:
    path = request.scope["raw_path"].decode("latin-1")
    headers = dict(request.headers.items())
    answer = lane.handler(LaneRequest(request.method, path, request.url.query, headers, memoryview(body)))
    return answer if isinstance(answer, LaneReply) else await answer


def lane_response(reply: LaneReply) -> Response:
    """The reply as Starlette has it: a copy."""
    response = Response(b"".join(reply.body), reply.status, dict(reply.headers))
    if reply.sent is not None:
        reply.sent()
    if reply.content_length is not None:
        response.headers["content-length"] = str(reply.content_length)
    return response
