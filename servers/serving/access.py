"""The cluster secret: loading it, and asking every request for it.

All routes but `GET /health` want `Authorization: Bearer <secret>`, the OpenAPI page too. The
fast lane asks `Secret.accepts` itself; everything else passes `RequireSecret`.
"""

from __future__ import annotations

import hmac
import json
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from servers.protocol.storage_api import HEALTH_PATH

DENIED = "the cluster secret is missing or wrong: send Authorization: Bearer <secret>"
SECRET_CHARACTERS_MIN = 8


class SecretError(Exception):
    """There is no usable cluster secret; the message says what to do."""


class Secret:
    """Keeps the secret out of logs and tracebacks, and compares in constant time."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._expected = f"Bearer {text}".encode()

    def accepts(self, authorization: str) -> bool:
        return hmac.compare_digest(authorization.encode("latin-1", "replace"), self._expected)

    def __repr__(self) -> str:
        return "Secret(…)"


def load_secret(file: Path | None, text: str | None) -> Secret:
    """The secret from the file, or else the text. Raises SecretError."""
    if file is not None:
        try:
            text = file.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise SecretError(f"cannot read the cluster secret from {file}: {error}") from error
    text = (text or "").strip()
    if not text:
        raise SecretError("no cluster secret: set DCS_SECRET_FILE to the file that holds it, or DCS_SECRET")
    if len(text) < SECRET_CHARACTERS_MIN or not text.isascii() or not text.isprintable():
        raise SecretError(f"the cluster secret must be {SECRET_CHARACTERS_MIN} or more printable ASCII characters")
    return Secret(text)


class RequireSecret:
    """ASGI middleware: 401 for every HTTP request without the secret, but `GET /health`."""

    def __init__(self, app: ASGIApp, secret: Secret) -> None:
        self._app = app
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        body = json.dumps({"detail": DENIED}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"www-authenticate", b"Bearer"),
        ]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _may_pass(self, scope: Scope) -> bool:
        if scope["type"] != "http":
            return False
        if scope["path"] == HEALTH_PATH and scope["method"] in ("GET", "HEAD"):
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and self._secret.accepts(given[0].decode("latin-1"))
