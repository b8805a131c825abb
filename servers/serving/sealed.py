"""Seals for what passes ASGI; the fast lane has its own. See `servers.protocol.seal`."""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from servers.protocol.limits import MIB
from servers.protocol.seal import (
    DAMAGED,
    SEAL_HEADER,
    is_request_body_whole,
    is_request_head_whole,
    request_sum,
    seal_answer,
)

BODY_BYTES_MAX = 4 * MIB
"""Of a sealed request: it is held until all of it came."""


class SealedApp:
    """ASGI middleware: a sealed request that is not whole is refused; of others the answer is held until it is
    complete, and sealed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _decoded(scope.get("headers", ()))
        if scope["type"] != "http" or SEAL_HEADER not in headers:
            await self._app(scope, receive, send)
            return
        seal, body = headers[SEAL_HEADER], await _whole_body(receive)
        if body is None:
            return  # Nobody is there to answer.
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        is_whole = is_request_head_whole(seal, request_sum(scope["method"], target.decode("latin-1"), headers))
        if not is_whole or len(body) > BODY_BYTES_MAX or not is_request_body_whole(seal, body):
            await _refuse(send)
            return
        given = False

        async def receive_again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_again, _Sealing(seal, send).take)


class _Sealing:
    """Holds an answer until it is complete, seals it and sends it."""

    def __init__(self, seal: str, send: Send) -> None:
        self._seal = seal
        self._send = send
        self._start: Message = {}
        self._body = bytearray()

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        headers = list(self._start["headers"])
        seal = seal_answer(self._seal, self._start["status"], _decoded(headers), (self._body,))
        headers.append((SEAL_HEADER.encode(), seal.encode()))
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": bytes(self._body)})


def _decoded(headers: object) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}  # type: ignore[attr-defined]


async def _whole_body(receive: Receive) -> bytes | None:
    """Up to a little more than BODY_BYTES_MAX; None when the client left."""
    body = bytearray()
    while len(body) <= BODY_BYTES_MAX:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body)


async def _refuse(send: Send) -> None:
    body = json.dumps({"detail": DAMAGED}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
