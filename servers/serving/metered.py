"""Counts the requests of a server: those of fast lanes by their handlers, all others by their routes."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from functools import wraps
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from servers.protocol.requests import Requests
from servers.serving.lane import Deferred, Lane, LaneReply, LaneRequest


def metered_lane(lane: Lane, requests: Requests, verb: str) -> Lane:
    """The lane, its requests counted until the reply is ready to be written."""
    handler = lane.handler

    @wraps(handler)
    def handle(request: LaneRequest) -> LaneReply | Awaitable[LaneReply]:
        began = perf_counter()
        answer = handler(request)
        if isinstance(answer, LaneReply):
            requests.observe(verb, perf_counter() - began, failed=answer.status >= 500)
            return answer
        if isinstance(answer, Deferred):
            answer.then(lambda reply: requests.observe(verb, perf_counter() - began, failed=reply.status >= 500))
            return answer
        return _observed(requests, verb, began, answer)

    return replace(lane, handler=handle)


async def _observed(requests: Requests, verb: str, began: float, answer: Awaitable[LaneReply]) -> LaneReply:
    status = 500
    try:
        reply = await answer
        status = reply.status
        return reply
    finally:
        requests.observe(verb, perf_counter() - began, failed=status >= 500)


class MeteredApp:
    """ASGI middleware: counts requests by method and route, never by what fills the route's blanks."""

    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = perf_counter(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            verb = f"{scope['method']} {route}" if status != 405 else "other"
            self._requests.observe(verb, perf_counter() - began, failed=status >= 500)
